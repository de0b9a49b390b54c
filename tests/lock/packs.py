"""What the stage looks at of a pack, without a zip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from cpack_build.cpack.schema import Snapshot


@dataclass(frozen=True)
class FakePack:
    """A snapshot, and *files* by name."""

    content_sha256: str
    snapshot: Snapshot
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in self.files.items()}

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], Iterator[bytes]]]:
        yield lambda name: iter([self.files[name]])
