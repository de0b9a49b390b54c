"""Where a file with a known hash may be had: one small class for each kind of place, asked in order.

A place *offers* files: one on this machine, one somewhere else, or the reason why an address cannot be asked. An offer
is a promise of nobody: only the hash tells whether it is the file. Hugging Face's and Civitai's classes are with what
else is known of them (:mod:`.huggingface`, :mod:`.civitai`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cpack_build.errors import CpackError, NetworkError, Unresolvable
from cpack_build.fetch.adoption import by_hash
from cpack_build.fetch.folders import Folders, LocalFile, Wanted
from cpack_build.fetch.http import HttpTransport, local_file
from cpack_build.fetch.mirrors import Mirrors, local_path
from cpack_build.fetch.remote import BUCKETS, BucketFile, HttpFile, Remote
from cpack_build.fetch.urls import check_http, redact

if TYPE_CHECKING:
    from cpack_build.fetch.http import Sources

__all__ = [
    "Addresses",
    "MirroredAddresses",
    "Offer",
    "OtherStores",
    "Place",
    "places_of",
]


Offer = LocalFile | Remote | CpackError


class Place(Protocol):
    """Somewhere that may have files.

    >>> [offer.shown for offer in place.offers(wanted)]
    ['https://hub.example/x.safetensors']
    """

    def offers(self, wanted: Wanted) -> Iterable[Offer]:
        """Where *wanted* may lie, the likeliest first. Reads none of it."""


@dataclass(frozen=True)
class OtherStores:
    """Other programs' stores, that call a file by its hash."""

    folders: Sequence[Path]

    def offers(self, wanted: Wanted) -> Iterator[LocalFile]:
        return map(LocalFile, by_hash(wanted.sha256, self.folders))


@dataclass(frozen=True)
class MirroredAddresses:
    """What the user's mirrors make of the addresses: a file on this machine, another URL, or one in a bucket."""

    mirrors: Mirrors
    http: HttpTransport

    def offers(self, wanted: Wanted) -> Iterator[Offer]:
        for url in wanted.urls:
            target = self.mirrors.apply(url)
            if target == url:
                continue
            if target.partition("://")[0] in BUCKETS:
                yield BucketFile(target)
            elif local_path(target) is None:
                yield HttpFile(check_http(target, what=wanted.name), self.http)
            elif (path := local_file(target)) is not None:
                yield LocalFile(path, is_exact=True)
            else:
                yield Unresolvable(
                    f"{redact(url)} is mapped to {redact(target.partition('?')[0])}, where no file is.",
                    hint="Correct --mirror, or put the file there.",
                )


@dataclass(frozen=True)
class Addresses:
    """Plain http(s) addresses, as a pack or lock names them; those that *others* know better are left to them."""

    mirrors: Mirrors
    http: HttpTransport
    others: Sequence[Knowing] = ()

    def offers(self, wanted: Wanted) -> Iterator[HttpFile]:
        for url in wanted.urls:
            if not self.mirrors.is_mirrored(url) and not any(other.knows(url) for other in self.others):
                yield HttpFile(check_http(url, what=wanted.name), self.http)


class Knowing(Protocol):
    """A place that knows its own addresses."""

    def knows(self, url: str) -> bool:
        """Whether *url* is one of its own."""


@dataclass(frozen=True)
class _Offline:
    """The addresses that are not asked, for people."""

    mirrors: Mirrors

    def offers(self, wanted: Wanted) -> Iterator[CpackError]:
        for url in wanted.urls:
            if not self.mirrors.is_mirrored(url):
                yield NetworkError(
                    f"{redact(url)} is not in the store, and --offline forbids to ask for it.",
                    hint="Run it once without --offline, or map it to a local copy with --mirror.",
                )


def places_of(sources: Sources, *, folders: Sequence[str] = (), stores: Sequence[Path] | None = None) -> list[Place]:
    """Every place, in the order in which it is asked: named *folders*, other programs' *stores* (by default those of
    this user), mirrors, registries and whatever else *sources* has, then the addresses by their sites."""
    from cpack_build.fetch.adoption import other_stores
    from cpack_build.fetch.asking import Asker
    from cpack_build.fetch.civitai import Civitai
    from cpack_build.fetch.huggingface import HuggingFace

    mirrors, http = sources.mirrors, sources.http
    local: list[Place] = [Folders(folders), OtherStores(other_stores() if stores is None else stores)]
    if mirrors.is_offline:
        return [*local, MirroredAddresses(mirrors, http), *sources.further, _Offline(mirrors)]
    asker = Asker(sources)
    hugging_face = HuggingFace(mirrors, http, asker)
    civitai = Civitai(mirrors, http, asker)
    return [
        *local,
        MirroredAddresses(mirrors, http),
        *sources.further,
        Addresses(mirrors, http, (hugging_face, civitai)),
        hugging_face,
        civitai,
    ]
