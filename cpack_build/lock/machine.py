"""What this machine is, in the words of images and of workspaces. It imports nothing that resolves."""

from __future__ import annotations

import platform as host
from typing import cast

from cpack_build.cpack.settings import AnyPlatform, Platform
from cpack_build.errors import UsageError

__all__ = ["host_platform", "image_platform", "this_platform"]

_MACHINES: dict[str, Platform] = {
    "x86_64": "linux/amd64", "amd64": "linux/amd64", "aarch64": "linux/arm64", "arm64": "linux/arm64",
}  # fmt: skip


def host_platform() -> AnyPlatform:
    """Where a workspace on this machine is. Raises :class:`UsageError` where no ComfyUI can be."""
    machine = this_platform().partition("/")[2]
    system = host.system().lower()
    if system not in ("linux", "darwin", "windows") or (system, machine) == ("windows", "arm64"):
        raise UsageError(f"Workspaces on {host.system()} {machine} are not known.", hint="Use Linux, macOS or Windows.")
    return cast("AnyPlatform", f"{system}/{machine}")


def this_platform() -> Platform:
    """The platform whose images run on this machine. Raises :class:`UsageError` where there is none."""
    found = image_platform()
    if found is None:
        machine = host.machine().lower()
        raise UsageError(f"Images for {machine} cannot be made.", hint="Name --platform linux/amd64 or linux/arm64.")
    return found


def image_platform() -> Platform | None:
    """The same, or ``None`` where there is none."""
    return _MACHINES.get(host.machine().lower())
