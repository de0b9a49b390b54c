"""The parts of ComfyUI's own package that nodes and tools import."""
