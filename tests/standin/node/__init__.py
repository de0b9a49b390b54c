"""A custom node of its own repository: a picture tinted with NumPy, on the stand-in and on real ComfyUI alike."""

from __future__ import annotations


class StandinTint:
    """Multiplies the channels of *image* by *red*, *green* and *blue*."""

    CATEGORY = "standin"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "tint"

    @classmethod
    def INPUT_TYPES(cls):
        part = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {"required": {"image": ("IMAGE",), "red": part, "green": part, "blue": part}}

    def tint(self, image, red, green, blue):
        result = image * 1
        for channel, factor in enumerate((red, green, blue)):
            result[..., channel] *= factor
        return (result,)


NODE_CLASS_MAPPINGS = {"StandinTint": StandinTint}
NODE_DISPLAY_NAME_MAPPINGS = {"StandinTint": "Tint"}
