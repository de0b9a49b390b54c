"""A small image made here in a moment, with all that a restore may meet: ComfyUI and a node from git, a model, inputs,
two wheels. No system package and no index is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cpack_build
from cpack_build.cli.lockfile import lock_beside
from cpack_build.cli.options import documents_of
from cpack_build.cpack.reader import Pack, read_pack
from cpack_build.cpack.settings import Settings
from cpack_build.cpack.writer import write_pack
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store, stored_at
from cpack_build.image.build import Materials, build
from cpack_build.image.wheels import StoredWheel
from cpack_build.lock.models import lock_models
from cpack_build.lock.nodes import lock_trees, open_tree
from cpack_build.lock.resolve import this_platform
from cpack_build.lock.schema import DebInterpreter, Inputs, Lock, PythonEnvironment, ScratchBase
from cpack_build.lock.service import service_code
from cpack_build.lock.wheels import Wheel, pylock_text
from cpack_build.oci.layout import write_layout
from tests.example import WORKFLOW, system_python
from tests.fetch.repositories import make_repository
from tests.making import make_wheel

COMFYUI_URL = "https://github.com/Comfy-Org/ComfyUI"
NODE_URL = "https://nodes.example/team/fancy"
MODEL = "models/checkpoints/tiny.safetensors"
WEIGHTS = b"weights" * 5000
COMFYUI_FILES = {
    "main.py": "print('main')\n",
    "nodes.py": "NODES = {}\n",
    "folder_paths.py": "PATHS = {}\n",
    "comfyui_version.py": '__version__ = "0.3.64"\n',
    "comfy/model.py": "class Model:\n    pass\n",
    "custom_nodes/websocket_image_save.py": "x = 1\n",
    "models/checkpoints/put_checkpoints_here": "",
    "input/example.txt": "from ComfyUI\n",
}
NODE_FILES = {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n", "tools/run.py": "print('tool')\n", "ä/naïve.txt": "é\n"}


@dataclass(frozen=True)
class World:
    """The pack, its lock, the image's layout, and where on this machine the things that they name lie."""

    folder: Path
    pack: Path
    lock: Lock
    layout: Path
    mirrors: Mapping[str, str]
    wheels: Path
    built: tuple[StoredWheel, ...]
    image_id: str

    @property
    def lock_path(self) -> Path:
        return lock_beside(self.pack)


def make_world(
    folder: Path,
    *,
    snapshot: Mapping[str, Any] | None = None,
    other: Mapping[str, bytes] | None = None,
    node_files: Mapping[str, str] = NODE_FILES,
    node_links: Mapping[str, str] = MappingProxyType({}),
    node_submodules: Mapping[str, str] = MappingProxyType({}),
    mirrors: Mapping[str, str] = MappingProxyType({}),
    weights: bytes = WEIGHTS,
) -> World:
    """Make all of it in *folder*; *snapshot* replaces keys of the pack's, *other* are further files in the pack,
    *mirrors* further places of repositories."""
    comfyui = make_repository(folder / "git" / "ComfyUI", COMFYUI_FILES, date=1_600_000_000)
    node = make_repository(
        folder / "git" / "fancy", node_files, links=node_links, submodules=node_submodules, date=1_650_000_000
    )
    model = folder / "models" / MODEL.removeprefix("models/")
    model.parent.mkdir(parents=True)
    model.write_bytes(weights)
    document = {
        "comfyui": comfyui,
        "git_custom_nodes": {NODE_URL + ".git": {"hash": node, "disabled": False}},
        "cnr_custom_nodes": {},
        "file_custom_nodes": [],
        "pips": {"one==1.0": "", "two==2.0": ""},
        "python": system_python(),
        "models": [
            {
                "filename": MODEL,
                "size": len(weights),
                "atime": 0,
                "ctime": 0,
                "disabled": False,
                "sha256": hashlib.sha256(weights).hexdigest(),
                "source": {},
            }
        ],
        **(snapshot or {}),
    }
    pack = folder / "small.cpack.zip"
    inputs = {"sample.png": b"a picture", "sub/ümlaut.txt": b"text"}
    write_pack(
        pack, snapshot_document=document, workflow_api=WORKFLOW, workflow={"nodes": []}, inputs=inputs, other=other
    )
    mirrors = {COMFYUI_URL: str(folder / "git" / "ComfyUI"), NODE_URL: str(folder / "git" / "fancy"), **mirrors}
    store = Store(folder / "builder")
    one = {
        "one/__init__.py": b"VALUE = 1\n",
        "one-1.0.data/scripts/one-it": _SCRIPT,
        # as setuptools carries others within itself
        "one/_vendor/inner-3.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: inner\nVersion: 3.0\n",
        "one/_vendor/inner-3.0.dist-info/RECORD": b"inner-3.0.dist-info/INSTALLER,sha256=5hhM4Q,4\n",
    }
    two = {"two.py": b"VALUE = 2\n\n\ndef main():\n    print(VALUE)\n", "two-2.0.dist-info/entry_points.txt": _POINTS}
    wheels = (
        make_wheel(folder / "wheels", "one", one),
        make_wheel(folder / "wheels", "two", two, version="2.0"),
    )
    read = read_pack(pack)
    python = environment_of(wheels, system_python())
    lock = lock_of(read, model, python=python, store=store, mirrors=mirrors)
    lock_beside(pack).write_bytes(lock.to_bytes())
    layout = folder / "small.oci"
    with make_image(read, lock, model, wheels=wheels, store=store, mirrors=mirrors) as image:
        write_layout(image, layout)
        return World(folder, pack, lock, layout, mirrors, folder / "wheels", wheels, image.id)


_SCRIPT = b"#!python\nimport one\nprint(one.VALUE)\n"
_POINTS = b"[console_scripts]\ntwo-it = two:main\n"


def lock_of(pack: Pack, model: Path, *, python: PythonEnvironment, store: Store, mirrors: Mapping[str, str]) -> Lock:
    """The lock of *pack*, over nothing and without a system."""
    sources = Sources(Mirrors(mirrors))
    models, missing = lock_models(pack.snapshot.models, folders=[str(model.parents[1])], store=store, sources=sources)
    assert not missing, missing
    trees = lock_trees(pack.snapshot, pack=pack, store=store, sources=sources)
    assert not trees.missing, trees.missing
    assert trees.comfyui is not None
    version = system_python()
    return Lock(
        builder=cpack_build.__version__,
        inputs=Inputs(pack=pack.content_sha256, settings=Settings().digest()),
        source_date_epoch=1_650_000_000,
        platform=this_platform(),
        base=ScratchBase(),
        system=(),
        interpreter=DebInterpreter(version=version, path=f"/usr/bin/python{version}", packages=()),
        service=environment_of((), version),
        service_code=service_code(),
        python=python,
        comfyui=trees.comfyui,
        nodes=trees.nodes,
        registry_nodes=trees.registry_nodes,
        local_nodes=trees.local_nodes,
        models=tuple(models),
        environment={},
        comfyui_args=(),
    )


def make_image(
    pack: Pack, lock: Lock, model: Path, *,
    wheels: tuple[StoredWheel, ...], store: Store, mirrors: Mapping[str, str],
) -> Any:  # fmt: skip
    """The image of *lock*, as a context."""
    sources = Sources(Mirrors(mirrors))
    materials = Materials(
        base=None,
        system=(),
        interpreter_debs=(),
        interpreter_archive=None,
        service_wheels=(),
        service_code={"cpack_build/__init__.py": b""},
        wheels=wheels,
        comfyui=open_tree(lock.comfyui, pack, store=store, sources=sources),
        nodes=tuple(open_tree(pin, pack, store=store, sources=sources) for pin in lock.custom_nodes),
        models={item.sha256: stored_at(model.parents[2] / item.path, item.sha256) for item in lock.models},
        documents=documents_of(pack, [lock]),
    )
    return build(lock, materials, store=store)


def environment_of(wheels: tuple[StoredWheel, ...], python: str) -> PythonEnvironment:
    """The environment of exactly *wheels*, from a local folder."""
    listed = [Wheel(item.name, item.version, item.filename, None, item.sha256, item.size) for item in wheels]
    text = pylock_text(listed, python_version=python)
    return PythonEnvironment(pylock=text, pylock_sha256=hashlib.sha256(text.encode()).hexdigest())
