"""A custom node that makes sound on real ComfyUI (whose own needs torchaudio) and on the stand-in (of arrays)."""

from __future__ import annotations

from typing import Any

import numpy as np


class TestSound:
    CATEGORY = "test"
    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        whole = ("INT", {"default": 1, "min": 1, "max": 1000000})
        return {"required": {"samples": whole, "sample_rate": whole, "channels": whole}}

    def make(self, samples: int, sample_rate: int, channels: int) -> tuple[dict[str, Any]]:
        waveform: Any = np.sin(np.linspace(0, 300, samples, dtype=np.float32))[None, None].repeat(channels, axis=1)
        try:
            import torch
        except ImportError:
            pass
        else:
            waveform = torch.from_numpy(waveform)
        return ({"waveform": waveform, "sample_rate": sample_rate},)


NODE_CLASS_MAPPINGS = {"TestSound": TestSound}
