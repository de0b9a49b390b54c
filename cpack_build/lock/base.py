"""The base image: its manifest's digest, and the few of its files that decide what goes on top.

Layers are read once, bottom to top, as overlays (image-spec v1.1, layer.md): a whiteout removes what lies below it.
Nothing is unpacked; kept are apt's sources and keys, dpkg's status, where a Python lies, and the summary from which a
build for a registry can do without the layers.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cpack_build.errors import NetworkError
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.schema import BaseImage, BaseSummary
from cpack_build.oci.filesystem import file_tree
from cpack_build.oci.pull import pull
from cpack_build.oci.reference import Reference, parse_image_name
from cpack_build.oci.sources import open_source
from cpack_build.oci.uncompressed import uncompressed
from cpack_build.progress import SILENT, Progress

__all__ = ["ACCOUNT_FILES", "Base", "open_base", "recalled_base"]

ACCOUNT_FILES = ("etc/passwd", "etc/group")
_MEMO = "base-files-2"
_WANTED = re.compile(r"etc/apt/(?!apt\.conf).+|usr/share/keyrings/.+|var/lib/dpkg/status")
_PYTHON = re.compile(r"(.+/)?bin/python3\.[0-9]{1,2}")


@dataclass(frozen=True)
class Base:
    """A base image: its *record* in the lock, the *paths* (no first ``/``) at which a Python lies, and the content of
    the *files* that apt needs."""

    record: BaseImage
    paths: frozenset[str]
    files: Mapping[str, bytes]


def open_base(
    reference: str,
    *,
    platform: Literal["linux/amd64", "linux/arm64"],
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> Base:
    """Resolve *reference* (``oci:DIR``, ``oci-archive:FILE`` or a registry's) to its manifest for *platform*.

    Raises :class:`Unresolvable`, :class:`NetworkError`, :class:`BadImage`, :class:`HashMismatch`, :class:`UsageError`.
    """
    name = parse_image_name(reference)
    if sources.mirrors.is_offline and isinstance(name, Reference):
        place = sources.mirrors.apply(name.name)
        if place == name.name or not place.startswith(("/", "./", "../", "oci:", "oci-archive:", "docker-archive:")):
            raise NetworkError(
                f"The base image {reference} is in a registry, and --offline forbids to ask it.",
                hint="Name a local copy: --base oci:DIR, or --mirror NAME=oci:DIR.",
            )
    source = open_source(name, mirrors=sources.mirrors, store=store, access=sources.registries)
    descriptor, _ = source.manifest(platform)
    source.config(platform)  # the platform is what it says
    shown = "layout"
    if isinstance(name, Reference):
        shown = name.name if name.tag is None and name.digest is not None else name.tagged
    record = BaseImage(reference=shown, digest=descriptor.digest)
    if (known := recalled_base(record, store=store)) is not None:
        return known
    image = pull(source, platform, progress=progress).image
    with progress.task(f"Reading {reference}"):
        tree = file_tree(image, keeping=ACCOUNT_FILES)
        found = tree.read([*filter(_WANTED.fullmatch, tree.nodes), *ACCOUNT_FILES])
        diff_ids = json.loads(image.config.data)["rootfs"]["diff_ids"]
        plain = [uncompressed(*each, memo=store) for each in zip(image.layers, diff_ids, strict=True)]
    passwd, group = (found.get(name, b"") for name in ACCOUNT_FILES)
    summary = _summary(passwd, group, [layer.descriptor.size for layer in plain])
    files = {path: content for path, content in found.items() if _WANTED.fullmatch(path)}
    paths = frozenset(filter(_PYTHON.fullmatch, tree.nodes))
    document = {
        "paths": sorted(paths),
        "files": {path: base64.b64encode(content).decode() for path, content in sorted(files.items())},
        "summary": summary.model_dump(mode="json") if summary is not None else None,
    }
    store.remember(_MEMO, descriptor.digest, base64.b64encode(zlib.compress(json.dumps(document).encode())).decode())
    return Base(record.model_copy(update={"summary": summary}), paths, files)


def _summary(passwd: bytes, group: bytes, sizes: Sequence[int]) -> BaseSummary | None:
    """``None`` where the accounts are no text, or it is more than a lock takes: such a base is read at each build."""
    try:
        return BaseSummary(passwd=passwd.decode(), group=group.decode(), layers=tuple(sizes))
    except ValueError:  # Pydantic's is one, too.
        return None


def recalled_base(record: BaseImage, *, store: Store) -> Base | None:
    """The base of that digest, if it was opened on this machine before."""
    if (known := store.recall(_MEMO, record.digest)) is None:
        return None
    document = json.loads(zlib.decompress(base64.b64decode(known)))
    files = {path: base64.b64decode(content) for path, content in document["files"].items()}
    summary = document["summary"]
    if summary is not None:
        summary = BaseSummary.model_validate(summary, strict=False)
    return Base(record.model_copy(update={"summary": summary}), frozenset(document["paths"]), files)
