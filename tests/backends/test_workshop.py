"""What a package's build leaves on the builder is a stranger's, and an old builder keeps no build from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cpack_build.backends import workshop
from cpack_build.backends.builder import Builder
from cpack_build.backends.features import features_of
from cpack_build.backends.protocol import Farm
from cpack_build.backends.workshop import BuildKitWorkshop
from cpack_build.cpack.settings import Settings
from cpack_build.errors import ToolMissing, UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.image.gather import Places
from cpack_build.lock.building import Project
from cpack_build.lock.schema import PinnedWheels, SourceArchive
from cpack_build.lock.tags import Target
from cpack_build.progress import SILENT

WHEEL = "evil-1.0-py3-none-any.whl"


def _build(folder: Path, monkeypatch: pytest.MonkeyPatch, left: dict[str, str], version: tuple[int, int]) -> Path:
    """The folder for wheels after a builder of that *version* left these files behind, those with a path as links."""
    (folder / "source").mkdir()
    (folder / "wheels").mkdir()
    (folder / "store").mkdir()

    def leave(self: BuildKitWorkshop, *arguments: Any) -> None:
        made: Path = arguments[4]
        made.mkdir()
        for name, text in left.items():
            if text.startswith("/"):
                (made / name).symlink_to(text)
            else:
                (made / name).write_text(text)

    monkeypatch.setattr(workshop, "find_builder", lambda name: Builder((), features_of(version), "docker", False, {}))
    monkeypatch.setattr(BuildKitWorkshop, "_bench", lambda *arguments: None)
    monkeypatch.setattr(BuildKitWorkshop, "_round", leave)
    source = SourceArchive(filename="evil-1.0.tar.gz", url=None, sha256="a" * 64, size=1)
    shop = BuildKitWorkshop(Farm(), Settings(), Places("scratch", [], []), Store(folder / "store"), Sources())
    shop.built(
        Project("evil", source), folder / "source", folder / "wheels", target=Target("3.11"),
        resolve=lambda wanted, target: PinnedWheels(pylock="", pylock_sha256="a" * 64), progress=SILENT,
    )  # fmt: skip
    return folder / "wheels"


def test_files_that_a_build_leaves_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = _build(tmp_path, monkeypatch, {"python.txt": "3.11.2", WHEEL: "wheel"}, (0, 13))
    assert (wheels / WHEEL).read_text() == "wheel"


@pytest.mark.parametrize("name", [WHEEL, "python.txt", "more.txt"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_that_a_build_leaves_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, exists: bool
) -> None:
    if exists:
        (tmp_path / "secret").write_text("3.11.2")
    left = {"python.txt": "3.11.2", WHEEL: "wheel", name: f"{tmp_path}/secret"}
    with pytest.raises(UnsafeInput, match=rf"evil .*{name}"):
        _build(tmp_path, monkeypatch, left, (0, 13))
    assert not list((tmp_path / "wheels").iterdir())


def test_nothing_is_built_where_it_would_have_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolMissing, match=r"BuildKit 0\.8.*network"):
        _build(tmp_path, monkeypatch, {"python.txt": "3.11.2", WHEEL: "wheel"}, (0, 8))
