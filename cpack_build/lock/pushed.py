"""A registry as a place for models: one that was pushed once is fetched by the digest of its layer, which the lock has.

The universal layer (``oci.modellayer``) has the model's bytes from offset 4096 on, uncompressed, so any range of the
model is a range of the blob. What comes is proved by the model's own hash, as from everywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpack_build.errors import NetworkError
from cpack_build.fetch.folders import Wanted
from cpack_build.fetch.remote import Piece
from cpack_build.oci.connection import Connection
from cpack_build.oci.modellayer import DATA_OFFSET, layer_size
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.transport import Access
from cpack_build.progress import check, on_stop

if TYPE_CHECKING:
    import requests

__all__ = ["PushedModels"]

_CHUNK = 1 << 20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class PushedModels:
    """The repository of a registry that images were pushed to (``registry.example/team/models``)."""

    def __init__(self, repository: str, *, access: Access | None = None) -> None:
        self._connection = Connection(parse_reference(repository), access=access)

    def offers(self, wanted: Wanted) -> Iterator[_PushedModel]:
        """The layer of *wanted*, if it is known which it is."""
        if wanted.layer is not None and wanted.size is not None:
            yield _PushedModel(self._connection, wanted.layer, wanted.size)


@dataclass(frozen=True)
class _PushedModel:
    """A model of *size* bytes within the blob *digest*."""

    connection: Connection
    digest: str
    size: int

    @property
    def shown(self) -> str:
        return f"{self.connection.reference.name}@{self.digest}"

    @contextmanager
    def read(self, start: int, stop: int | None) -> Iterator[Piece]:
        begin, end = DATA_OFFSET + start, DATA_OFFSET + (self.size if stop is None else stop)
        response = self.connection.ask(
            "GET",
            f"{self.connection.base}blobs/{self.digest}",
            what=self.digest,
            ok=(200, 206),
            headers={"Accept": "*/*", "Range": f"bytes={begin}-{end - 1}"},
        )
        with response, on_stop(response.raw.shutdown):
            whole = layer_size(self.size)
            at, length = 0, response.headers.get("Content-Length", "")
            told = int(length) if length.isdecimal() else whole
            if response.status_code == 206:
                match = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
                if match is None or int(match[1]) != begin:
                    raise NetworkError(f"{self.shown} answers with another range than it was asked for.")
                at, told = begin, int(match[2]) if match[2] != "*" else whole
            if told != whole:
                raise NetworkError(f"{self.shown} has {told} bytes, and a layer of that model has {whole}.")
            yield Piece(max(0, at - DATA_OFFSET), self.size, self._data(response, at), response.status_code == 206)

    def _data(self, response: requests.Response, at: int) -> Iterator[bytes]:
        """The model's own bytes in a body that begins at offset *at* of the blob."""
        from urllib3.exceptions import HTTPError

        try:
            while chunk := response.raw.read1(_CHUNK):
                data = chunk[max(0, DATA_OFFSET - at) : max(0, DATA_OFFSET + self.size - at)]
                at += len(chunk)
                if data:
                    yield data
            check()
        except (HTTPError, OSError) as error:
            check()
            raise ConnectionError(type(error).__name__) from error
