"""Every backend keeps the protocol, and the command line asks it before any work starts."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image
import pytest

from cpack_build.backends import choice
from cpack_build.backends.choice import open_backend
from cpack_build.backends.protocol import Backend, Farm, Request
from cpack_build.errors import CpackError, ToolMissing, Unresolvable, UsageError
from cpack_build.oci.types import Image
from tests.cli.calling import Caller
from tests.example import Example, make_example


@dataclass
class Refusing:
    """A backend that can do nothing, and writes down what it was asked."""

    here: bool = True
    asked: list[str] = field(default_factory=list)

    def require(self) -> None:
        self.asked.append("require")
        if not self.here:
            raise ToolMissing("The farm does not answer.", hint="Start it.")

    def refusals(self, request: Request) -> Sequence[CpackError]:
        self.asked.append("refusals")
        return [Unresolvable(f"{lock.platform} has no worker.") for lock in request.locks]

    @contextmanager
    def built(self, request: Request) -> Iterator[Image]:
        raise AssertionError("built in spite of its refusals")
        yield

    def require_writing(self, folder: Path) -> None:
        self.asked.append("require_writing")

    def written(self, request: Request, folder: Path) -> str:
        raise AssertionError("written in spite of its refusals")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caller:
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "store"))
    return Caller(capsys)


@pytest.fixture
def example(tmp_path: Path) -> Example:
    picture = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (200, 100, 50)).save(picture, "PNG")
    return make_example(tmp_path, sample=picture.getvalue())


def _as_embedded(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_OPEN", {"embedded": lambda farm: backend})


def test_what_a_backend_cannot_do_is_said_before_anything_is_fetched(
    call: Caller, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("lock", example.pack).code == 0
    refusing = Refusing()
    _as_embedded(refusing, monkeypatch)
    done = call("image", example.pack, "--output", f"oci:{example.pack.parent}/out")
    assert (done.code, refusing.asked) == (4, ["require", "refusals"])
    assert "linux/" in done.err
    assert "has no worker" in done.err
    assert not (example.pack.parent / "out").exists()


def test_a_dry_run_says_it_as_well(call: Caller, example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("lock", example.pack).code == 0
    refusing = Refusing()
    _as_embedded(refusing, monkeypatch)
    done = call("image", example.pack, "--dry-run", "--output", f"oci:{example.pack.parent}/out")
    assert (done.code, refusing.asked) == (4, ["refusals"])
    assert "has no worker" in done.err


def test_a_backend_that_is_not_there_is_known_before_anything_is_locked(
    call: Caller, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_embedded(Refusing(here=False), monkeypatch)
    done = call("image", example.pack)
    assert done.code == 7
    assert "The farm does not answer. Start it." in " ".join(done.err.split())
    assert not example.pack.with_name("example.cpack.lock").exists()


def test_the_embedded_backend_refuses_what_it_has_not() -> None:
    with pytest.raises(UsageError, match="no builders"):
        open_backend("embedded", Farm(builder="farm"))


def test_the_embedded_backend_has_nothing_to_print(call: Caller, example: Example, tmp_path: Path) -> None:
    done = call("image", example.pack, "--print", tmp_path / "printed")
    assert done.code == 2
    assert "--backend buildkit" in done.err
    assert not (tmp_path / "printed").exists()


@pytest.mark.parametrize("where", [("--push", "registry.example/x:1"), ("--output", "oci:x.oci")])
def test_what_is_only_printed_goes_nowhere(
    call: Caller, example: Example, tmp_path: Path, where: tuple[str, str]
) -> None:
    done = call("image", example.pack, "--backend", "buildkit", "--print", tmp_path / "printed", *where)
    assert done.code == 2
    assert "--print builds nothing" in done.err
    assert not (tmp_path / "printed").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--backend", "embedded"], 2, "there is nothing else to print"),
        (["--backend", "nix", "--builder", "ssh://farm x86_64-linux"], 2, "names no builder and no cache"),
        (["--backend", "nix", "--cache-from", "http://cache.example"], 2, "names no builder and no cache"),
        (["--backend", "nix", "--cache-to", "file:///c"], 2, "Leave --builder, --cache-from and --cache-to out"),
        (["--backend", "nix", "full"], 8, "mine.txt"),
        (["--backend", "buildkit", "full"], 8, "mine.txt"),
        (["--backend", "buildkit", "--builder", "farm"], 7, "docker"),
    ],
)
def test_what_cannot_be_printed_is_said_before_anything_is_locked(
    options: list[str], code: int, words: str, call: Caller, example: Example, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CPACK_DOCKER", "/nonexistent/docker")
    place = tmp_path / "printed"
    if options[-1] == "full":
        place.mkdir()
        (place / "mine.txt").write_text("mine")
    done = call("image", example.pack, *[word for word in options if word != "full"], "--print", place)
    assert done.code == code, done.err
    assert words in " ".join(done.err.split())
    assert not example.pack.with_name("example.cpack.lock").exists()
    assert not (tmp_path / "store" / "blobs").exists(), "nothing was fetched"
