"""What the loader nodes of ComfyUI itself load, as a table: node class and input → model folder or place of files.

An API file says nothing about a node's inputs but their values, so without an ``object_info`` this is what tells a
model's name from any other text. Folders are the keys of ComfyUI's ``folder_paths``; current names, not the legacy
``clip`` and ``unet``. Read from ComfyUI 0.3.64 (``nodes.py``, ``comfy_extras/``); custom nodes follow by
:mod:`cpack_build.workflow.references`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["APPROXIMATE_VAES", "FILE_EXTENSIONS", "FILE_INPUTS", "MODEL_EXTENSIONS", "MODEL_INPUTS", "Place"]

Place = Literal["input", "output", "temp", "base"]
"""Where a file lies: one of ComfyUI's three folders, or relative to ComfyUI itself."""

MODEL_INPUTS: Mapping[str, Mapping[str, str]] = {
    "AudioEncoderLoader": {"audio_encoder_name": "audio_encoders"},
    "CLIPLoader": {"clip_name": "text_encoders"},
    "CLIPVisionLoader": {"clip_name": "clip_vision"},
    "CheckpointLoader": {"config_name": "configs", "ckpt_name": "checkpoints"},
    "CheckpointLoaderSimple": {"ckpt_name": "checkpoints"},
    "ControlNetLoader": {"control_net_name": "controlnet"},
    "CreateHookLora": {"lora_name": "loras"},
    "CreateHookLoraModelOnly": {"lora_name": "loras"},
    "CreateHookModelAsLora": {"ckpt_name": "checkpoints"},
    "CreateHookModelAsLoraModelOnly": {"ckpt_name": "checkpoints"},
    "DiffControlNetLoader": {"control_net_name": "controlnet"},
    "DiffusersLoader": {"model_path": "diffusers"},
    "DualCLIPLoader": {"clip_name1": "text_encoders", "clip_name2": "text_encoders"},
    "GLIGENLoader": {"gligen_name": "gligen"},
    "HypernetworkLoader": {"hypernetwork_name": "hypernetworks"},
    "ImageOnlyCheckpointLoader": {"ckpt_name": "checkpoints"},
    "LatentUpscaleModelLoader": {"model_name": "latent_upscale_models"},
    "LoraLoader": {"lora_name": "loras"},
    "LoraLoaderModelOnly": {"lora_name": "loras"},
    "ModelPatchLoader": {"name": "model_patches"},
    "PhotoMakerLoader": {"photomaker_model_name": "photomaker"},
    "QuadrupleCLIPLoader": {f"clip_name{number}": "text_encoders" for number in (1, 2, 3, 4)},
    "StyleModelLoader": {"style_model_name": "style_models"},
    "TrainLoraNode": {"existing_lora": "loras"},
    "TripleCLIPLoader": {f"clip_name{number}": "text_encoders" for number in (1, 2, 3)},
    "UNETLoader": {"unet_name": "diffusion_models"},
    "UnetLoaderGGUF": {"unet_name": "diffusion_models"},
    "UpscaleModelLoader": {"model_name": "upscale_models"},
    "VAELoader": {"vae_name": "vae"},
    "unCLIPCheckpointLoader": {"ckpt_name": "checkpoints"},
}
"""Class → input → model folder."""

FILE_INPUTS: Mapping[str, Mapping[str, Place]] = {
    "CPackInputFile": {"path": "base"},
    "CPackInputImage": {"image": "input"},
    "CPackInputMask": {"image": "input"},
    "Load3D": {"model_file": "input"},
    "Load3DAnimation": {"model_file": "input"},
    "LoadAudio": {"audio": "input"},
    "LoadImage": {"image": "input"},
    "LoadImageMask": {"image": "input"},
    "LoadImageOutput": {"image": "output"},
    "LoadImageSetFromFolderNode": {"folder": "input"},
    "LoadImageSetNode": {"images": "input"},
    "LoadImageTextSetFromFolderNode": {"folder": "input"},
    "LoadLatent": {"latent": "input"},
    "LoadVideo": {"file": "input"},
    "VHS_LoadAudioUpload": {"audio": "input"},
    "VHS_LoadVideo": {"video": "input"},
}
"""Class → input → where the file or folder it names lies."""

APPROXIMATE_VAES = frozenset({"taesd", "taesdxl", "taesd3", "taef1"})
"""Values of ``VAELoader`` that stand for two files of ``vae_approx``."""

MODEL_EXTENSIONS = frozenset(
    {".ckpt", ".gguf", ".onnx", ".pkl", ".pt", ".pt2", ".pth", ".safetensors", ".sft", ".bin", ".engine"}
)
"""ComfyUI's ``supported_pt_extensions``, and what custom nodes load besides."""

FILE_EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".exr", ".hdr", ".avif", ".latent"}
    | {".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"}
    | {".glb", ".gltf", ".obj", ".fbx", ".stl", ".ply", ".usdz"}
)
"""What a person puts into ``input/``: pictures, latents, video, sound and meshes."""
