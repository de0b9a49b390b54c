"""The nodes that mark what a caller gets: each writes files below ComfyUI's output folder and reports them.

Classes, widgets, defaults and file names are comfy-pack's; unlike its nodes, these write nowhere else, number their
files on rather than write over the last one, and report every file, so that a service on another machine finds it.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from typing import Any, ClassVar

from .encoding import flac, metadata, pngs
from .inputs import ANY
from .places import DEFAULT_PREFIX, disable_metadata, place, readable

__all__ = ["OUTPUTS"]

_PREFIX_TIP = "Where to save below ComfyUI's output folder, and how the files' names begin."


def _written_by(data: bytes) -> Any:
    def write(path: str) -> None:
        with open(path, "wb") as file:
            file.write(data)

    return write


def _texts(prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    return {} if disable_metadata() else metadata(prompt, extra_pnginfo)


class _Output:
    """What all of them have in common; a subclass says what it *takes*, and what may be set besides."""

    CATEGORY = "ComfyPack/output"
    CPACK_NODE = True
    OUTPUT_NODE = True
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    FUNCTION = "save"
    PREFIX = DEFAULT_PREFIX
    TAKES: ClassVar[dict[str, Any]] = {}
    ALSO: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        prefix = {"filename_prefix": ("STRING", {"default": cls.PREFIX, "tooltip": _PREFIX_TIP})}
        return {
            "required": {**cls.TAKES, **prefix, **cls.ALSO},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }


class OutputImage(_Output):
    DESCRIPTION = "Pictures that callers of the API get, as PNG."
    TAKES: ClassVar[dict[str, Any]] = {"images": ("IMAGE", {"tooltip": "The images to save."})}

    def save(
        self, images: Any, filename_prefix: str = DEFAULT_PREFIX, prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        where = place(filename_prefix)
        first = where.first_free()
        found = []
        for number, data in enumerate(pngs(images, _texts(prompt, extra_pnginfo))):
            name = where.name.replace("%batch_num%", str(number))
            found.append(where.save(f"{name}_{first + number:05}_.png", _written_by(data)))
        return {"ui": {"images": found}}


class OutputAudio(_Output):
    DESCRIPTION = "Sound that callers of the API get, as FLAC."
    PREFIX = "audio/comfypack"
    TAKES: ClassVar[dict[str, Any]] = {"audio": ("AUDIO", {"tooltip": "The sound to save."})}

    def save(
        self, audio: Any, filename_prefix: str = PREFIX, prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        where = place(filename_prefix)
        first = where.first_free()
        texts = _texts(prompt, extra_pnginfo)
        found = []
        for number, waveform in enumerate(audio["waveform"]):
            name = where.name.replace("%batch_num%", str(number))
            data = flac(waveform, audio["sample_rate"], texts)
            found.append(where.save(f"{name}_{first + number:05}.flac", _written_by(data)))
        return {"ui": {"audio": found}}


class OutputVideo(_Output):
    DESCRIPTION = "A video that callers of the API get, as MP4."
    PREFIX = "video/comfypack"
    TAKES: ClassVar[dict[str, Any]] = {"video": ("VIDEO", {"tooltip": "The video to save."})}
    ALSO: ClassVar[dict[str, Any]] = {
        "format": (["auto", "mp4"], {"default": "auto", "tooltip": "The format to save the video as."}),
        "codec": (["auto", "h264"], {"default": "auto", "tooltip": "The codec to use for the video."}),
    }

    def save(
        self,
        video: Any,
        filename_prefix: str = PREFIX,
        format: str = "auto",
        codec: str = "auto",
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        where = place(filename_prefix)
        texts = (
            {} if disable_metadata() else {**(extra_pnginfo or {}), **({} if prompt is None else {"prompt": prompt})}
        )

        def write(path: str) -> None:
            video.save_to(path, format=format, codec=codec, metadata=texts or None)

        found = where.save(f"{where.name}_{where.first_free():05}.mp4", write)
        return {"ui": {"images": [found], "animated": (True,)}}


class OutputFile(_Output):
    DESCRIPTION = "A file that callers of the API get: a copy of the one that a node names."
    TAKES: ClassVar[dict[str, Any]] = {
        "filename": (
            "STRING",
            {
                "default": "",
                "forceInput": True,
                "tooltip": "The file to copy; it has to lie in ComfyUI's input, output or temp folder.",
            },
        )
    }

    def save(
        self, filename: str, filename_prefix: str = DEFAULT_PREFIX, prompt: Any = None, extra_pnginfo: Any = None
    ) -> Any:
        if not filename_prefix:  # as comfy-pack has it: nothing is wanted
            return ()
        source = readable(filename)
        # The prefix stands before the file's own name, so it may end in the name of a folder.
        where = place(f"{filename_prefix}{os.path.basename(source)}")
        return {"ui": {"files": [where.save(where.name, lambda path: shutil.copyfile(source, path))]}}


class OutputZip(_Output):
    DESCRIPTION = "Pictures, each with a text beside it, that callers of the API get as one zip."
    TAKES: ClassVar[dict[str, Any]] = {"images": ("IMAGE", {"tooltip": "The images to save."})}
    ALSO: ClassVar[dict[str, Any]] = {
        "text": ("STRING", {"default": "", "tooltip": "Written into a file beside each picture."})
    }

    def save(
        self,
        images: Any,
        filename_prefix: str = DEFAULT_PREFIX,
        text: str = "",
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        where = place(filename_prefix)
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, picture in enumerate(pngs(images, _texts(prompt, extra_pnginfo))):
                archive.writestr(f"image_{number:05}.png", picture)
                archive.writestr(f"text_{number:05}.txt", text)
        name = f"{where.name}_batch_{where.first_free('_batch_'):05}.zip"
        return {"ui": {"zip": [where.save(name, _written_by(data.getvalue()))]}}


class OutputZipSwitch:
    """Its presence alone says something: comfy-pack's service answers with a zip."""

    CATEGORY = "ComfyPack/output"
    DESCRIPTION = "Results come as one zip, even when there is but one."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    FUNCTION = "nothing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {}}

    def nothing(self) -> tuple[()]:
        return ()


class OutputTextFile(_Output):
    DESCRIPTION = "A text that callers of the API get as a file."
    TAKES: ClassVar[dict[str, Any]] = {"text": ("STRING", {"forceInput": True, "tooltip": "The text to save."})}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        extension = ("STRING", {"default": ".txt", "tooltip": "How the file's name ends."})
        return {**super().INPUT_TYPES(), "optional": {"file_extension": extension}}

    def save(
        self,
        text: str,
        filename_prefix: str = DEFAULT_PREFIX,
        file_extension: str = ".txt",
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        if not re.fullmatch(r"[\w.+-]{0,32}", file_extension):
            raise ValueError(f"{file_extension!r} is no file extension.")
        where = place(filename_prefix)
        name = f"{where.name}_{where.first_free():04d}{file_extension}"
        return {"ui": {"files": [where.save(name, _written_by(text.encode(errors="replace")))]}}


class OutputJSON(_Output):
    DESCRIPTION = "A value (text, number, list, object) that callers of the API get as a JSON file."
    TAKES: ClassVar[dict[str, Any]] = {"value": (ANY, {"forceInput": True, "tooltip": "The value to save."})}

    def save(
        self, value: Any, filename_prefix: str = DEFAULT_PREFIX, prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"The value is nothing that JSON can hold: {error}.") from None
        where = place(filename_prefix)
        name = f"{where.name}_{where.first_free():05}.json"
        return {"ui": {"files": [where.save(name, _written_by(text.encode(errors="backslashreplace")))]}}


OUTPUTS: dict[str, tuple[type, str]] = {
    "CPackOutputImage": (OutputImage, "Image Output"),
    "CPackOutputAudio": (OutputAudio, "Audio Output"),
    "CPackOutputVideo": (OutputVideo, "Video Output"),
    "CPackOutputFile": (OutputFile, "File Output"),
    "CPackOutputTextFile": (OutputTextFile, "Output Text to File"),
    "CPackOutputJSON": (OutputJSON, "JSON Output"),
    "CPackOutputZip": (OutputZip, "Zip Output(img + txt file)"),
    "CPackOutputZipSwitch": (OutputZipSwitch, "Enable Zip Output"),
}
"""Class name → class, and what the menu calls it."""
