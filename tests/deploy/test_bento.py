"""Bentos of packs and images, with BentoML's own functions and programs: served, put into containers, moved about."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.image.build import build
from cpack_build.image.gather import Places, gather
from cpack_build.lock.schema import BaseImage
from cpack_build.oci.layout import write_layout
from cpack_build.oci.push import push
from cpack_build.oci.reference import LayoutName, parse_reference
from cpack_build.oci.sources import open_source
from tests import need
from tests.asking import ask_service, pixels, png, until_ready
from tests.cli.calling import Caller
from tests.deploy.bentohome import bento_home
from tests.engines import Docker, Registry, free_port
from tests.example import Example, make_example
from tests.image.small import CODE, DEBS, make_parts
from tests.oci.images import image_of
from tests.restore.images import MODEL, WEIGHTS, World

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML uses what others call old
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty BentoML."""
    with bento_home(tmp_path / "bentoml") as place:
        yield place


# -- what is in it -----------------------------------------------------------------------------------------------------


def test_the_same_image_gives_the_same_bento_and_it_is_made_once(call: Caller, home: Path, world: World) -> None:
    first = call("bento", f"oci:{world.layout}", "--json")
    assert first.code == 0, first.err
    again = call("bento", f"oci:{world.layout}", "--json").document
    assert (again["tag"], again["existed"], again["written"]) == (first.document["tag"], True, 0)
    shutil.rmtree(home / "bentos" / "small")
    assert call("bento", f"oci:{world.layout}", "--json").document["tag"] == first.document["tag"]
    assert list((home / "tmp").iterdir()) == []


def test_a_model_is_one_model_for_all_bentos_and_no_second_copy_on_the_disk(
    call: Caller, home: Path, world: World, tmp_path: Path
) -> None:
    done = call("bento", f"oci:{world.layout}", "--json")
    assert done.code == 0, done.err
    assert done.document["models"] == [f"cpack-model:{SHA256[:40]}"]
    assert done.document["shared"] == len(WEIGHTS)
    (file,) = home.glob("models/cpack-model/*/model.bin")
    assert file.read_bytes() == WEIGHTS
    blob = Store(tmp_path / "store").blob_path(SHA256)
    assert file.samefile(blob) or file.stat().st_nlink == 1, "a hard link, or blocks that are shared"
    other = call("bento", f"oci:{world.layout}", "--name", "other", "--json")
    assert other.document["models"] == done.document["models"]
    assert len(list(home.glob("models/cpack-model/*/model.bin"))) == 1
    layout = Path(other.document["path"]) / "image"
    sizes = {path.stat().st_size for path in (layout / "blobs" / "sha256").iterdir()}
    assert max(sizes) < 10 * len(WEIGHTS)
    assert not any(WEIGHTS in path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir())


def test_another_model_under_that_tag_is_not_believed(call: Caller, home: Path, world: World) -> None:
    assert call("bento", f"oci:{world.layout}").code == 0
    (file,) = home.glob("models/cpack-model/*/model.bin")
    file.unlink()
    file.write_bytes(WEIGHTS.swapcase())
    done = call("bento", f"oci:{world.layout}", "--name", "other")
    assert done.code == 5
    assert f"bentoml models delete cpack-model:{SHA256[:40]}" in done.err
    assert not (home / "bentos" / "other").exists()


def test_an_exported_bento_is_whole_and_can_be_imported_elsewhere(
    call: Caller, home: Path, world: World, tmp_path: Path
) -> None:
    import bentoml

    done = call("bento", f"oci:{world.layout}", "-o", tmp_path / "small.bento", "--json")
    assert done.code == 0, done.err
    with bento_home(tmp_path / "elsewhere") as elsewhere:
        bento = bentoml.bentos.import_bento(str(tmp_path / "small.bento"))
        assert str(bento.tag) == done.document["tag"]
        assert (Path(bento.path) / "image" / "oci-layout").is_file()
        (model,) = elsewhere.glob("models/cpack-model/*/model.bin")
        assert model.read_bytes() == WEIGHTS


def test_a_bento_is_restored_to_its_workspace(call: Caller, home: Path, world: World, tmp_path: Path) -> None:
    tag = call("bento", f"oci:{world.layout}", "--json").document["tag"]
    done = call("unpack-bento", tag, "-w", tmp_path / "workspace")
    assert done.code == 0, done.err
    assert (tmp_path / "workspace" / MODEL).read_bytes() == WEIGHTS
    assert call("restore", "--verify", tmp_path / "workspace").code == 0


def test_layers_that_a_dockerfile_cannot_unpack_are_made_plain(
    call: Caller, home: Path, world: World, registry: Registry
) -> None:
    target = f"{registry.host}/team/packed:1"
    assert call("push", f"oci:{world.layout}", target, "--compression", "zstd").code == 0
    done = call("bento", target, "--self-contained", "--json")
    assert done.code == 0, done.err
    plain = call("bento", f"oci:{world.layout}", "--name", "packed", "--json").document
    assert done.document["tag"] == plain["tag"], "the same image, however its layers came"
    assert call("bento", target, "--json").document["thin"]


def test_a_base_that_does_something_by_itself_is_no_beginning_of_a_bento(
    call: Caller, home: Path, registry: Registry, tmp_path: Path
) -> None:
    """The image that we made of it does nothing by itself, and does not tell."""
    lock = make_parts(tmp_path, models=[100])
    config = {"OnBuild": ["RUN wget evil.example"]}
    layers = open_source(LayoutName(tmp_path / "base.oci")).layers(lock.platform)
    base = image_of(layers, config=config)
    origin = f"{registry.host}/bases/eager"
    push(base, [parse_reference(f"{origin}:1")])
    store = Store(tmp_path / "store")
    places = Places(base=origin, models=[str(tmp_path / "models")], find_links=[str(tmp_path / "wheels")])
    sources = Sources(Mirrors({CODE: f"{tmp_path}/", DEBS: f"{tmp_path}/"}))
    pinned = lock.model_copy(update={"base": BaseImage(reference=f"{origin}:1", digest=base.digest)})
    documents = {"snapshot.json": b"{}", "workflow_api.json": b"{}"}
    materials = gather(pinned, documents=documents, places=places, store=store, sources=sources)
    with build(pinned, materials, store=store) as image:
        write_layout(image, tmp_path / "image.oci")
    done = call("bento", f"oci:{tmp_path}/image.oci")
    assert done.code == 8, done.err
    assert "ONBUILD" in done.err
    assert not (home / "bentos").exists() or not list((home / "bentos").iterdir())


def test_a_base_that_removes_files_is_refused_before_anything_is_made(home: Path, world: World) -> None:
    from dataclasses import replace

    from cpack_build.cli.bento import contents_of
    from cpack_build.cli.downloads import Downloads
    from cpack_build.cli.options import Chosen
    from cpack_build.cli.terminal import Terminal
    from cpack_build.deploy.bento import make_bento
    from cpack_build.errors import BadInput
    from cpack_build.oci import tar
    from cpack_build.oci.types import LAYER, BytesBlob

    entries = [tar.Entry("etc/.wh.motd", "file", content=tar.BytesContent(b""))]
    layer = BytesBlob(LAYER, b"".join(tar.stream(entries)))
    source = f"oci:{world.layout}"
    with contents_of(source, Chosen(None, {}), Downloads(), thin=None, trust=False, terminal=Terminal(quiet=True)) as (
        contents,
        _,
    ):
        based = replace(contents, layers=(("base", layer), *contents.layers))
        with pytest.raises(BadInput, match=r"removes etc/\.wh\.motd"):
            make_bento(based, "small", sha256_of=str)
    assert list((home / "models").iterdir()) == []


def test_a_build_that_fails_leaves_no_bento(call: Caller, home: Path, world: World, tmp_path: Path) -> None:
    layout = tmp_path / "broken.oci"
    shutil.copytree(world.layout, layout)
    largest = max((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    largest.write_bytes(data[: len(data) // 2] + b"?" + data[len(data) // 2 + 1 :])
    done = call("bento", f"oci:{layout}")
    assert done.code == 5, done.err
    assert list((home / "bentos").iterdir()) == []
    assert list((home / "tmp").glob("cpack-*")) == []


def test_a_temporary_folder_that_bentoml_refuses_is_told_so(
    call: Caller, home: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / ".hidden"
    hidden.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(hidden))
    done = call("bento", f"oci:{world.layout}")
    assert done.code == 3
    assert "hidden" in done.err
    assert "TMPDIR" in done.err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--name", "Ünicode"), 2, "cannot be the name of a Bento"),
        (("--name", "a" * 64), 2, "at most 63"),
        (("--version", "../../x"), 2, "cannot be the version of a Bento"),
        (("--thin",), 2, "is no image in a registry"),
    ],
)
def test_what_bentoml_cannot_have_is_refused(
    call: Caller, home: Path, world: World, flags: tuple[str, ...], code: int, words: str
) -> None:
    done = call("bento", f"oci:{world.layout}", *flags)
    assert done.code == code
    assert words in " ".join(done.err.split())
    assert list((home / "bentos").iterdir()) == []


def test_another_bento_of_that_version_is_not_replaced(call: Caller, home: Path, world: World) -> None:
    import bentoml

    assert call("bento", f"oci:{world.layout}", "--version", "1").code == 0
    bento = bentoml.bentos.get("small:1")
    bento.info.labels["cpack-content"] = "other"
    bento.flush_info()
    done = call("bento", f"oci:{world.layout}", "--version", "1")
    assert done.code == 8
    assert "choose another --version" in done.err


def test_a_lock_s_environment_is_no_template(world: World, call: Caller, home: Path) -> None:
    """The Dockerfile is rendered by Jinja from the Bento, on the machine of whoever builds its container."""
    import bentoml
    from bentoml._internal.container import construct_containerfile

    from cpack_build.deploy.dockerfile import template
    from cpack_build.errors import BadInput

    hostile = {"Env": ['A={{ 7 * 7 }}{% raw %}"; RUN evil $(id) \\'], "User": "1000:1000"}
    text = template(hostile, origin=None, archives=["image/x"], has_models=False, whole=False)
    tag = call("bento", f"oci:{world.layout}", "--json").document["tag"]
    bento = bentoml.bentos.get(tag)
    Path(bento.path_of("env/docker/Dockerfile.template")).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("/")  # as `bentoml containerize` of 1.4.39 needs it
        with construct_containerfile(bento, enable_buildkit=True) as (_, path):
            rendered = Path(path).read_text()
    assert 'ENV A="{{ 7 * 7 }}{% raw %}\\"; RUN evil \\$(id) \\\\"' in rendered.splitlines()
    for value in ("A=1\nRUN evil", "A\nRUN evil=1", "A B=1"):
        with pytest.raises(BadInput):
            template({"Env": [value]}, origin=None, archives=[], has_models=False, whole=False)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"User": "0\nRUN evil"},
        {"User": "0 --from=evil"},
        {"User": "$(id)"},
        {"User": ["0"]},
        {"OnBuild": ["RUN evil"]},
        {"Env": "A=1"},
        {"Env": [1]},
        {"Labels": {"a": 1}},
        {"Volumes": [[]]},
    ],
)
def test_a_stranger_s_image_writes_no_instruction(config: dict[str, Any], whole: bool) -> None:
    from cpack_build.deploy.dockerfile import template
    from cpack_build.errors import BadImage

    with pytest.raises(BadImage, match="config"):
        template(config, origin=None, archives=[], has_models=True, whole=whole)


@pytest.mark.parametrize("user", ["1000", "0:0", "node", "node:_staff", "node:20"])
def test_the_service_runs_as_the_image_s_user(user: str) -> None:
    from cpack_build.deploy.dockerfile import template

    text = template({"User": user}, origin="x@sha256:0", archives=[], has_models=True, whole=True)
    assert f"\nUSER {user}\n" in text
    assert text.count(f"--chown={user} ") == 5


def test_more_layers_than_engines_take_share_the_last_instruction() -> None:
    from cpack_build.deploy.dockerfile import template

    archives = [f"image/{number}" for number in range(118)]
    text = template({"Env": []}, origin=None, archives=archives, has_models=True, whole=False)
    adds = [line.split() for line in text.splitlines() if line.startswith("ADD ")]
    assert [name for line in adds for name in line[1:-1]] == archives
    assert len(adds) + text.count("\nCOPY ") + 1 < 110


@pytest.mark.parametrize(
    ("about", "code", "words"),
    [
        ("[", 3, "no usable cpack.json"),
        ('{"models": [], "image": "x"}', 3, "are not what cpack-build writes"),
        ('{"models": {}, "image": "/etc/passwd"}', 2, "is no repository name"),
        ('{"models": {"00": "../../x:1"}, "image": "x"}', 4, "is not in BentoML's model store"),
    ],
)
def test_a_strange_description_of_a_bento_is_refused(
    call: Caller, home: Path, world: World, tmp_path: Path, about: str, code: int, words: str
) -> None:
    made = call("bento", f"oci:{world.layout}", "--json").document
    (Path(made["path"]) / "src" / "cpack.json").write_text(about)
    shutil.rmtree(Path(made["path"]) / "image")
    done = call("unpack-bento", made["tag"], "-w", tmp_path / "workspace")
    assert done.code == code, done.err
    assert words in done.err
    assert not (tmp_path / "workspace").exists()


# -- comfy-pack's ------------------------------------------------------------------------------------------------------


def comfy_pack_bento(path: Path, weights: bytes, folder: Path) -> str:
    """The Bento of the pack at *path*, as comfy-pack 0.4 makes it (``build_bento`` of ``package.py``)."""
    import bentoml

    from cpack_build.cpack.reader import read_pack

    pack = read_pack(path)
    documents = pack.documents()
    snapshot = json.loads(documents["snapshot.json"])
    for model in snapshot["models"]:
        tag = f"cpack-model:{model['sha256'][:16]}"
        with bentoml.models.create(tag, labels={"filename": model["filename"]}) as stored:
            Path(stored.path_of("model.bin")).write_bytes(weights)
        model["model_tag"] = tag
    context = folder / "context"
    for name, data in {**documents, "snapshot.json": json.dumps(snapshot).encode()}.items():
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_bytes(data)
    (context / "service.py").write_text(
        "import os\nimport bentoml\n\nif os.environ.get('EVIL'):\n    raise SystemExit('it was run')\n\n"
        "@bentoml.service\nclass ComfyService:\n    pass\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(context)
        sys.modules.pop("service", None)
        built = bentoml.bentos.build(
            "service:ComfyService", name="theirs", version="1", build_ctx=str(context),
            models=[model["model_tag"] for model in snapshot["models"]],
            docker={"base_image": "scratch"}, python={"lock_packages": False},
        )  # fmt: skip
        sys.modules.pop("service", None)
    return str(built.tag)


def test_comfy_pack_s_bento_is_restored_with_its_models_and_never_run(
    call: Caller, home: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = comfy_pack_bento(world.pack, WEIGHTS, tmp_path)
    monkeypatch.setenv("EVIL", "1")
    mirrors = [flag for pair in world.mirrors.items() for flag in ("--mirror", "=".join(pair))]
    done = call(
        "unpack-bento", tag, "-w", tmp_path / "workspace", "--find-links", world.wheels, "--base", "scratch", *mirrors
    )
    assert done.code == 0, done.err
    assert (tmp_path / "workspace" / MODEL).read_bytes() == WEIGHTS
    assert (tmp_path / "workspace" / "input" / "sample.png").is_file()


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        ("model", 5, "was promised"),
        ("gone", 4, "is not in BentoML's model store"),
        ("snapshot", 3, "no usable snapshot.json"),
        ("nothing", 4, "There is no Bento"),
    ],
)
def test_a_damaged_bento_of_comfy_pack_s_says_what_is_wrong(
    call: Caller, home: Path, world: World, tmp_path: Path, damage: str, code: int, words: str
) -> None:
    import bentoml

    tag = comfy_pack_bento(world.pack, WEIGHTS, tmp_path)
    if damage == "model":
        (file,) = home.glob("models/cpack-model/*/model.bin")
        file.write_bytes(b"another")
    elif damage == "gone":
        bentoml.models.delete(f"cpack-model:{SHA256[:16]}")
    elif damage == "snapshot":
        Path(bentoml.bentos.get(tag).path_of("src/snapshot.json")).write_text("[")
    else:
        bentoml.bentos.delete(tag)
    done = call("unpack-bento", tag, "-w", tmp_path / "workspace")
    assert done.code == code, done.err
    assert words in done.err
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    "place", ["snapshot.json", "workflow_api.json", "workflow.json", "input", "input/x", "", "model"]
)
@pytest.mark.parametrize("command", [("build-bento",), ("unpack-bento", "-w", "workspace")])
def test_no_link_of_a_bento_brings_a_file_of_this_machine(
    call: Caller, home: Path, world: World, tmp_path: Path, place: str, command: tuple[str, ...]
) -> None:
    import bentoml

    tag = comfy_pack_bento(world.pack, WEIGHTS, tmp_path)
    path = Path(bentoml.bentos.get(tag).path_of(f"src/{place}".rstrip("/")))
    if place == "model":
        (path,) = home.glob("models/cpack-model/*/model.bin")
    secret = tmp_path / "secret"
    if path.exists():
        path.rename(secret)
    else:
        secret.write_text("{}")
    path.symlink_to(secret)
    done = call(command[0], tag, *command[1:])
    assert done.code == 8, done.err
    assert "leads out of it" in done.err


def test_a_fifo_in_a_bento_is_not_waited_for(call: Caller, home: Path, world: World, tmp_path: Path) -> None:
    import bentoml

    tag = comfy_pack_bento(world.pack, WEIGHTS, tmp_path)
    path = Path(bentoml.bentos.get(tag).path_of("src/snapshot.json"))
    path.unlink()
    os.mkfifo(path)
    done = call("unpack-bento", tag, "-w", tmp_path / "workspace")
    assert done.code == 3, done.err
    assert "no usable snapshot.json: it is no file" in done.err


_WORKER = """
import os, sys, tempfile
from pathlib import Path
import bentoml
from cpack_build.serve.bento import bento_service
os.umask(0)
bentoml.server_context.worker_index = int(sys.argv[2]) if sys.argv[2] else None
(Path(tempfile.gettempdir()) / f"cpack-bento-{os.getpid()}").mkdir()  # as another user would
bento_service(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("worker", ["1", ""])
def test_a_served_bento_writes_where_nobody_else_can(
    call: Caller, home: Path, world: World, tmp_path: Path, worker: str
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    made = call("bento", f"oci:{world.layout}", "--json").document
    environment = {**os.environ, "TMPDIR": str(place), "COMFYUI_SERVER": "127.0.0.1:1"}
    program(sys.executable, "-c", _WORKER, f"{made['path']}/src", worker, environment=environment, cwd=tmp_path)
    found = {path: path.stat().st_mode & 0o777 for path in place.iterdir() if any(path.iterdir())}
    assert list(found.values()) == ([0o700] if worker else [])
    assert all(path.name.startswith("cpack-bento-") for path in found)


# -- served, and in a container ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """The example's Bento, and the environment of the programs that find it."""

    tag: str
    path: str
    example: Example
    layout: Path
    environment: Mapping[str, str]


def program(*command: object, environment: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would; fails with its words."""
    done = subprocess.run(
        list(map(str, command)), env=dict(environment), cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} gave {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
    return done


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Made of the pack by the command line."""
    need.tool("apt-get")
    folder = tmp_path_factory.mktemp("served")
    example = make_example(folder, sample=png())
    environment = {
        **os.environ,
        "CPACK_HOME": str(folder / "store"),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    layout = folder / "example.oci"
    build = (sys.executable, "-m", "cpack_build")
    program(*build, "image", example.pack, "--output", f"oci:{layout}", environment=environment, cwd=folder)
    done = program(*build, "build-bento", example.pack, "--json", environment=environment, cwd=folder)
    made = json.loads(done.stdout)
    return Served(made["tag"], made["path"], example, layout, environment)


_CLIENT = """
import pathlib, sys
import bentoml
with bentoml.SyncHTTPClient(sys.argv[1], token=sys.argv[4]) as client:
    result = client.generate(photo=pathlib.Path(sys.argv[2]), size=64)
pathlib.Path(sys.argv[3]).write_bytes(pathlib.Path(result).read_bytes())
"""


@contextmanager
def serving(command: list[object], environment: Mapping[str, str], log: Path) -> Iterator[str]:
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command), "--port", str(port)], env=dict(environment), cwd=log.parent,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    except AssertionError as error:
        raise AssertionError(f"{error}\nThe server said:\n{log.read_text()[-4000:]}") from error
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.network
@pytest.mark.xdist_group("engines")
def test_bentoml_serves_it_and_bentoml_s_own_client_calls_it(served: Served, tmp_path: Path) -> None:
    """With no ComfyUI named the Bento makes its own, from nothing but itself; in front is the token, as in an image."""
    (tmp_path / "tmp").mkdir()
    own = {"CPACK_HOME": str(tmp_path / "fresh"), "CPACK_TOKEN": "own-token", "TMPDIR": str(tmp_path / "tmp")}
    alone = {**served.environment, **own}
    picture, result = tmp_path / "photo.png", tmp_path / "result.png"
    picture.write_bytes(png(40, 40))
    with serving(["bentoml", "serve", served.tag], alone, tmp_path / "log") as url:
        until_ready(f"{url}/readyz")
        with pytest.raises(AssertionError, match="gave 401"):
            ask_service(url, photo=png(40, 40), size=64)
        program(sys.executable, "-c", _CLIENT, url, picture, result, "own-token", environment=alone, cwd=tmp_path)
    assert pixels(result.read_bytes())[0] == (128, 128)
    assert "own-token" not in (tmp_path / "log").read_text()
    assert list((tmp_path / "tmp").glob("cpack-bento-*")) == [], "the service's files go when it ends"


@pytest.mark.docker
@pytest.mark.network
def test_bentoml_containerizes_it_with_docker_and_no_network(served: Served, docker: Docker, tmp_path: Path) -> None:
    """The layers are those of the image, so nothing is resolved, downloaded or run."""
    environment = {**served.environment, **docker.environment, "TMPDIR": str(tmp_path)}
    program("bentoml", "containerize", served.tag, "-t", "from-bento:1", environment=environment, cwd=tmp_path)
    assert run_and_ask(docker, "from-bento:1") == (128, 128)
    assert run_and_ask(docker, "from-bento:1", "--user", "4242:4242", "--read-only") == (128, 128)


@pytest.mark.network
@pytest.mark.xdist_group("engines")
def test_comfy_pack_s_bento_becomes_one_that_needs_nothing(served: Served, tmp_path: Path) -> None:
    weights = next(served.example.pack.parent.glob("models/*/*.safetensors")).read_bytes()
    with bento_home(Path(served.environment["BENTOML_HOME"])):
        tag = comfy_pack_bento(served.example.pack, weights, tmp_path)
    settings = ("--config", served.example.settings, "--name", "converted", "--json")
    build = (sys.executable, "-m", "cpack_build", "build-bento", tag, *settings)
    made = json.loads(program(*build, environment=served.environment, cwd=tmp_path).stdout)
    about = json.loads((Path(made["path"]) / "src" / "cpack.json").read_bytes())
    own = json.loads((Path(served.path) / "src" / "cpack.json").read_bytes())
    assert about["models"] == own["models"]
    listed = sorted(path.name for path in (Path(made["path"]) / "image" / "blobs" / "sha256").iterdir())
    assert len(set(listed) & {path.name for path in (Path(served.path) / "image" / "blobs" / "sha256").iterdir()}) >= 6


@pytest.mark.docker
@pytest.mark.network
def test_a_thin_bento_begins_from_the_image_in_its_registry(
    served: Served, docker: Docker, registry: Registry, tmp_path: Path
) -> None:
    target = f"{registry.host}/team/example:1"
    build = (sys.executable, "-m", "cpack_build")
    push = ("push", f"oci:{served.layout}", target, "--compression", "gzip")
    program(*build, *push, environment=served.environment, cwd=tmp_path)
    done = program(*build, "bento", target, "--name", "thin", "--json", environment=served.environment, cwd=tmp_path)
    made: dict[str, Any] = json.loads(done.stdout)
    assert (made["thin"], made["models"]) == (True, [])
    assert made["written"] < 1 << 20
    environment = {**served.environment, **docker.environment, "TMPDIR": str(tmp_path)}
    program("bentoml", "containerize", made["tag"], "-t", "from-thin:1", environment=environment, cwd=tmp_path)
    dockerfile = (Path(made["path"]) / "env" / "docker" / "Dockerfile").read_text()
    assert dockerfile.startswith(f"FROM {registry.host}/team/example@sha256:")
    assert run_and_ask(docker, "from-thin:1") == (128, 128)


def run_and_ask(docker: Docker, image: str, *flags: str) -> tuple[int, int]:
    """The size of the picture that a container of *image* answers with."""
    port = free_port()
    container = docker("run", "--detach", "--publish", f"127.0.0.1:{port}:3000", *flags, image).stdout.strip()
    try:
        until_ready(f"http://127.0.0.1:{port}/readyz")
        body, _ = ask_service(f"http://127.0.0.1:{port}", photo=png(40, 40), size=64)
        return pixels(body)[0]
    except AssertionError as error:
        logs = docker("logs", container, check=False)
        raise AssertionError(f"{error}\nThe container said:\n{logs.stdout[-4000:]}{logs.stderr[-4000:]}") from error
    finally:
        docker("rm", "--force", container, check=False)
