"""What a lock names is brought together, and a build that has failed does not go on downloading."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cpack_build.errors import Unresolvable
from cpack_build.fetch.http import Response, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.image.gather import Places, gather
from cpack_build.lock.schema import Deb, DebInterpreter, GitTree, Inputs, Lock, PythonEnvironment, ScratchBase
from cpack_build.lock.service import service_code
from cpack_build.lock.wheels import Wheel, pylock_text

HASH = "0" * 64


class Slow:
    """A server that would send for ten seconds; *asked* is set by the first request, *finished* if all was taken."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.finished = False

    @contextmanager
    def get(self, url: str, *, headers: Mapping[str, str]) -> Iterator[Response]:
        self.asked.set()
        yield Response(200, {}, self._chunks())

    def _chunks(self) -> Iterator[bytes]:
        for _ in range(1000):
            time.sleep(0.01)
            yield b"x" * 1000
        self.finished = True


@dataclass(frozen=True)
class FailsLater(Mirrors):
    """Leads to nothing, but not before a download is under way."""

    asked: threading.Event = field(default_factory=threading.Event)

    def apply(self, url: str) -> str:
        if self.is_mirrored(url):
            assert self.asked.wait(60)
        return super().apply(url)


def environment(*wheels: Wheel) -> PythonEnvironment:
    text = pylock_text(wheels, python_version="3.11")
    return PythonEnvironment(pylock=text, pylock_sha256=hashlib.sha256(text.encode()).hexdigest())


def lock() -> Lock:
    wheel = Wheel("a", "1", "a-1-py3-none-any.whl", "https://index.example/a-1-py3-none-any.whl", HASH, 1_000_000)
    deb = Deb(
        name="libx", version="1", architecture="all", source="x", url="https://deb.example/x", sha256=HASH, size=1
    )
    return Lock(
        builder="0",
        inputs=Inputs(pack=HASH, settings=HASH),
        source_date_epoch=1,
        platform="linux/amd64",
        base=ScratchBase(),
        system=(),
        interpreter=DebInterpreter(version="3.11", path="/usr/bin/python3.11", packages=(deb,)),
        service=environment(wheel),
        service_code=service_code(),
        python=environment(wheel),
        comfyui=GitTree(
            name="ComfyUI", url="https://code.example/x", commit="0" * 40, tree_sha256=HASH, committed_at=1
        ),
        nodes=(),
        models=(),
        environment={},
        comfyui_args=(),
    )


def test_what_cannot_be_had_stops_the_downloads_under_way(tmp_path: Path) -> None:
    slow = Slow()
    sources = Sources(FailsLater({"https://code.example/": f"{tmp_path}/no-such-folder/"}, asked=slow.asked), slow)
    store = Store(tmp_path / "store")
    with pytest.raises(Unresolvable, match=r"code\.example"):
        gather(lock(), documents={}, places=Places(), store=store, sources=sources)
    assert slow.asked.is_set()
    assert not slow.finished
    assert [path for path in (store.root / "tmp").iterdir() if path.is_file()] == []
