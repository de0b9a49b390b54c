"""The kinds of jobs, by the name that a page asks for them with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .building import image, plan
from .deploying import deploy
from .packing import pack
from .serving import serve
from .unpacking import inspect, unpack

if TYPE_CHECKING:
    from .asked import Asked
    from .jobs import Job
    from .plugin import Plugin

__all__ = ["KINDS"]

KINDS: Mapping[str, Callable[[Plugin, Asked, Mapping[str, Any]], Job]] = {
    "pack": pack,
    "serve": serve,
    "plan": plan,
    "image": image,
    "deploy": deploy,
    "inspect": inspect,
    "unpack": unpack,
}
