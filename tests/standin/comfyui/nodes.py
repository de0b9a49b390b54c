"""The nodes, done with Pillow and NumPy, and the loading of custom nodes.

Names, inputs and results are those of ComfyUI's nodes; an IMAGE is a float32 array ``[batch, height, width, channel]``
from 0 to 1, where ComfyUI has a tensor of that shape.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import sys
import time
import traceback
from typing import Any

import folder_paths
import numpy as np
from comfy.cli_args import args
from media_nodes import NODE_CLASS_MAPPINGS as MEDIA_NODES
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from safetensors_file import read_safetensors

MAX_RESOLUTION = 16384
_METHODS = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def to_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float32)[None] / np.float32(255.0)


def to_image(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(255.0 * array, 0, 255).astype(np.uint8))


def save_images(images: np.ndarray, filename_prefix: str, prompt: Any, extra_pnginfo: Any) -> dict[str, Any]:
    """Write *images* under *filename_prefix* of the output folder, and report them as SaveImage does."""
    output = folder_paths.get_output_directory()
    folder, filename, counter, subfolder, _ = folder_paths.get_save_image_path(
        filename_prefix, output, images.shape[2], images.shape[1]
    )
    results = []
    for number, array in enumerate(images):
        metadata = None
        if not args.disable_metadata:
            metadata = PngInfo()
            metadata.add_text("prompt", json.dumps(prompt))
            for key, value in (extra_pnginfo or {}).items():
                metadata.add_text(key, json.dumps(value))
        file = f"{filename.replace('%batch_num%', str(number))}_{counter:05}_.png"
        to_image(array).save(os.path.join(folder, file), pnginfo=metadata, compress_level=4)
        results.append({"filename": file, "subfolder": subfolder, "type": "output"})
        counter += 1
    return {"ui": {"images": results}}


class LoadImage:
    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls):
        folder = folder_paths.get_input_directory()
        names = sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name)))
        return {"required": {"image": (names, {"image_upload": True})}}

    def load_image(self, image):
        with Image.open(folder_paths.get_annotated_filepath(image)) as opened:
            upright = ImageOps.exif_transpose(opened)
            array = to_array(upright)
            if "A" in upright.getbands():
                mask = 1 - np.asarray(upright.getchannel("A"), dtype=np.float32)[None] / np.float32(255.0)
            else:
                mask = np.zeros((1, 64, 64), dtype=np.float32)
        return (array, mask)

    @classmethod
    def IS_CHANGED(cls, image):
        with open(folder_paths.get_annotated_filepath(image), "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, image):
        if not folder_paths.exists_annotated_filepath(image):
            return f"Invalid image file: {image}"
        return True


class LoadImageMask:
    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls):
        return {**LoadImage.INPUT_TYPES(), "optional": {"channel": (["alpha", "red", "green", "blue"],)}}

    def load_image(self, image, channel):
        with Image.open(folder_paths.get_annotated_filepath(image)) as opened:
            band = ImageOps.exif_transpose(opened).convert("RGBA").getchannel(channel[0].upper())
            mask = np.asarray(band, dtype=np.float32)[None] / np.float32(255.0)
        return (1 - mask if channel == "alpha" else mask,)


class MaskToImage:
    CATEGORY = "mask"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "mask_to_image"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"mask": ("MASK",)}}

    def mask_to_image(self, mask):
        return (np.repeat(mask[..., None], 3, axis=-1),)


class EmptyImage:
    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "generate"

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 512, "min": 1, "max": MAX_RESOLUTION, "step": 1})
        return {
            "required": {
                "width": size,
                "height": size,
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}),
            }
        }

    def generate(self, width, height, batch_size=1, color=0):
        channels = np.array([color >> 16 & 0xFF, color >> 8 & 0xFF, color & 0xFF], dtype=np.float32) / np.float32(255)
        return (np.broadcast_to(channels, (batch_size, height, width, 3)).copy(),)


class ImageInvert:
    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def invert(self, image):
        return (np.float32(1.0) - image,)


class ImageScale:
    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1})
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(_METHODS),),
                "width": size,
                "height": size,
                "crop": (["disabled", "center"],),
            }
        }

    def upscale(self, image, upscale_method, width, height, crop):
        if width == 0 and height == 0:
            return (image,)
        old_height, old_width = image.shape[1:3]
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        scaled = []
        for array in image:
            picture = to_image(array)
            if crop == "center":
                keep = min(old_width / width, old_height / height)
                dx, dy = (old_width - width * keep) / 2, (old_height - height * keep) / 2
                picture = picture.crop((round(dx), round(dy), round(old_width - dx), round(old_height - dy)))
            scaled.append(to_array(picture.resize((width, height), _METHODS[upscale_method])))
        return (np.concatenate(scaled),)


class SaveImage:
    CATEGORY = "image"
    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(self, images, filename_prefix="ComfyUI", prompt=None, extra_pnginfo=None):
        return save_images(images, filename_prefix, prompt, extra_pnginfo)


class UpscaleModelLoader:
    CATEGORY = "loaders"
    RETURN_TYPES = ("UPSCALE_MODEL",)
    FUNCTION = "load_model"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model_name": (folder_paths.get_filename_list("upscale_models"),)}}

    def load_model(self, model_name):
        tensors, metadata = read_safetensors(folder_paths.get_full_path_or_raise("upscale_models", model_name))
        weights = np.concatenate([tensor.astype(np.float64).ravel() for tensor in tensors.values()] or [np.zeros(9)])
        # A 3x3 kernel in which every weight of the file has a part, and whose sum is 1 so that pictures stay visible.
        kernel = np.array([weights[start::9].sum() for start in range(9)])
        kernel = np.abs(np.tanh(kernel)) + 0.05
        return ({"scale": int(metadata.get("scale", 4)), "kernel": (kernel / kernel.sum()).reshape(3, 3)},)


class ImageUpscaleWithModel:
    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"upscale_model": ("UPSCALE_MODEL",), "image": ("IMAGE",)}}

    def upscale(self, upscale_model, image):
        scale, kernel = upscale_model["scale"], upscale_model["kernel"]
        large = image.astype(np.float64).repeat(scale, axis=1).repeat(scale, axis=2)
        padded = np.pad(large, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        height, width = large.shape[1:3]
        result = np.zeros_like(large)
        for row in range(3):
            for column in range(3):
                result += kernel[row, column] * padded[:, row : row + height, column : column + width]
        return (np.clip(result, 0, 1).astype(np.float32),)


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    "LoadImage": LoadImage,
    "LoadImageMask": LoadImageMask,
    "MaskToImage": MaskToImage,
    "EmptyImage": EmptyImage,
    "ImageInvert": ImageInvert,
    "ImageScale": ImageScale,
    "SaveImage": SaveImage,
    "UpscaleModelLoader": UpscaleModelLoader,
    "ImageUpscaleWithModel": ImageUpscaleWithModel,
    **MEDIA_NODES,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
EXTENSION_WEB_DIRS: dict[str, str] = {}


def load_custom_node(path: str, ignore: frozenset[str] = frozenset()) -> bool:
    """Import the custom node at *path* (a folder or a .py file) as ComfyUI does; a failure is reported and that is all.

    Nodes named in *ignore* keep the classes that they have.
    """
    name = os.path.basename(path).removesuffix(".py")
    try:
        if os.path.isfile(path):
            in_sys, folder = path.removesuffix(".py"), os.path.dirname(path)
            spec = importlib.util.spec_from_file_location(in_sys, path)
        else:
            in_sys, folder = path.replace(".", "_x_"), path
            spec = importlib.util.spec_from_file_location(in_sys, os.path.join(path, "__init__.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[in_sys] = module
        spec.loader.exec_module(module)
        web = getattr(module, "WEB_DIRECTORY", None)
        if web is not None and os.path.isdir(os.path.join(folder, web)):
            EXTENSION_WEB_DIRS[name] = os.path.abspath(os.path.join(folder, web))
        for node, node_class in module.NODE_CLASS_MAPPINGS.items():
            if node not in ignore:
                NODE_CLASS_MAPPINGS[node] = node_class
                node_class.RELATIVE_PYTHON_MODULE = f"custom_nodes.{name}"
        NODE_DISPLAY_NAME_MAPPINGS.update(getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", {}))
        return True
    except Exception:
        logging.warning(traceback.format_exc())
        logging.warning("Cannot import %s module for custom nodes", path)
        return False


def init_extra_nodes() -> None:
    """Load our interface nodes, the ones that fail on request, and everything in ``custom_nodes``."""
    here = os.path.dirname(os.path.realpath(__file__))
    built_in = frozenset(NODE_CLASS_MAPPINGS)
    for name in ("cpack_nodes.py", "failing_nodes.py"):
        load_custom_node(os.path.join(here, name))
    times = []
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            skipped = name.startswith(".") or name == "__pycache__" or name.endswith(".disabled")
            if skipped or (os.path.isfile(path) and not name.endswith(".py")):
                continue
            if args.disable_all_custom_nodes and name not in args.whitelist_custom_nodes:
                continue
            begun = time.perf_counter()
            loaded = load_custom_node(path, built_in)
            times.append((time.perf_counter() - begun, path, "" if loaded else " (IMPORT FAILED)"))
    if times:
        logging.info("\nImport times for custom nodes:")
        for seconds, path, failed in sorted(times):
            logging.info("%6.1f seconds%s: %s", seconds, failed, path)
