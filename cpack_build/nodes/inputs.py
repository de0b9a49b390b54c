"""The nodes that mark what a caller may set: each is one parameter of the API, named by its title.

Classes, widgets and defaults are comfy-pack's, so that its workflows open unchanged; every node has two more widgets at
the end, *description* and *required*, which reach the API's schema and change nothing in ComfyUI.
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any, ClassVar

from .places import allowed_path, readable

__all__ = ["ANY", "INPUTS"]


class AnyType(str):
    """Not unequal to any type, which is how ComfyUI compares them."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False


ANY = AnyType("*")

# Where the frontend has no other bound it takes 0 and 2048. Powers of two survive JavaScript's numbers.
_WIDE: dict[str, Any] = {"min": -(2**64), "max": 2**64}
_WIDE_FLOAT: dict[str, Any] = {"min": -(2.0**64), "max": 2.0**64, "step": 0.01, "round": 0.0000001}
_TAKEN = "Taken where callers of the API give none."
_BOUNDS = ("The lowest value that callers may give.", "The highest value that callers may give.")
_SHOWN = {
    "description": (
        "STRING",
        {
            "default": "",
            "socketless": True,
            "advanced": True,
            "tooltip": "What callers of the API read about this parameter.",
        },
    ),
    "required": (
        "BOOLEAN",
        {
            "default": False,
            "socketless": True,
            "advanced": True,
            "tooltip": "Callers of the API must give a value; otherwise the one here is taken.",
        },
    ),
}


class _Input:
    """What all of them have in common; a subclass says what it *takes*, what else may be set, and gives its result."""

    CATEGORY = "ComfyPack/input"
    CPACK_NODE = True
    FUNCTION = "identity"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("value",)
    TAKES: ClassVar[dict[str, Any]] = {}
    ALSO: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": dict(cls.TAKES), "optional": {**cls.ALSO, **_SHOWN}}


class InputString(_Input):
    DESCRIPTION = "A text that callers of the API may set."
    RETURN_TYPES = ("STRING",)
    TAKES: ClassVar[dict[str, Any]] = {"value": ("STRING", {"default": "", "tooltip": _TAKEN})}

    def identity(self, value: str, description: str = "", required: bool = False) -> tuple[str]:
        return (value,)


def _problem(value: Any, lowest: Any, highest: Any) -> str | None:
    """What is wrong with *value* between two bounds; what another node gives (None here) is not known yet."""
    if lowest is not None and highest is not None and lowest > highest:
        return f"The minimum {lowest} is above the maximum {highest}."
    if value is not None and lowest is not None and value < lowest:
        return f"The value {value} is below the minimum {lowest}."
    if value is not None and highest is not None and value > highest:
        return f"The value {value} is above the maximum {highest}."
    return None


class InputInt(_Input):
    DESCRIPTION = "A whole number that callers of the API may set, within bounds."
    RETURN_TYPES = ("INT",)
    TAKES: ClassVar[dict[str, Any]] = {"value": ("INT", {"default": 0, **_WIDE, "tooltip": _TAKEN})}
    ALSO: ClassVar[dict[str, Any]] = {
        "min": ("INT", {"default": -sys.maxsize, **_WIDE, "tooltip": _BOUNDS[0]}),
        "max": ("INT", {"default": sys.maxsize, **_WIDE, "tooltip": _BOUNDS[1]}),
    }

    def identity(
        self, value: int, min: Any = None, max: Any = None, description: str = "", required: bool = False
    ) -> tuple[int]:
        return (value,)

    @classmethod
    def VALIDATE_INPUTS(cls, value: Any = None, min: Any = None, max: Any = None) -> bool | str:  # noqa: N802
        return _problem(value, min, max) or True


class InputFloat(InputInt):
    DESCRIPTION = "A number that callers of the API may set, within bounds."
    RETURN_TYPES = ("FLOAT",)
    TAKES: ClassVar[dict[str, Any]] = {"value": ("FLOAT", {"default": 0.0, **_WIDE_FLOAT, "tooltip": _TAKEN})}
    ALSO: ClassVar[dict[str, Any]] = {
        "min": ("FLOAT", {"default": -(2.0**64), **_WIDE_FLOAT, "tooltip": _BOUNDS[0]}),
        "max": ("FLOAT", {"default": 2.0**64, **_WIDE_FLOAT, "tooltip": _BOUNDS[1]}),
    }


class InputBoolean(_Input):
    DESCRIPTION = "A switch that callers of the API may set."
    RETURN_TYPES = ("BOOLEAN",)
    TAKES: ClassVar[dict[str, Any]] = {"value": ("BOOLEAN", {"default": False, "tooltip": _TAKEN})}

    def identity(self, value: bool, description: str = "", required: bool = False) -> tuple[bool]:
        return (value,)


class InputChoice(_Input):
    DESCRIPTION = (
        "One of several texts; callers of the API may choose. Connected to a list, it offers that list's values."
    )
    RETURN_TYPES = (ANY,)
    TAKES: ClassVar[dict[str, Any]] = {"value": ("STRING", {"default": "", "tooltip": _TAKEN})}
    ALSO: ClassVar[dict[str, Any]] = {
        "choices": ("STRING", {"default": "", "multiline": True, "tooltip": "One on each line."})
    }

    def identity(self, value: str, choices: str = "", description: str = "", required: bool = False) -> tuple[str]:
        return (value,)

    @classmethod
    def VALIDATE_INPUTS(cls, value: Any = None, choices: Any = None) -> bool | str:  # noqa: N802
        offered = [line.strip() for line in choices.splitlines() if line.strip()] if isinstance(choices, str) else []
        if value is not None and offered and value not in offered:
            return f"{value!r} is none of the choices: {', '.join(offered)}."
        return True


class InputFile(_Input):
    DESCRIPTION = "A file that callers of the API may send; gives its path."
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("path",)
    TAKES: ClassVar[dict[str, Any]] = {"path": ("STRING", {"default": "", "tooltip": _TAKEN})}

    def identity(self, path: str, description: str = "", required: bool = False) -> tuple[str]:
        if isinstance(path, str):
            allowed_path(path)
        return (path,)

    @classmethod
    def VALIDATE_INPUTS(cls, path: Any = None) -> bool | str:  # noqa: N802
        try:
            if isinstance(path, str):
                allowed_path(path)
        except ValueError as error:
            return str(error)
        return True


class InputAny(_Input):
    DESCRIPTION = "Whatever the input it is connected to takes; callers of the API may set it."
    RETURN_TYPES = (ANY,)
    TAKES: ClassVar[dict[str, Any]] = {"input": ("*", {"default": "", "widgetType": "STRING", "tooltip": _TAKEN})}

    def identity(self, input: Any, description: str = "", required: bool = False) -> tuple[Any]:
        return (input,)


def _pictures() -> list[str]:
    import folder_paths

    folder = folder_paths.get_input_directory()
    names = [name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name))]
    if hasattr(folder_paths, "filter_files_content_types"):
        names = folder_paths.filter_files_content_types(names, ["image"])
    return sorted(names)


class _Picture(_Input):
    """A picture's file, which has to lie in ComfyUI's folders; ComfyUI's own nodes do the reading."""

    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        picture = (_pictures(), {"image_upload": True, "tooltip": _TAKEN})
        return {"required": {"image": picture}, "optional": {**cls.ALSO, **_SHOWN}}

    @classmethod
    def IS_CHANGED(cls, image: str, **other: Any) -> str:  # noqa: N802
        with open(readable(image), "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, image: Any = None) -> bool | str:  # noqa: N802
        if image is not None:
            try:
                readable(image)
            except ValueError as error:
                return f"Invalid image file: {error}"
        return True


class InputImage(_Picture):
    DESCRIPTION = "A picture that callers of the API may send."
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("IMAGE", "MASK")

    def load_image(self, image: str, description: str = "", required: bool = False) -> Any:
        import nodes

        readable(image)
        return nodes.LoadImage().load_image(image)


class InputMask(_Picture):
    """The picture's transparency where it has any, else its brightness: a white place is masked, as painters expect."""

    DESCRIPTION = "A mask that callers of the API may send as a picture."
    RETURN_TYPES = ("MASK",)
    RETURN_NAMES = ("MASK",)
    ALSO: ClassVar[dict[str, Any]] = {
        "channel": (
            ["auto", "alpha", "red", "green", "blue"],
            {"default": "auto", "tooltip": "auto: transparency where the picture has any, else brightness."},
        )
    }

    def load_image(self, image: str, channel: str = "auto", description: str = "", required: bool = False) -> Any:
        import nodes
        from PIL import Image

        path = readable(image)
        if channel == "auto":
            with Image.open(path) as opened:
                transparent = "A" in opened.getbands() or "transparency" in opened.info
            channel = "alpha" if transparent else "red"
        return nodes.LoadImageMask().load_image(image, channel)


INPUTS: dict[str, tuple[type, str]] = {
    "CPackInputImage": (InputImage, "Image Input"),
    "CPackInputMask": (InputMask, "Mask Input"),
    "CPackInputString": (InputString, "String Input"),
    "CPackInputInt": (InputInt, "Int Input"),
    "CPackInputFloat": (InputFloat, "Float Input"),
    "CPackInputBoolean": (InputBoolean, "Boolean Input"),
    "CPackInputChoice": (InputChoice, "Choice Input"),
    "CPackInputFile": (InputFile, "File Input"),
    "CPackInputAny": (InputAny, "Any Input"),
}
"""Class name → class, and what the menu calls it."""
