"""The same lock through BuildKit: the same root, the same answers, and what can go wrong is named."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cpack_build.backends.builder import find_builder
from cpack_build.backends.buildkit import cache_arguments
from cpack_build.backends.protocol import Farm
from cpack_build.progress import SILENT
from tests import need
from tests.backends.conftest import Built, bake, root_in
from tests.backends.roots import differences
from tests.engines import Docker, Registry
from tests.fetch.repositories import git
from tests.fetch.servers import serving_files
from tests.lock.indexes import sdist
from tests.test_first_light import check_answers

pytestmark = [pytest.mark.network, pytest.mark.xdist_group("builders")]

KNOWN = re.compile(
    r"opt/(comfyui|cpack)/(bin/[\w.-]+|lib/python3\.\d+/site-packages/[^/]+\.dist-info/(INSTALLER|RECORD|REQUESTED))"
)
"""What docs/backends.md lists as BuildKit's differences: scripts and records are uv's."""
OLD = re.compile(r"cpack")
"""And with a BuildKit before 0.10, the folder on which it mounted what a step sees."""


def test_the_root_is_that_of_the_embedded_backend_but_for_what_uv_writes(
    built: Built, builder: Docker, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    run = built.image("--backend", "buildkit", "--output", f"oci:{layout}", environment=builder.environment)
    assert run.code == 0, run.said
    assert ("too old" in run.said) == ("old-docker" in builder.settings["DOCKER_CONFIG"])
    root = root_in(layout)
    found = differences(dict(built.root), root)
    unknown = {path: both for path, both in found.items() if not KNOWN.fullmatch(path) and not OLD.fullmatch(path)}
    assert not unknown
    assert all(built.root[path].kind == root[path].kind for path in found if path in built.root and path in root)
    assert len(root) > 10_000
    config = {name: json.loads(_config(layout)) for name, layout in (("ours", built.layout), ("theirs", layout))}
    ours, theirs = config["ours"]["config"], config["theirs"]["config"]
    assert {key: theirs.get(key) for key in ours} | {"Env": sorted(theirs["Env"])} == ours


def test_the_image_answers_under_docker(built: Built, builder: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in builder.environment.items():
        monkeypatch.setenv(key, value)
    run = built.image("--backend", "buildkit", "-t", "example:buildkit", "--output", "docker", environment={})
    assert run.code == 0, run.said
    check_answers(builder, "example:buildkit")


def test_what_is_printed_builds_without_this_program_and_a_change_of_one_node_leaves_all_else_as_it_is(
    built: Built, new_docker: Docker, tmp_path: Path
) -> None:
    """The packages are made anew as well, to the same bytes; every other step is the cache's, also those above."""
    printed = tmp_path / "printed"
    run = built.image("--backend", "buildkit", "--print", printed, environment={"CPACK_DOCKER": "/nonexistent"})
    assert run.code == 0, run.said
    assert "docker buildx bake" in run.result["build"]
    assert "REWRITE_TIMESTAMP=false" in run.said, "nobody knows yet which driver it will be"
    assert run.result["build"].partition(" && ")[2] in (printed / "README.md").read_text()
    layers: list[list[str]] = []
    configs: list[dict[str, Any]] = []
    said = ""
    for number in range(2):
        place = tmp_path / f"{number}.oci"
        elsewhere = shutil.copytree(printed, tmp_path / f"copy-{number}")
        if number:
            _with_a_file_more(elsewhere / "tree-1.tar")
            text = (elsewhere / "Dockerfile").read_text()
            assert "\nFROM tools AS wheels\n" in text
            (elsewhere / "Dockerfile").write_text(
                text.replace("\nFROM tools AS wheels\n", "\nFROM tools AS wheels\nENV AGAIN=1\n")
            )
        how = "compression=uncompressed,rewrite-timestamp=true"  # gzip takes ten seconds more
        change = f"image.output=type=oci,dest={place},tar=false,{how}"
        done = subprocess.run(
            [new_docker.command, "buildx", "bake", "--progress=plain", "--set", change],
            cwd=elsewhere, env={"PATH": "/usr/bin:/bin", **new_docker.environment}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        said = done.stderr
        index = json.loads((place / "index.json").read_text())
        image, attestation = json.loads(_blob(place, index["manifests"][0]["digest"]))["manifests"]
        manifest = json.loads(_blob(place, image["digest"]))
        layers.append([layer["digest"] for layer in manifest["layers"]])
        configs.append(json.loads(_blob(place, manifest["config"]["digest"])))
        (layer,) = json.loads(_blob(place, attestation["digest"]))["layers"]
        provenance = json.loads(_blob(place, layer["digest"]))["predicate"]
        materials = {one["uri"] for one in provenance["materials"]}
        assert len([uri for uri in materials if "://" in uri]) > 100, "provenance names what was fetched"
        assert "buildConfig" in provenance, "mode=max"
    (node,) = [number for number, (one, other) in enumerate(zip(*layers, strict=True)) if one != other]
    for config in configs:
        del config["rootfs"]["diff_ids"][node]
    assert configs[0] == configs[1]
    assert node < len(layers[0]) - 1, "what lies above is laid on by --link"
    steps = dict(re.findall(r"(?m)^#(\d+) \[(\S+ \d+/\d+\] .+)$", said))
    made = {steps[number] for number in steps.keys() - set(re.findall(r"(?m)^#(\d+) CACHED", said))}
    # files are asked for again, not fetched; the last stage puts layers together
    stages = {step.split()[0] for step in made if not re.match(r"\S+-files-\d+ |stage-\d+ ", step)}
    assert stages == {"wheels", "node-1"}
    copied = {stage for step in made for stage in re.findall(r" --from=(\S+) ", step)}
    assert copied <= {"wheels", "node-1"}, "the layers of all others are the cache's"
    assert sum(" --from=" in step for step in steps.values()) > len(copied)


def test_a_node_is_fetched_from_its_repository_by_commit_and_proved_by_its_hash(
    built: Built, new_docker: Docker, tmp_path: Path
) -> None:
    """The builder's own git asks; a repository that gives other content under that commit's name has no chance."""
    origin = built.example.pack.parent / "standin-tint" / ".git"
    git(origin.parent, "update-server-info")
    files = {f"/node.git/{path.relative_to(origin)}": path.read_bytes() for path in origin.rglob("*") if path.is_file()}
    lock = json.loads(built.example.pack.with_name("example.cpack.lock").read_text())
    (node,) = lock["nodes"]
    printed = tmp_path / "printed"
    with serving_files(files) as server:
        mirror = f"{node['url'].removesuffix('.git')}={server.url}/node"
        run = built.image("--backend", "buildkit", "--print", printed, "--mirror", mirror, environment={})
        assert run.code == 0, run.said
        text = (printed / "Dockerfile").read_text()
        assert f'ADD ["{server.url}/node.git#{node["commit"]}"' in text
        bake(new_docker, printed, "target=node-1", f"output=type=local,dest={tmp_path / 'out'}")
        changed = text.replace(node["tree_sha256"], "0" * 64)
        (printed / "Dockerfile").write_text(changed)
        with pytest.raises(AssertionError, match=f"has sha256 {node['tree_sha256']}, but {'0' * 64} was promised"):
            bake(new_docker, printed, "target=node-1", "output=type=cacheonly")
    place = tmp_path / "out" / "app" / "comfyui" / "custom_nodes" / "standin-tint"
    found = {path.name: path.read_bytes() for path in place.rglob("*.py")}
    assert found == {path.name: path.read_bytes() for path in origin.parent.rglob("*.py")} != {}
    assert not (place / ".git").exists()


def test_the_dockerfile_has_no_unpinned_word_and_asks_no_registry_for_its_syntax(built: Built, tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    assert built.image("--backend", "buildkit", "--print", printed, environment={}).code == 0
    lines = (printed / "Dockerfile").read_text().splitlines()
    assert not [line for line in lines if re.match(r"#\s*syntax", line)]
    stages = {line.split()[3] for line in lines if re.match(r"FROM \S+ AS ", line)}
    for line in lines:
        word = line.split(" ", 1)[0]
        if word == "FROM":
            assert line.split()[1] in {"scratch", *stages} or re.search(r"@sha256:[0-9a-f]{64}", line), line
        if word == "ADD" and "://" in line:
            assert re.search(r"--checksum=sha256:[0-9a-f]{64} https?://|#[0-9a-f]{40}\"", line), line
        if word == "RUN":
            assert "--network=none" in line, line
    assert sum("--checksum=" in line for line in lines) > 100
    assert {path.name for path in printed.iterdir()} >= {"Dockerfile", "docker-bake.json", "inside.py"}


def test_a_folder_with_something_in_it_is_not_printed_into(built: Built, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    run = built.image("--backend", "buildkit", "--print", tmp_path, environment={})
    assert (run.code, run.result["error"]["type"]) == (8, "Occupied")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_cache_in_a_registry_serves_another_builder(
    buildx: Docker, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in buildx.environment.items():
        monkeypatch.setenv(key, value)
    shell = need.tool("busybox")
    (tmp_path / "in").mkdir()
    shutil.copy(shell, tmp_path / "in" / "busybox")
    (tmp_path / "in" / "Dockerfile").write_text(
        'FROM scratch AS made\nCOPY busybox /\nRUN ["/busybox", "sh", "-c", "/busybox date +%N > /made"]\n'
        "FROM scratch\nCOPY --from=made /made /\n"
    )
    cache = f"{registry.host}/cache/example"
    outputs = []
    for number, farm in enumerate((Farm(cache_to=(cache,)), Farm(cache_from=(cache,)))):
        out = tmp_path / str(number)
        arguments = [*cache_arguments(farm), f"--output=type=local,dest={out}"]
        find_builder(None).build(tmp_path / "in", arguments, progress=SILENT)
        outputs.append((out / "made").read_text())
        buildx("builder", "prune", "--all", "--force")
    assert outputs[0] == outputs[1], "made once"


def test_a_dockerfile_of_others_starts_from_the_embedded_image_as_a_named_context(
    built: Built, buildx: Docker, tmp_path: Path
) -> None:
    """Its layers are the very layers of the layout, those of the models among them."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "Dockerfile").write_text('FROM workflow\nUSER root\nRUN ["/bin/sh", "-c", "echo more > /data/more"]\n')
    place = tmp_path / "more.oci"
    buildx(
        "buildx", "build", "--provenance=false", "--build-context", f"workflow=oci-layout://{built.layout}",
        "--output", f"type=oci,dest={place},tar=false,compression=uncompressed", str(theirs),
    )  # fmt: skip
    ours, more = (_layers(layout) for layout in (built.layout, place))
    assert more[: len(ours)] == ours
    assert len(more) == len(ours) + 1


@pytest.mark.parametrize(
    ("environment", "arguments", "words"),
    [
        ({"CPACK_DOCKER": "/nonexistent/docker"}, (), "no program"),
        ({"DOCKER_HOST": "unix:///nonexistent.sock"}, (), "does not answer"),
        ({}, ("--builder", "nosuch"), "nosuch"),
    ],
    ids=["no Docker", "no daemon", "no such builder"],
)
def test_a_builder_that_does_not_answer_is_named_before_anything_is_done(
    built: Built,
    new_docker: Docker,
    tmp_path: Path,
    environment: dict[str, str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    layout = tmp_path / "layout"
    run = built.image(
        "--backend", "buildkit", "--output", f"oci:{layout}", *arguments,
        environment={**new_docker.environment, **environment},
    )  # fmt: skip
    assert run.code == 7, run.said
    assert words in run.result["error"]["message"]
    assert run.result["error"]["hint"]
    assert not layout.exists()


def test_a_builder_of_another_machine_that_is_gone_is_named(built: Built, new_docker: Docker, tmp_path: Path) -> None:
    new_docker("buildx", "create", "--name", "gone", "--driver", "remote", "tcp://127.0.0.1:1")
    try:
        run = built.image(
            "--backend", "buildkit", "--builder", "gone", "--output", f"oci:{tmp_path / 'layout'}",
            environment=new_docker.environment,
        )  # fmt: skip
    finally:
        new_docker("buildx", "rm", "gone", check=False)
    assert (run.code, run.result["error"]["type"]) == (7, "ToolMissing")
    assert "gone" in run.result["error"]["message"]


def test_a_builder_by_name_needs_buildx(built: Built, old_docker: Docker) -> None:
    run = built.image("--backend", "buildkit", "--builder", "farm", environment=old_docker.environment)
    assert run.code == 7
    assert "buildx" in run.result["error"]["message"]


def test_bytes_that_differ_from_the_lock_stop_the_build(built: Built, new_docker: Docker, tmp_path: Path) -> None:
    """The lock promises another hash than what the address has: the builder itself sees it."""
    lock = json.loads(built.example.pack.with_name("example.cpack.lock").read_text())
    wrong = sha256(tmp_path.name.encode()).hexdigest()
    pylock = re.sub(r'sha256 = "[0-9a-f]{64}"', f'sha256 = "{wrong}"', lock["python"]["pylock"], count=1)
    lock["python"] = {"pylock": pylock, "pylock_sha256": sha256(pylock.encode()).hexdigest()}
    changed = tmp_path / "changed.lock"
    changed.write_text(json.dumps(lock))
    run = built.image(
        "--backend", "buildkit", "--lock", changed, "--trust", "--output", f"oci:{tmp_path / 'layout'}",
        environment=new_docker.environment,
    )  # fmt: skip
    assert (run.code, run.result["error"]["type"]) == (5, "HashMismatch"), run.said
    assert wrong in run.result["error"]["message"]
    assert "aiohappyeyeballs" in run.result["error"]["message"]
    assert not (tmp_path / "layout").exists()


def test_a_package_without_a_wheel_is_built_by_the_builder_and_its_wheel_pinned_into_the_lock(
    built: Built, buildx: Docker, tmp_path: Path
) -> None:
    """In C, with the builder's compiler; the lock made without the builder afterwards finds the wheel in the store."""
    need.tool("apt-get")
    links = tmp_path / "links"
    links.mkdir()
    files = {
        "pyproject.toml": '[build-system]\nrequires = ["setuptools>=70"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "tinyext"\nversion = "1.0"\n',
        "setup.py": 'from setuptools import Extension, setup\nsetup(ext_modules=[Extension("tinyext", ["t.c"])])\n',
        "t.c": "#include <Python.h>\n"
        "static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }\n"
        'static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};\n'
        'static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "tinyext", NULL, -1, methods};\n'
        "PyMODINIT_FUNC PyInit_tinyext(void) { return PyModule_Create(&module); }\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: tinyext\nVersion: 1.0\n",
    }
    (links / "tinyext-1.0.tar.gz").write_bytes(sdist(files, "tinyext-1.0"))
    wanted = (built.example.pack, "--find-links", links, "--python-package", "tinyext==1.0", "-o", tmp_path / "x.lock")
    refused = built.call("lock", *wanted, environment=buildx.environment)
    assert (refused.code, refused.result["error"]["type"]) == (8, "NeedsTrust")
    run = built.call("lock", *wanted, "--trust", "--backend", "buildkit", environment=buildx.environment)
    assert run.code == 0, run.said
    (wheel,) = json.loads((tmp_path / "x.lock").read_text())["python"]["built"]
    assert re.fullmatch(r"tinyext-1\.0-cp3\d+-cp3\d+-linux_\w+\.whl", wheel["filename"])
    assert wheel["platform"] == json.loads((tmp_path / "x.lock").read_text())["platform"]
    (tmp_path / "x.lock").rename(tmp_path / "first.lock")
    again = built.call("lock", *wanted, environment={"CPACK_DOCKER": "/nonexistent"})
    assert again.code == 0, again.said
    assert (tmp_path / "x.lock").read_bytes() == (tmp_path / "first.lock").read_bytes()


def _with_a_file_more(archive: Path) -> None:
    """The node in *archive* with another file."""
    with tarfile.open(archive, "a") as tar:
        member = tarfile.TarInfo(f"{tar.getnames()[-1].rpartition('/')[0]}/changed.py")
        member.mode, member.size = 0o644, 6
        tar.addfile(member, io.BytesIO(b"A = 2\n"))


def _manifest(layout: Path) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(_blob(layout, index["manifests"][0]["digest"]))
    assert isinstance(manifest, dict)
    return manifest


def _config(layout: Path) -> bytes:
    return _blob(layout, _manifest(layout)["config"]["digest"])


def _layers(layout: Path) -> list[str]:
    return [layer["digest"] for layer in _manifest(layout)["layers"]]


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
