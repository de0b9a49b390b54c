"""The workflows that the tests serve."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from tests.serve.running import MODEL


def node(class_type: str, title: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


def choice(title: str, value: str, *values: str) -> dict[str, Any]:
    item = node("CPackInputAny", title, input=value)
    item["_meta"]["options"] = {"values": list(values)}
    return item


def picture(colour: tuple[int, int, int] = (200, 80, 20), size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG with a gradient, so that scaling it in another way gives other pixels."""
    image = Image.new("RGB", size)
    width, height = size
    image.putdata([tuple(c * (x + y) // (width + height) for c in colour) for y in range(height) for x in range(width)])
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def everything() -> dict[str, Any]:
    """Three outputs; a picture that can be scaled, delayed, refused and made to fail."""
    delay = node("CPackInputAny", "seconds", input=0)
    delay["_meta"]["options"] = {"min": 0, "max": 600, "round": 0.01}
    return {
        "1": node("CPackInputImage", "photo", image="example.png"),
        "2": node("CPackInputInt", "size", value=64, min=16, max=512),
        "3": choice("method", "nearest-exact", "nearest-exact", "bilinear", "area", "bicubic", "lanczos"),
        "4": node(
            "ImageScale",
            "Scale the picture",
            image=["1", 0],
            upscale_method=["3", 0],
            width=["2", 0],
            height=["2", 0],
            crop="disabled",
        ),
        "5": delay,
        "6": node("StandinSleep", "Wait", value=["4", 0], seconds=["5", 0]),
        "7": node("CPackInputAny", "fail", input=False),
        "8": node("StandinFail", "Fail on request", value=["6", 0], fail=["7", 0], message="no luck in /app/x/y.bin"),
        "9": node("CPackOutputImage", "picture", images=["8", 0], filename_prefix="cpack_output_"),
        "10": node("CPackInputString", "caption", value="hello"),
        "11": node("CPackOutputTextFile", "note", text=["10", 0], filename_prefix="p", file_extension=".txt"),
        "12": node("CPackInputFile", "attachment", path="input/notes.txt"),
        "13": node("CPackOutputFile", "copied", filename=["12", 0], filename_prefix="p"),
    }


EVERYTHING_INPUTS = {"example.png": picture(), "notes.txt": b"some notes\n"}


def upscale(loader: str = MODEL, output: str = "CPackOutputImage") -> dict[str, Any]:
    """A picture of the caller's, which is required, scaled by a model."""
    return {
        "1": node("CPackInputImage", "photo", image=""),
        "2": node("UpscaleModelLoader", "Load Upscale Model", model_name=loader),
        "3": node("ImageUpscaleWithModel", "Upscale", upscale_model=["2", 0], image=["1", 0]),
        "4": node(output, "picture", images=["3", 0], filename_prefix="cpack_output_"),
    }
