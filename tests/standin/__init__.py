"""The stand-in engine: a small ComfyUI for tests, and how to make git repositories and models of and for it."""
