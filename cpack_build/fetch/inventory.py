"""The models of a pack, lock or workspace as a person wants to see them: what, how large, where, on what terms.

Nothing is downloaded, and no file is read but for the beginning of one that is here. Whether a model is gated, and its
licence, come from Hugging Face's API where it may be asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from cpack_build.errors import CpackError
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.folders import LocalFile, Wanted
from cpack_build.fetch.gguf import read_gguf
from cpack_build.fetch.huggingface import parse_address, terms_of
from cpack_build.fetch.pickles import PICKLED, scan_file
from cpack_build.fetch.places import Place
from cpack_build.fetch.safetensors import read_header
from cpack_build.fetch.store import Store

__all__ = ["Listed", "Row", "describe", "incomplete_sets", "inventory", "unit_of"]

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.[A-Za-z]+)")
_INDEX = re.compile(r"(?P<stem>.+)(?P<end>\.[A-Za-z]+)\.index\.json")


@dataclass(frozen=True)
class Listed:
    """A model as a document or a folder lists it; *file* is where it lies, if it was found there."""

    path: str
    sha256: str | None
    size: int | None
    urls: tuple[str, ...] = ()
    file: Path | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    *where* is a path for what is here, a host for what can be had, and else empty; *hosts* are all that are known;
    *verdict* is that on a pickle, what a GGUF file is, or what is wrong with a file; *gated* and *licence* are ``None``
    where nobody said.
    """

    path: str
    size: int | None
    sha256: str | None
    state: Literal["here", "elsewhere", "missing"]
    where: str
    hosts: tuple[str, ...]
    unit: str
    verdict: str | None
    gated: bool | None
    licence: str | None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def folder(self) -> str:
        """Below ``models``: ``checkpoints``, ``loras/sdxl``."""
        return str(PurePosixPath(self.path.removeprefix("models/")).parent)


def inventory(
    models: Iterable[Listed], *, store: Store, places: Sequence[Place] = (), asker: Asker | None = None
) -> list[Row]:
    """The rows of *models*, by path. *places* are those of this machine; *asker* asks for gates and licences."""
    terms: dict[str, tuple[bool | None, str | None]] = {}
    rows = []
    for model in sorted(models, key=lambda model: model.path):
        file = model.file or _here(model, store, places)
        hosts = tuple(dict.fromkeys(host for host in map(_host, model.urls) if host))
        gated, licence = None, None
        for repo in dict.fromkeys(address[0] for url in model.urls if (address := parse_address(url))):
            if asker is not None and repo not in terms:
                terms[repo] = terms_of(repo, asker=asker)
            gated, licence = terms.get(repo, (None, None))
        rows.append(
            Row(
                model.path,
                file.stat().st_size if model.size is None and file is not None else model.size,
                model.sha256,
                "here" if file is not None else "elsewhere" if hosts else "missing",
                str(file) if file is not None else hosts[0] if hosts else "",
                hosts,
                unit_of(model.path),
                _verdict(file, model.path),
                gated,
                licence,
            )
        )
    return rows


def unit_of(path: str) -> str:
    """What a file is a part of: the set of its shards, the folder of a diffusers model, else itself."""
    parts = path.split("/")
    if "diffusers" in parts[:-2]:
        return "/".join(parts[: parts.index("diffusers") + 2])
    if match := _SHARD.fullmatch(path) or _INDEX.fullmatch(path):
        return match["stem"] + match["end"]
    return path


def incomplete_sets(paths: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """Sets of shards of which some are not among *paths*: what lacks, by the set's name."""
    found: dict[tuple[str, str, int], set[int]] = {}
    for path in paths:
        if match := _SHARD.fullmatch(path):
            found.setdefault((match["stem"], match["end"], int(match["count"])), set()).add(int(match["number"]))
    lacking = {}
    for (stem, end, count), numbers in found.items():
        missing = sorted(set(range(1, min(count, 10_000) + 1)) - numbers)
        if missing:
            lacking[stem + end] = tuple(f"{stem}-{number:05}-of-{count:05}{end}" for number in missing)
    return lacking


def _here(model: Listed, store: Store, places: Sequence[Place]) -> Path | None:
    if model.sha256 is None:
        return None
    if (known := store.find(model.sha256)) is not None:
        return known.path
    for place in places:
        for offer in place.offers(Wanted(model.path, model.sha256, model.size)):
            if isinstance(offer, LocalFile) and model.size in (None, offer.path.stat().st_size):
                return offer.path
    return None


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _verdict(file: Path | None, path: str) -> str | None:
    """What the file's format means for who loads it, as far as its beginning tells."""
    suffix = PurePosixPath(path).suffix.lower()
    if file is None:
        return "pickle" if suffix in PICKLED else None
    try:
        found = scan_file(file, name=path)
        if found is not None:
            return f"pickle, {found.level}" + (f": {', '.join(found.dangerous)}" if found.dangerous else "")
        if suffix in (".safetensors", ".sft"):
            read_header(file, name=path)
        elif _is_gguf(file, path):
            header = read_gguf(file, name=path)
            return f"gguf, {header.architecture or 'of unknown kind'}, {header.quantisation or '/'.join(header.dtypes)}"
    except CpackError as error:
        return f"broken: {error.message}"
    except OSError as error:
        return f"unreadable: {(error.strerror or str(error)).lower()}"
    return None


def _is_gguf(file: Path, name: str) -> bool:
    """By its name, or by its beginning, whatever it is called."""
    if PurePosixPath(name).suffix.lower() == ".gguf":
        return True
    with file.open("rb") as content:
        return content.read(4) == b"GGUF"


def describe(file: Path, *, name: str) -> dict[str, Any]:
    """What a model file holds: format, kind, tensors, types, metadata; a pickle's imports. Raises :class:`BadInput`."""
    from cpack_build.fetch.architecture import guess

    size = file.stat().st_size
    found = scan_file(file, name=name)
    if found is not None:
        return {
            "format": "pickle", "size": size, "kind": guess(found.names), "verdict": found.level,
            "dangerous": list(found.dangerous), "unknown": list(found.unknown),
        }  # fmt: skip
    if _is_gguf(file, name):
        gguf = read_gguf(file, name=name)
        return {
            "format": "gguf", "size": size, "kind": guess(gguf.tensors) or gguf.architecture,
            "architecture": gguf.architecture, "quantisation": gguf.quantisation, "tensors": len(gguf.tensors),
            "parameters": gguf.parameters, "dtypes": list(gguf.dtypes),
            "metadata": {key: value for key, value in gguf.keys.items() if isinstance(value, str)},
        }  # fmt: skip
    header = read_header(file, name=name)
    return {
        "format": "safetensors", "size": size, "kind": guess(header.tensors), "tensors": len(header.tensors),
        "parameters": header.parameters, "dtypes": list(header.dtypes), "metadata": dict(header.metadata),
    }  # fmt: skip
