"""Nodes that fail, wait or end the process when asked to; in ``custom_nodes`` they do so in real ComfyUI, too."""

from __future__ import annotations

import os
import time

import comfy.model_management
import comfy.utils


class AnyType(str):
    """Equal to every type."""

    def __ne__(self, other):
        return False


ANY = AnyType("*")


class StandinFail:
    """Passes *value* on, or raises an error with *message* if *fail* is set."""

    CATEGORY = "standin"
    RETURN_TYPES = (ANY,)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        message = ("STRING", {"default": "asked to fail"})
        return {"required": {"value": (ANY,), "message": message, "fail": ("BOOLEAN", {"default": True})}}

    def run(self, value, message, fail):
        if fail:
            raise RuntimeError(message)
        return (value,)


class StandinSleep:
    """Passes *value* on after *seconds*, telling its progress; it can be interrupted."""

    CATEGORY = "standin"
    RETURN_TYPES = (ANY,)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "seconds": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 3600.0})}}

    def run(self, value, seconds):
        steps = max(1, round(seconds * 20))
        bar = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            time.sleep(seconds / steps)
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update(1)
        return (value,)


class StandinCrash:
    """Passes *value* on, or ends the process with *code* if *crash* is set."""

    CATEGORY = "standin"
    RETURN_TYPES = (ANY,)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        code = ("INT", {"default": 70, "min": 0, "max": 255})
        return {"required": {"value": (ANY,), "code": code, "crash": ("BOOLEAN", {"default": True})}}

    def run(self, value, code, crash):
        if crash:
            os._exit(code)
        return (value,)


class OutOfMemoryError(RuntimeError):
    """Called like PyTorch's."""


class StandinOutOfMemory:
    """Passes *value* on, but the first *times* that it runs in a process there is not enough memory."""

    CATEGORY = "standin"
    RETURN_TYPES = (ANY,)
    FUNCTION = "run"
    runs = 0

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "times": ("INT", {"default": 1, "min": 0, "max": 1000})}}

    @classmethod
    def IS_CHANGED(cls, **values):
        return float("nan")

    def run(self, value, times):
        StandinOutOfMemory.runs += 1
        if StandinOutOfMemory.runs <= times:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return (value,)


NODE_CLASS_MAPPINGS = {
    "StandinFail": StandinFail,
    "StandinSleep": StandinSleep,
    "StandinCrash": StandinCrash,
    "StandinOutOfMemory": StandinOutOfMemory,
}
