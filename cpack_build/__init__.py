"""cpack-build: pack, lock, build, serve and restore ComfyUI workflows.

A ComfyUI workspace becomes a portable ``.cpack.zip``, a lock that pins every byte, a bit-reproducible OCI image whose
entrypoint answers ``POST /generate``, and a workspace again. ``docs/`` and each folder's own docstring tell how.
"""

__version__ = "0.1.0"
