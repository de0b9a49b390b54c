"""The two interface nodes that the example needs, for a ComfyUI without comfy-pack: they are ComfyUI's own, renamed."""

from nodes import LoadImage, SaveImage


class InputImage(LoadImage):
    CATEGORY = "ComfyPack/input"


class OutputImage(SaveImage):
    CATEGORY = "ComfyPack/output"


NODE_CLASS_MAPPINGS = {"CPackInputImage": InputImage, "CPackOutputImage": OutputImage}
