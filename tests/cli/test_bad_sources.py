"""What a pack names and nobody has, or has in another form: told by name and exit code, and nothing half-made.

These run the real stages against the stand-in's repository, with the user's store, so that packages are fetched once.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cpack_build.cpack.schema import COMFYUI_URL
from cpack_build.fetch.store import Store
from cpack_build.lock.resolve import this_platform
from cpack_build.oci.compressed import compressed_image, parse_compression
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import LAYER_ZSTD
from tests.cli.calling import Caller, Outcome
from tests.cpack.packs import WORKFLOW, make_pack, model, snapshot
from tests.engines import Registry
from tests.oci.images import image_of, text_layer
from tests.oci.misbehaving import run_misbehaving
from tests.standin.repository import make_model, make_repository

pytestmark = pytest.mark.network

PYTHON = subprocess.run(
    ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
    capture_output=True, text=True, check=False,
).stdout.strip()  # fmt: skip
"""That of the system's packages, which is what an image on ``scratch`` takes."""


@dataclass
class Scene:
    """A pack whose image can be built here, and the flags for it."""

    folder: Path
    call: Caller
    commit: str
    flags: list[str] = field(default_factory=list)

    @property
    def pack(self) -> Path:
        return self.folder / "scene.cpack.zip"

    @property
    def layout(self) -> Path:
        return self.folder / "out"

    def write(self, *, commit: str = "", **changes: object) -> None:
        """Write the pack, with *changes* to its snapshot."""
        plain: dict[str, object] = {
            "git_custom_nodes": {},
            "cnr_custom_nodes": {},
            "file_custom_nodes": [],
            "models": [],
        }
        pips = dict.fromkeys(("aiohttp", "numpy", "pillow"), "")
        document = snapshot(**{**plain, "pips": pips, "python": PYTHON, "comfyui": commit or self.commit, **changes})
        make_pack(self.pack, snapshot_document=document, workflow_api=WORKFLOW)

    def lock(self, *flags: object) -> Outcome:
        return self.call("lock", self.pack, *self.flags, *flags)

    def image(self, *flags: object) -> Outcome:
        return self.call("image", self.pack, "--output", f"oci:{self.layout}", *self.flags, *flags)

    def made(self) -> set[str]:
        """What lies beside the pack."""
        given = {"scene.cpack.zip", "scene.cpack.yaml", "ComfyUI", "models", "store"}
        return {path.name for path in self.folder.iterdir()} - given


@pytest.fixture
def scene(tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> Scene:
    if home := os.environ.get("CPACK_TEST_HOME"):
        monkeypatch.setenv("CPACK_HOME", home)
    else:
        monkeypatch.delenv("CPACK_HOME")
    commit = make_repository(tmp_path / "ComfyUI")
    flags = ["--mirror", f"{COMFYUI_URL}={tmp_path / 'ComfyUI'}", "--models", str(tmp_path / "models")]
    (tmp_path / "models").mkdir()
    (tmp_path / "scene.cpack.yaml").write_text("system: {defaults: none}\n")  # ffmpeg and git are large
    found = Scene(tmp_path, call, commit, flags)
    found.write()
    return found


def _hash(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_unknown_commit_is_named(scene: Scene) -> None:
    scene.write(commit="0123456789" * 4)
    done = scene.lock()
    assert done.code == 4, done.err
    assert "0123456789" in done.err
    assert "ComfyUI" in done.err
    assert scene.made() == set()


def test_all_that_is_missing_is_told_at_once(scene: Scene) -> None:
    scene.write(
        commit="0123456789" * 4,
        models=[model(filename="models/vae/absent.safetensors", sha256="1" * 64)],
        pips={"no-such-package-of-anyone==1.0": ""},
    )
    done = scene.lock("--json")
    assert done.code == 4, done.out
    message = done.document["error"]["message"]
    assert "0123456789" in message
    assert "absent.safetensors" in message
    assert "no-such-package-of-anyone" in message
    assert scene.made() == set()


def test_a_model_that_changed_after_the_lock_is_refused_and_nothing_is_left(scene: Scene) -> None:
    path = scene.folder / "models/upscale_models/tiny.safetensors"
    make_model(path, size=1000, seed=7001)
    scene.write(models=[model(size=path.stat().st_size, sha256=_hash(path))])
    assert scene.lock().code == 0
    make_model(path, size=1000, seed=7002)
    done = scene.image("--locked")
    assert done.code == 5, done.err
    assert "tiny.safetensors" in done.err
    assert scene.made() == {"scene.cpack.lock"}


def test_a_model_with_another_hash_than_the_pack_promises_is_not_taken(scene: Scene) -> None:
    path = scene.folder / "models/upscale_models/tiny.safetensors"
    make_model(path, size=1000)
    scene.write(models=[model(size=path.stat().st_size, sha256="0" * 64)])
    done = scene.lock()
    assert done.code in (4, 5), done.err
    assert "tiny.safetensors" in done.err
    assert scene.made() == set()


def test_a_stale_lock_is_told_and_a_fresh_one_is_used(scene: Scene) -> None:
    assert scene.lock().code == 0
    again = scene.lock("--json")
    assert again.document["changed"] is False
    before = (scene.folder / "scene.cpack.lock").read_bytes()
    assert scene.image("--dry-run", "--json").document["locked"] is True
    scene.write(pips={"aiohttp": "", "numpy": "", "pillow": "", "six": ""})
    done = scene.image()
    assert done.code == 3
    assert "scene.cpack.lock is stale" in done.err
    assert "cpack-build lock" in done.err
    assert (scene.folder / "scene.cpack.lock").read_bytes() == before
    assert scene.made() == {"scene.cpack.lock"}


def test_another_compression_changes_one_field_of_a_lock_and_asks_nobody(scene: Scene) -> None:
    assert scene.lock().code == 0
    path = scene.folder / "scene.cpack.lock"
    before = json.loads(path.read_bytes())
    done = scene.lock("--compression", "gzip:9", "--json", "--offline")
    assert done.code == 0, done.err
    after = json.loads(path.read_bytes())
    assert (after["compression"]["algorithm"], after["compression"]["level"]) == ("gzip", 9)
    assert before.pop("compression")["algorithm"] == "zstd"
    after.pop("compression")
    assert after == before
    assert scene.lock("--json").document["changed"] is False, "it stays until another is asked for"
    assert scene.lock("--compression", "bzip2").code == 2
    assert scene.lock("--format-revision", "2").code == 2
    assert scene.image("--dry-run", "--format-revision", "2").code == 2


def test_a_dry_run_writes_nothing(scene: Scene) -> None:
    done = scene.lock("--dry-run", "--json")
    assert done.code == 0, done.err
    assert (done.document["changed"], done.document["written"]) == (True, False)
    assert scene.image("--dry-run").code == 0
    assert scene.made() == set()


@contextmanager
def _files_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond *size* bytes, as on a disk that is full by then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("output", ["oci:out", "oci-archive:out.tar"])
def test_a_full_disk_is_told_and_nothing_half_made_stays(scene: Scene, output: str) -> None:
    kind, _, name = output.partition(":")
    assert scene.image("--quiet").code == 0, "warms the store, whose files must not be what fails"
    done = scene.call("image", scene.pack, *scene.flags, "--output", f"{kind}:{scene.folder / 'fine' / name}")
    assert done.code == 0, done.err
    with _files_at_most(40 << 20):
        done = scene.call("image", scene.pack, *scene.flags, "--output", f"{kind}:{scene.folder / 'full' / name}")
    assert done.code == 9, done.err
    assert "No space left" in done.err
    full = scene.folder / "full"
    assert not full.exists() or list(full.iterdir()) == []


def test_an_engine_that_does_not_answer_is_told_before_anything_is_built(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{scene.folder}/no.sock")
    monkeypatch.setenv("CPACK_DOCKER", str(scene.folder / "no-such-docker"))
    done = scene.call("image", scene.pack, *scene.flags, "--output", "docker")
    assert done.code == 7
    assert "Docker is needed" in done.err
    assert scene.made() == set()


def test_a_build_is_pushed_compressed_as_its_lock_says_or_as_asked(
    scene: Scene, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    names = [f"{registry.host}/scene:{tag}" for tag in ("1", "2")]
    done = scene.image("--push", names[0], "--output", names[1], "--json")
    assert done.code == 0, done.err
    [name] = {one["reference"] for one in done.document["pushed"]}
    assert done.document["compression"] == "zstd:3"
    assert "--compression gzip" in done.err, "for a Docker that reads no zstd"
    found = open_source(parse_reference(name)).as_image(this_platform())
    assert (found.digest, found.id) == (name.rpartition("@")[2], done.document["image_id"])
    assert {layer.descriptor.media_type for layer in found.layers[:-1]} == {LAYER_ZSTD}
    assert done.document["digest"] != found.digest, "the plain one's, which local engines and folders have"
    assert [one["sent"] > 0 for one in done.document["pushed"]] == [True, False]
    again = scene.call("image", scene.pack, "--push", names[0], *scene.flags, "--locked", "--json")
    assert again.code == 0, again.err
    [pushed] = again.document["pushed"]
    assert (pushed["changed"], pushed["requests"]) == (False, 1)
    plain = scene.call("image", scene.pack, "--push", names[0], *scene.flags, "--compression", "none", "--json")
    [pushed] = plain.document["pushed"]
    assert pushed["reference"].endswith(done.document["digest"])
    assert "gzip" not in plain.err


def test_a_push_over_a_base_asks_for_none_of_its_layers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    (tmp_path / "scene.cpack.yaml").write_text("{system: {defaults: none}, bytecode: none, interpreter: base}\n")
    entries = {"etc/passwd": "root:x:0:0::/:/bin/sh\n", "etc/group": tmp_path.name, f"usr/bin/python{PYTHON}": "elf"}
    base = compressed_image(image_of([text_layer(entries)]), parse_compression("gzip"), store=Store(tmp_path / "other"))
    digest = base.layers[0].descriptor.digest
    with run_misbehaving() as fake:
        fake.hold(base, "hub/base", "1")
        # as the lock names it, which a mirror leads to this registry
        flags = [*scene.flags, "--base", "hub.example/base:1", "--mirror", f"hub.example/={fake.host}/hub/"]
        done = scene.call("lock", scene.pack, *flags)
        assert done.code == 0, done.err
        kept = Store().find(digest)
        assert kept is not None
        kept.path.unlink()
        fake.seen.clear()
        done = scene.call("image", scene.pack, "--push", f"{fake.host}/scene:1", *flags, "--locked", "--json")
        assert done.code == 0, done.err
        assert not [one for one in fake.seen if one.method == "GET" and digest in one.path]
        assert Store().find(digest) is None
        assert done.document["pushed"][0]["mounted"] == base.layers[0].descriptor.size
        assert fake.blobs["scene", digest] == fake.blobs["hub/base", digest]
        # A folder as well: then it comes, and the image is the same.
        both = ["--push", f"{fake.host}/scene:1", "--output", f"oci:{scene.layout}"]
        again = scene.call("image", scene.pack, *both, *flags, "--locked", "--json")
        assert again.code == 0, again.err
        assert not again.document["pushed"][0]["changed"]
        assert again.document["image_id"] == done.document["image_id"]
        assert Store().find(digest) is not None
        # Where the base is at hand, a lock that lies of it is found out.
        lock = tmp_path / "scene.cpack.lock"
        lock.write_bytes(lock.read_bytes().replace(b"root:x:0:0", b"root::0:0"))
        for words in (["image", scene.pack, *both, "--locked"], ["check", scene.pack], ["fetch", scene.pack]):
            done = scene.call(*words, *flags, "--json")
            assert done.code == 8, done.out + done.err
            assert "hub.example/base:1" in done.out
            assert "has other accounts in /etc/passwd" in done.out


def test_the_image_line_runs_what_was_built(scene: Scene) -> None:
    done = scene.image("-t", "team/scene:3", "--json")
    assert done.code == 0, done.err
    output = done.document["outputs"][0]
    assert output["name"] == f"oci:{scene.layout}"
    assert output["run"] == f"podman run --rm -p 3000:3000 oci:{scene.layout}:3"
    assert done.document["image_id"].startswith("sha256:")
    assert (scene.layout / "index.json").is_file()
