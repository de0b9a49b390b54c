"""A machine without apt locks system packages by the apt of the base image, to the bytes of a machine that has one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cpack_build.backends import baseapt
from cpack_build.backends.baseapt import BaseApt
from cpack_build.backends.features import features_of
from cpack_build.backends.protocol import Request
from cpack_build.cpack.settings import Settings, SystemSettings
from cpack_build.errors import ToolMissing, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.debs import AptSources, open_archive
from cpack_build.lock.schema import BaseImage, HostInterpreter
from cpack_build.lock.system import lock_system
from cpack_build.oci.layout import write_layout
from cpack_build.oci.types import Image
from cpack_build.progress import SILENT
from tests.backends.conftest import Built
from tests.engines import Docker
from tests.oci.images import image_of, text_layer

BASE = BaseImage(reference="base.example/debian:12", digest=f"sha256:{'a' * 64}")


def _path_without_apt(folder: Path) -> str:
    """All programs of PATH but those of apt and dpkg."""
    folder.mkdir()
    for place in os.get_exec_path():
        for program in sorted(Path(place).glob("*")) if Path(place).is_dir() else ():
            link = folder / program.name
            if not program.name.startswith(("apt", "dpkg")) and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


@pytest.mark.network
@pytest.mark.xdist_group("builders")
def test_the_lock_is_that_of_a_machine_with_apt(
    built: Built, new_docker: Docker, debian: tuple[Path, Image], tmp_path: Path
) -> None:
    base = ("--base", f"oci:{debian[0]}")
    ours = built.call("lock", built.example.pack, *base, "-o", tmp_path / "ours.lock", environment={})
    assert ours.code == 0, ours.said
    environment = {**new_docker.environment, "PATH": _path_without_apt(tmp_path / "bin")}
    theirs = (*base, "-o", tmp_path / "theirs.lock")
    alone = built.call("lock", built.example.pack, *theirs, environment=environment)
    assert (alone.code, alone.result["error"]["type"]) == (7, "ToolMissing")
    assert "--backend buildkit" in alone.result["error"]["hint"]
    builder = ("--backend", "buildkit", "--build-network", "host")
    run = built.call("lock", built.example.pack, *theirs, *builder, environment=environment)
    assert run.code == 0, run.said
    assert (tmp_path / "ours.lock").read_bytes() == (tmp_path / "theirs.lock").read_bytes()
    settings = {**json.loads(built.example.settings.read_text()), "system": {"packages": ["no-such-package"]}}
    (tmp_path / "unknown.yaml").write_text(json.dumps(settings))
    unknown = ("-o", tmp_path / "unknown.lock", "--config", tmp_path / "unknown.yaml")
    run = built.call("lock", built.example.pack, *base, *unknown, *builder, environment=environment)
    assert (run.code, run.result["error"]["type"]) == (4, "Unresolvable"), run.said
    assert "no-such-package" in run.result["error"]["message"]


def _apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> tuple[BaseApt, list[str]]:
    """An apt whose builder leaves *answers*, those with a path as links; and the Dockerfiles that it was given."""
    seen: list[str] = []

    def build(folder: Path, arguments: list[str], *, progress: Any) -> None:
        seen.append((folder / "Dockerfile").read_text())
        out = Path(arguments[-1].partition("dest=")[2])
        (out / "lists").mkdir(parents=True)
        for name, text in answers.items():
            if text.startswith("/"):
                (out / name).symlink_to(text)
            else:
                (out / name).write_text(text)

    monkeypatch.setattr(baseapt, "require_quiet", lambda *arguments: None)
    (tmp_path / "store").mkdir(exist_ok=True)
    request = Request((), documents={}, pack=None, places={}, store=Store(tmp_path / "store"), sources=Sources())
    builder = cast("Any", SimpleNamespace(features=features_of((0, 13)), build=build))
    below = cast("Any", SimpleNamespace(base=BASE, platform="linux/amd64", system=(), interpreter=HostInterpreter))
    return BaseApt(below, BASE, builder, request, "none"), seen


def test_only_what_fetches_lists_is_given_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"code": "0\n", "stdout": "said", "stderr": "", "lists/x_Packages": "p", "lists/link": "/etc/passwd"}
    apt, seen = _apt(tmp_path, monkeypatch, answers)
    root = tmp_path / "root"
    (root / "lists").mkdir(parents=True)
    (root / "apt.conf").write_text("")
    done = apt.run(root, "apt-get", "update", fetches=True)
    assert (done.returncode, done.stdout) == (0, "said")
    assert [path.name for path in (root / "lists").iterdir()] == ["x_Packages"], "a link is no list"
    apt.run(root, "apt-cache", "show", "it's; $(x)")
    steps = [[line for line in text.splitlines() if line.startswith("RUN")] for text in seen]
    assert all("--network=default" in line for line in steps[0])
    assert all("--network=none" in line for line in steps[1])
    assert steps[1][0].endswith('"it\'s; $(x)"]')
    assert f"FROM base.example/debian@sha256:{'a' * 64} AS apt" in seen[0].splitlines()


def test_an_answer_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("0")
    apt, _ = _apt(tmp_path, monkeypatch, {"code": f"{tmp_path}/secret", "stdout": "", "stderr": ""})
    (tmp_path / "root").mkdir()
    with pytest.raises(UnsafeInput, match="'code'"):
        apt.run(tmp_path / "root", "apt-get", "check")


def test_a_mirror_in_a_folder_cannot_be_seen_from_a_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt, _ = _apt(tmp_path, monkeypatch, {})
    sources = AptSources({"etc/apt/sources.list": b"deb http://deb.example/debian bookworm main\n"}, b"", False)
    mirrors = Mirrors({"http://deb.example/debian": str(tmp_path)})
    with pytest.raises(Unresolvable, match=r"deb\.example.*folder of this machine"):
        open_archive(
            sources, architecture="amd64", store=Store(tmp_path / "store"), mirrors=mirrors, program=apt
        )  # fmt: skip


def test_without_apt_and_builder_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    layer = text_layer({"var/lib/dpkg/status": "", "etc/apt/sources.list": "deb http://deb.example/debian b main\n"})
    write_layout(image_of([layer], architecture="amd64"), tmp_path / "base", tag="base")
    settings = Settings(base=f"oci:{tmp_path / 'base'}", system=SystemSettings(packages=("git",)))
    with pytest.raises(ToolMissing, match="no apt") as caught:
        lock_system(
            settings, python="3.11", platform="linux/amd64", target="cpu", store=Store(tmp_path / "store"),
            sources=Sources(), progress=SILENT,
        )  # fmt: skip
    assert "--backend buildkit" in str(caught.value.hint)
