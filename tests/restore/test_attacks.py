"""Artifacts that lie: nothing is written outside the workspace, and the command says why it refused.

Each attack stands in an image whose lock fits it: whoever forges a layer forges the lock as well.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from cpack_build.errors import BadImage, CpackError, HashMismatch, UnsafeInput
from cpack_build.fetch.http import Offline, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.oci.reference import parse_image_name
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import LAYER, LAYER_GZIP, BytesBlob, Image
from cpack_build.restore import extract as extracting
from cpack_build.restore.artifact import Artifact, Layer, read_artifact
from cpack_build.restore.extract import extract
from cpack_build.restore.folder import Folder
from cpack_build.restore.foreign import recover
from cpack_build.restore.goal import Goal, Options
from cpack_build.restore.restoring import restore
from cpack_build.restore.trees import File, Manifest
from tests.making import member
from tests.oci.images import image_of
from tests.restore.images import World

ROOT = "app/comfyui"


def tar_of(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def manifest_of(members: Sequence[tuple[tarfile.TarInfo, bytes]], prefix: str) -> Manifest:
    """The manifest that a forger would pin: what an extraction that believes everything would find."""
    files = []
    for info, data in members:
        path = info.name.removeprefix(f"{prefix}/")
        if info.issym():
            files.append(File(path, "120000", hashlib.sha256(info.linkname.encode()).hexdigest()))
        elif not info.isdir():
            mode = "100755" if info.mode & 0o100 else "100644"
            files.append(File(path, mode, hashlib.sha256(data).hexdigest()))  # type: ignore[arg-type]
    return Manifest(tuple(sorted(files, key=lambda file: file.path.encode())))


def forged(world: World, members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> Artifact:
    """The small image with another ComfyUI: the layer of *members*, and a lock that pins what is in it."""
    image = open_source(parse_image_name(f"oci:{world.layout}")).as_image(world.lock.platform)
    artifact = read_artifact(image, name="forged")
    blob = BytesBlob(LAYER, tar_of(members))
    lock = artifact.lock.model_copy(
        update={
            "comfyui": artifact.lock.comfyui.model_copy(update={"tree_sha256": manifest_of(members, ROOT).sha256}),
            "nodes": (),
            "models": (),
        }
    )
    return dataclasses.replace(artifact, lock=lock, layers=(Layer("comfyui", "sha256:" + "0" * 64, blob),))


def attempt(artifact: Artifact, root: Path, tmp_path: Path) -> None:
    goal = Goal("forged", artifact.lock, artifact.documents, artifact=artifact)
    options = Options(environment=False, offline=True)
    sources = Sources(Mirrors({}, is_offline=True), Offline())
    restore(goal, root, options=options, store=Store(tmp_path / "store"), sources=sources)


def file(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name), b"evil"


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind, link=target), b""


ATTACKS = {
    "parents": [file(f"{ROOT}/../../../outside/evil")],
    "a backslash": [file(f"{ROOT}/..\\..\\evil")],
    "an absolute link": [link(f"{ROOT}/a", "OUTSIDE"), file(f"{ROOT}/a/evil")],
    "a link to parents": [link(f"{ROOT}/a", "../../outside"), file(f"{ROOT}/a/evil")],
    "a file below a link of the tree": [file(f"{ROOT}/b/x"), link(f"{ROOT}/a", "b"), file(f"{ROOT}/a/evil")],
    "links that only together lead out": [
        link(f"{ROOT}/d", "."),
        link(f"{ROOT}/e", "d/.."),
        link(f"{ROOT}/f", "e/outside"),
    ],
    "a loop of links": [link(f"{ROOT}/a", "b"), link(f"{ROOT}/b", "a")],
    "a hard link": [link(f"{ROOT}/a", "etc/passwd", tarfile.LNKTYPE)],
    "a device": [(member(f"{ROOT}/a", tarfile.CHRTYPE), b"")],
    "a pipe": [(member(f"{ROOT}/a", tarfile.FIFOTYPE), b"")],
    "git's own folder": [file(f"{ROOT}/.git/config")],
    "git's own folder as Windows sees it": [file(f"{ROOT}/GIT~1/config")],
    "git's own folder as macOS sees it": [file(f"{ROOT}/.g\u200cit/config")],
    "our own folder": [file(f"{ROOT}/.cpack/state.json")],
    "the environment": [file(f"{ROOT}/.venv/bin/python")],
    "a whiteout": [file(f"{ROOT}/.wh.main.py")],
    "a whiteout of the parent": [file(f"{ROOT}/.wh...")],
    "a control character": [file(f"{ROOT}/a\nb")],
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_layer_cannot_reach_out(world: World, tmp_path: Path, attack: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for info, _ in attack:
        info.linkname = info.linkname.replace("OUTSIDE", str(outside))
    root = tmp_path / "place" / "w"
    with pytest.raises((UnsafeInput, BadImage)):
        attempt(forged(world, attack), root, tmp_path)
    assert not list(outside.iterdir())
    assert not [path for path in tmp_path.rglob("*") if path.name in ("evil", "passwd") and ".cpack" not in path.parts]
    assert sorted(path.name for path in root.iterdir()) == [".cpack"], "nothing of it was written"


def test_a_layer_whose_own_parents_are_links_is_harmless(world: World, tmp_path: Path) -> None:
    # umoci, CVE-2021-29136: a layer whose root was a link had its files written where that led.
    outside = tmp_path / "outside"
    outside.mkdir()
    links = [link(".", str(outside)), link("app", str(outside)), link(ROOT, str(outside))]
    artifact = forged(world, [file(f"{ROOT}/main.py")])
    blob = BytesBlob(LAYER, tar_of([*links, file(f"{ROOT}/main.py")]))
    layers = (Layer("comfyui", "sha256:" + "0" * 64, blob),)
    attempt(dataclasses.replace(artifact, layers=layers), tmp_path / "w", tmp_path)
    assert (tmp_path / "w/main.py").read_bytes() == b"evil"
    assert not list(outside.iterdir())


def test_set_id_bits_and_attributes_are_dropped(world: World, tmp_path: Path) -> None:
    info = member(f"{ROOT}/main.py", mode=0o6755)
    info.pax_headers = {"SCHILY.xattr.security.capability": "x"}
    attempt(forged(world, [(info, b"x")]), tmp_path / "w", tmp_path)
    assert (tmp_path / "w/main.py").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("name", ["..", ".", ".git"])
def test_a_node_s_name_cannot_lead_out(world: World, tmp_path: Path, name: str) -> None:
    artifact = forged(world, [file(f"{ROOT}/main.py"), file(f"{ROOT}/custom_nodes/{name}/evil")])
    pin = world.lock.nodes[0].model_copy(update={"name": name, "tree_sha256": manifest_of([file("evil")], "").sha256})
    lock = artifact.lock.model_copy(update={"nodes": (pin,)})
    with pytest.raises(CpackError):
        attempt(dataclasses.replace(artifact, lock=lock), tmp_path / "w", tmp_path)
    assert not (tmp_path / "w/main.py").exists()


@pytest.mark.parametrize(
    "path", ["../evil.bin", "/tmp/evil.bin", "models/../../evil.bin", ".git/config", "models\\..\\x"]
)
def test_a_model_s_name_cannot_lead_out(world: World, tmp_path: Path, path: str) -> None:
    artifact = forged(world, [file(f"{ROOT}/main.py")])
    lock = artifact.lock.model_copy(update={"models": (world.lock.models[0].model_copy(update={"path": path}),)})
    with pytest.raises(UnsafeInput):
        attempt(dataclasses.replace(artifact, lock=lock), tmp_path / "w", tmp_path)
    assert not (tmp_path / "w/main.py").exists()


def test_a_model_s_layer_with_other_bytes_is_refused(world: World, tmp_path: Path) -> None:
    artifact = forged(world, [file(f"{ROOT}/main.py")])
    model = world.lock.models[0]
    blob = BytesBlob(LAYER, tar_of([(member(f"models/sha256/{model.sha256}"), b"x" * model.size)]))
    lock = artifact.lock.model_copy(update={"models": (model,)})
    layers = (*artifact.layers, Layer("model", model.layer_digest, blob))
    with pytest.raises(HashMismatch):
        attempt(dataclasses.replace(artifact, lock=lock, layers=layers), tmp_path / "w", tmp_path)
    assert not (tmp_path / "w" / model.path).exists()


def test_a_document_s_name_cannot_lead_out(world: World, tmp_path: Path) -> None:
    image = open_source(parse_image_name(f"oci:{world.layout}")).as_image(world.lock.platform)
    top = BytesBlob(LAYER, tar_of([
        (member("app/cpack/cpack.lock"), world.lock.to_bytes()), (member("app/cpack/input\\..\\..\\evil"), b"x"),
    ]))  # fmt: skip
    config = json.loads(image.config.data)
    config["history"] = []
    bare = dataclasses.replace(
        image, layers=(*image.layers[:-1], top), config=BytesBlob(image.config.media_type, json.dumps(config).encode())
    )
    with pytest.raises(UnsafeInput):
        read_artifact(bare, name="it")


def test_a_link_that_was_there_before_is_not_followed(world: World, tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "w"
    outside.mkdir()
    root.mkdir()
    (root / "comfy").symlink_to(outside)
    with pytest.raises(UnsafeInput, match="comfy is a link"):
        attempt(forged(world, [file(f"{ROOT}/comfy/evil.py")]), root, tmp_path)
    assert not list(outside.iterdir())


@pytest.mark.parametrize("below_handles", [True, False])
def test_a_folder_follows_no_link_with_handles_or_without(tmp_path: Path, below_handles: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = Folder(tmp_path / "w", below_handles=below_handles)
    folder.write("a/b/c.txt", [b"1"])
    assert (tmp_path / "w/a/b/c.txt").read_bytes() == b"1"
    (tmp_path / "w/out").symlink_to(outside)
    (tmp_path / "w/a/file").write_text("")
    for path in ("out/x", "../x", "/x", "a/../../x", "", "a//b"):
        with pytest.raises(UnsafeInput):
            folder.write(path, [b"2"])
    with pytest.raises(UnsafeInput):
        folder.link("a/up", "../../outside")
    folder.link("a/fine", "b/c.txt")
    assert folder.read("a/fine") is None, "a link is no file"
    assert folder.status("a/file/below") is None
    folder.write("out", [b"3"])
    assert not list(outside.iterdir()), "the link itself was replaced, not what it leads to"
    folder.close()


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extracting, "RATIO_FREE", 1 << 20)
    data = gzip.compress(tar_of([(member("app/big"), bytes(8 << 20))]))
    with pytest.raises(UnsafeInput, match="200 times"):
        extract([BytesBlob(LAYER_GZIP, data)], ["app/"], into=tmp_path)
    assert not list(tmp_path.iterdir()), "nothing of it was written"
    monkeypatch.setattr(extracting, "ENTRY_LIMIT", 10)
    with pytest.raises(UnsafeInput, match="more than 10 files"):
        extract([BytesBlob(LAYER, tar_of([file(f"app/{n}") for n in range(20)]))], ["app/"], into=tmp_path)


def test_whiteouts_of_a_foreign_image_hide_only_what_lies_below(tmp_path: Path) -> None:
    marks = [file(f"srv/ComfyUI/{name}") for name in ("main.py", "nodes.py", "folder_paths.py")]
    below = [*marks, file("srv/ComfyUI/gone.py"), file("srv/ComfyUI/custom_nodes/old/x.py"), file("srv/keep")]
    above = [
        file("srv/ComfyUI/.wh.gone.py"), file("srv/ComfyUI/custom_nodes/.wh..wh..opq"),
        file("srv/ComfyUI/custom_nodes/new/y.py"), file("srv/ComfyUI/.wh..."), file("srv/ComfyUI/.wh.."),
        link("srv/ComfyUI/escape", "../../../etc"),
    ]  # fmt: skip
    image: Image = image_of([BytesBlob(LAYER, tar_of(below)), BytesBlob(LAYER, tar_of(above))])
    found = recover(image, tmp_path / "w", name="it")
    listed = sorted(str(path.relative_to(tmp_path / "w")) for path in tmp_path.joinpath("w").rglob("*.py"))
    assert listed == ["custom_nodes/new/y.py", "folder_paths.py", "main.py", "nodes.py"]
    assert found.nodes == ("new",)
    assert found.left_out == ("escape",)


def foreign(*members: tuple[tarfile.TarInfo, bytes]) -> Image:
    """Somebody's image with a ComfyUI in it, and *members* besides."""
    marks = [file(f"srv/ComfyUI/{name}") for name in ("main.py", "nodes.py", "folder_paths.py")]
    return image_of([BytesBlob(LAYER_GZIP, gzip.compress(tar_of([*marks, *members])))])


def test_nothing_is_recovered_that_git_or_a_later_restore_would_obey(tmp_path: Path) -> None:
    image = foreign(
        file("srv/ComfyUI/.git/config"), file("srv/ComfyUI/custom_nodes/x/.GIT/hooks/post-checkout"),
        file("srv/ComfyUI/.cpack/state.json"), file("srv/ComfyUI/custom_nodes/x/node.py"),
        link("srv/ComfyUI/here", "."), link("srv/ComfyUI/out", "here/.."),
    )  # fmt: skip
    found = recover(image, tmp_path / "w", name="it")
    assert found.left_out == (".cpack/state.json", ".git/config", "custom_nodes/x/.GIT/hooks/post-checkout", "out")
    listed = sorted(str(path.relative_to(tmp_path / "w")) for path in (tmp_path / "w").rglob("*") if path.is_file())
    assert listed == ["custom_nodes/x/node.py", "folder_paths.py", "main.py", "nodes.py"]
    assert not (tmp_path / "w/out").is_symlink()


def test_a_bomb_of_a_foreign_image_is_refused_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cpack_build.restore.foreign.RATIO_FREE", 1 << 20)
    for bomb in (
        [(member("srv/ComfyUI/models/big.bin"), bytes(8 << 20))],
        [
            (member("srv/one.bin"), bytes(range(256)) * 64),
            *(link(f"srv/ComfyUI/models/{number}.bin", "../../one.bin") for number in range(2000)),
        ],
    ):
        with pytest.raises(UnsafeInput, match="200 times"):
            recover(foreign(*bomb), tmp_path / "w", name="it")
        assert not (tmp_path / "w").exists()


def test_an_image_without_comfyui_has_nothing_to_recover(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"no folder with main\.py"):
        recover(image_of([BytesBlob(LAYER, tar_of([file("etc/x")]))]), tmp_path / "w", name="it")


def test_a_size_that_no_workspace_has_is_refused_whatever_is_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extracting, "SIZE_LIMIT", 1 << 20)
    layers = [BytesBlob(LAYER, tar_of([(member(f"app/{n}"), bytes(700_000))])) for n in range(2)]
    extract(layers[:1], ["app/"], into=tmp_path / "one")
    with pytest.raises(UnsafeInput, match="unpack to more than"):
        extract(layers, ["app/"], into=tmp_path / "two")
    assert sum(path.stat().st_size for path in (tmp_path / "two").iterdir()) == 700_000
    monkeypatch.setattr("cpack_build.restore.foreign.SIZE_LIMIT", 1 << 20)
    with pytest.raises(UnsafeInput, match="is the most that is taken"):
        recover(foreign((member("srv/ComfyUI/models/big.bin"), bytes(2 << 20))), tmp_path / "w", name="it")
    assert not (tmp_path / "w").exists()
