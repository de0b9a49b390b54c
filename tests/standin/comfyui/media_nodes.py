"""ComfyUI's node that makes a film, as far as output nodes are concerned."""

from __future__ import annotations

import json
from typing import Any

import numpy as np


class Video:
    """What ComfyUI's VideoInput offers to a node that saves it."""

    def __init__(self, images: np.ndarray, fps: float) -> None:
        self._images = images
        self._fps = fps

    def get_dimensions(self) -> tuple[int, int]:
        return self._images.shape[2], self._images.shape[1]

    def save_to(self, path: str, format: Any = "auto", codec: Any = "auto", metadata: dict | None = None) -> None:
        import av

        if format not in ("auto", "mp4") or codec not in ("auto", "h264"):
            raise ValueError("Only MP4 with H264 is supported for now")
        with av.open(path, mode="w", options={"movflags": "use_metadata_tags"}) as output:
            for key, value in (metadata or {}).items():
                output.metadata[key] = json.dumps(value)
            stream = output.add_stream("h264", rate=round(self._fps))
            stream.width, stream.height = self.get_dimensions()
            stream.pix_fmt = "yuv420p"
            for image in self._images:
                frame = av.VideoFrame.from_ndarray(np.clip(255 * image, 0, 255).astype(np.uint8), format="rgb24")
                output.mux(stream.encode(frame.reformat(format="yuv420p")))
            output.mux(stream.encode(None))


class CreateVideo:
    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE",), "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0})},
            "optional": {"audio": ("AUDIO",)},
        }

    def execute(self, images, fps, audio=None):
        return (Video(images, fps),)


NODE_CLASS_MAPPINGS = {"CreateVideo": CreateVideo}
