"""The version that the stand-in says it has: the ComfyUI whose protocol it follows."""

__version__ = "0.3.64+standin"
