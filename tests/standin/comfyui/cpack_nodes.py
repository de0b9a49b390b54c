"""The interface nodes, with the class names, inputs and file names of comfy-pack's, quirks included.

The quirks matter to whoever looks for outputs: files are copied beside an absolute prefix, text is written where the
prefix says and not reported, a zip is reported under a type of its own.
"""

from __future__ import annotations

import glob
import io
import os
import shutil
import sys
import zipfile
from typing import ClassVar

import folder_paths
from nodes import LoadImage, save_images, to_image


class AnyType(str):
    """Equal to every type."""

    def __ne__(self, other):
        return False


ANY = AnyType("*")


class InputImage(LoadImage):
    CATEGORY = "ComfyPack/input"
    CPACK_NODE = True


class InputString:
    CATEGORY = "ComfyPack/input"
    CPACK_NODE = True
    RETURN_TYPES = ("STRING",)
    FUNCTION = "identity"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("STRING", {"default": ""})}}

    def identity(self, value):
        return (value,)


class InputInt:
    CATEGORY = "ComfyPack/input"
    CPACK_NODE = True
    RETURN_TYPES = ("INT",)
    FUNCTION = "identity"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"value": ("INT", {"default": 0})},
            "optional": {
                "min": ("INT", {"default": -sys.maxsize}),
                "max": ("INT", {"default": sys.maxsize}),
            },
        }

    def identity(self, value, min=None, max=None):
        return (value,)

    @classmethod
    def VALIDATE_INPUTS(cls, value, min=None, max=None):
        if min is not None and max is not None and min > max:
            return f"Value must be greater than or equal to {min}"
        return True


class InputFile:
    CATEGORY = "ComfyPack/input"
    CPACK_NODE = True
    RETURN_TYPES = (ANY,)
    FUNCTION = "identity"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"path": ("STRING", {"default": ""})}}

    def identity(self, path):
        return (path,)


class InputAny:
    CATEGORY = "ComfyPack/input"
    CPACK_NODE = True
    RETURN_TYPES = (ANY,)
    FUNCTION = "identity"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"input": ("*", {"default": ""})}}

    def identity(self, input):
        return (input,)


class _Output:
    CATEGORY = "ComfyPack/output"
    CPACK_NODE = True
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    FUNCTION = "save"
    TAKES: ClassVar[dict] = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {**cls.TAKES, "filename_prefix": ("STRING", {"default": "cpack_output_"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }


class OutputFile(_Output):
    TAKES: ClassVar[dict] = {"filename": ("STRING", {"default": "", "forceInput": True})}

    def save(self, filename, filename_prefix, prompt=None, extra_pnginfo=None):
        folder, prefix = os.path.split(filename_prefix)
        if folder:
            os.makedirs(folder, exist_ok=True)
        else:
            folder = os.path.dirname(filename)
        shutil.copy2(filename, os.path.join(folder, f"{prefix}{os.path.basename(filename)}"))
        return ()


class OutputImage(_Output):
    TAKES: ClassVar[dict] = {"images": ("IMAGE",)}

    def save(self, images, filename_prefix="cpack_output_", prompt=None, extra_pnginfo=None):
        return save_images(images, filename_prefix, prompt, extra_pnginfo)


class _OutputBytes(_Output):
    """Sound and film are whatever bytes there are: there is no codec here."""

    SUFFIX = ""
    REPORT = ""

    def save(self, filename_prefix, prompt=None, extra_pnginfo=None, **taken):
        (data,) = taken.values()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        file = f"{name}_{counter:05}{self.SUFFIX}"
        with open(os.path.join(folder, file), "wb") as target:
            target.write(bytes(data))
        return {"ui": {self.REPORT: [{"filename": file, "subfolder": subfolder, "type": "output"}]}}


class OutputAudio(_OutputBytes):
    TAKES: ClassVar[dict] = {"audio": ("AUDIO",)}
    SUFFIX = ".flac"
    REPORT = "audio"


class OutputVideo(_OutputBytes):
    TAKES: ClassVar[dict] = {"video": ("VIDEO",)}
    SUFFIX = ".mp4"
    REPORT = "images"


class OutputZip(_Output):
    TAKES: ClassVar[dict] = {"images": ("IMAGE",), "text": ("STRING", {"default": ""})}

    def save(self, images, filename_prefix="cpack_output_", text="", prompt=None, extra_pnginfo=None):
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        file = f"{name}_batch_{counter:05}.zip"
        with zipfile.ZipFile(os.path.join(folder, file), "w") as archive:
            for number, array in enumerate(images):
                data = io.BytesIO()
                to_image(array).save(data, format="PNG")
                archive.writestr(f"image_{number:05}.png", data.getvalue())
                archive.writestr(f"text_{number:05}.txt", text)
        return {"ui": {"zip": [{"filename": file, "subfolder": subfolder, "type": "zip"}]}}


class OutputZipSwitch:
    CATEGORY = "ComfyPack/output"
    RETURN_TYPES = ()
    FUNCTION = "nothing"

    @classmethod
    def INPUT_TYPES(cls):
        return {}

    def nothing(self):
        return ()


class OutputTextFile(_Output):
    TAKES: ClassVar[dict] = {"text": ("STRING", {"forceInput": True})}

    @classmethod
    def INPUT_TYPES(cls):
        return {**super().INPUT_TYPES(), "optional": {"file_extension": ("STRING", {"default": ".txt"})}}

    def save(self, text, filename_prefix, file_extension=".txt", prompt=None, extra_pnginfo=None):
        subfolder, prefix = os.path.split(os.path.normpath(filename_prefix))
        folder = os.path.join(folder_paths.get_output_directory(), subfolder)
        number = len(glob.glob(os.path.join(glob.escape(folder), f"{glob.escape(prefix)}_*{file_extension}"))) + 1
        path = os.path.join(folder, f"{prefix}_{number:04d}{file_extension}")
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        return (text, {"ui": {"string": text}})


NODE_CLASS_MAPPINGS = {
    "CPackInputImage": InputImage,
    "CPackInputString": InputString,
    "CPackInputInt": InputInt,
    "CPackInputFile": InputFile,
    "CPackInputAny": InputAny,
    "CPackOutputFile": OutputFile,
    "CPackOutputImage": OutputImage,
    "CPackOutputAudio": OutputAudio,
    "CPackOutputVideo": OutputVideo,
    "CPackOutputZip": OutputZip,
    "CPackOutputZipSwitch": OutputZipSwitch,
    "CPackOutputTextFile": OutputTextFile,
}
