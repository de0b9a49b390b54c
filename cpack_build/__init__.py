"""cpack-build: pack, lock, build, serve and restore ComfyUI workflows.

A ComfyUI workspace becomes a portable ``.cpack.zip``, a lock that pins every byte, a bit-reproducible OCI image whose
entrypoint answers ``POST /generate``, and a workspace again. ``docs/`` and each folder's own docstring tell how.
"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """``Client`` and ``AsyncClient``, imported when they are first asked for: the package itself imports nothing."""
    if name == "Client":
        from cpack_build.serve.caller import Client

        return Client
    if name == "AsyncClient":
        from cpack_build.serve.async_caller import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
