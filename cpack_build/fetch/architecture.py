"""What kind of model a file is, guessed from its tensors' names as loaders do (ComfyUI, ``model_detection.py``)."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["guess"]

_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("LoRA", (r"(lora_(unet|te\d?|transformer)_|.*\.lora_(up|down|A|B|a|b)\b|.*\.hada_w1_a|.*\.lokr_w1)",)),
    ("ControlNet", (r"(control_model\.|controlnet_(down|mid)_blocks|controlnet_cond_embedding|control_x_embedder)",)),
    ("IP-Adapter", (r"(ip_adapter\.|image_proj\.)",)),
    ("textual inversion", (r"(string_to_param|emb_params|clip_[lg]$)",)),
    ("Stable Diffusion XL checkpoint", (r"model\.diffusion_model\.input_blocks", r"conditioner\.embedders\.1\.")),
    ("Stable Diffusion XL refiner", (r"model\.diffusion_model\.input_blocks", r"conditioner\.embedders\.0\.model\.")),
    ("Stable Diffusion 2 checkpoint", (r"model\.diffusion_model\.input_blocks", r"cond_stage_model\.model\.")),
    ("Stable Diffusion 1 checkpoint", (r"model\.diffusion_model\.input_blocks", r"cond_stage_model\.transformer\.")),
    ("Stable Diffusion UNet", (r"(model\.diffusion_model\.)?(input_blocks|down_blocks)\.",)),
    ("Stable Diffusion 3", (r"(model\.diffusion_model\.)?joint_blocks\.",)),
    ("HunyuanVideo", (r"(model\.(diffusion_)?model\.)?double_blocks\.", r".*txt_in\.individual_token_refiner\.")),
    ("Flux", (r"(model\.diffusion_model\.)?double_blocks\.", r"(model\.diffusion_model\.)?single_blocks\.")),
    ("Wan video", (r"(model\.diffusion_model\.)?blocks\.\d+\.cross_attn\.", r".*patch_embedding\.")),
    ("LTX video", (r".*transformer_blocks\.\d+\.attn2\.", r".*(adaln_single|patchify_proj)\.")),
    ("Qwen image", (r".*transformer_blocks\.\d+\.img_mlp\.", r".*txt_norm\.")),
    ("T5 text encoder", (r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.",)),
    ("CLIP text encoder", (r"(text_model\.encoder\.layers|transformer\.resblocks)\.",)),
    ("CLIP vision", (r"(vision_model\.encoder\.layers|visual\.transformer)\.",)),
    ("language model", (r"model\.layers\.\d+\.(self_attn|mlp)\.",)),
    ("VAE", (r"(first_stage_model\.)?decoder\.(conv_in|up_blocks|up|middle)\b", r".*(quant_conv|encoder)\.")),
    ("VAE decoder", (r"(decoder\.conv_in|taesd_decoder)",)),
    ("upscaler (ESRGAN)", (r"(model\.\d+\.sub\.\d+\.RDB1|body\.\d+\.rdb1|RRDB_trunk)",)),
    ("upscaler", (r"(conv_first|upsampler|layers\.0\.residual_group|upconv1)\b",)),
    ("SAM", (r"image_encoder\.(blocks|trunk)\.", r"mask_decoder\.")),
)


def guess(names: Iterable[str]) -> str | None:
    """The kind of model that has tensors of these *names*; ``None`` if they say nothing."""
    known = list(names)
    for kind, signs in _SIGNS:
        if all(any(re.match(sign, name) for name in known) for sign in signs):
            return kind
    return None
