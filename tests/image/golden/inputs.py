"""Makes the files in ``inputs/`` and the lock that pins them. Each has something that a byte rule is about: names that
are long or not ASCII, modes, links, scripts, entry points, a path that two wheels have."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from cpack_build.image.budget import HEAVY
from cpack_build.lock.form import in_form
from cpack_build.lock.schema import (
    Deb,
    DebInterpreter,
    GitTree,
    Inputs,
    Lock,
    Model,
    PythonEnvironment,
    ScratchBase,
    ServiceCode,
)
from cpack_build.lock.wheels import Wheel, pylock_text
from cpack_build.oci.modellayer import hash_model
from tests.image.golden.building import INPUTS, LOCK, SERVICE_CODE, read_trees
from tests.image.test_loader import elf
from tests.making import make_deb, member, record_hash

__all__ = ["make_inputs"]

_LONG = "deep/" * 30 + "f" * 120 + ".txt"
_WHEELS: dict[str, dict[str, bytes]] = {
    "tool": {
        "tool/__init__.py": b"def main():\n    return 0\n",
        "tool/größe.txt": b"nicht ASCII\n",
        f"tool/{_LONG}": b"a path for which ustar has no room\n",
        "tool/run.sh": b"#!/bin/sh\n",
        "shared/notice.txt": b"tool's\n",
        "tool-1.0.data/scripts/old-tool": b"#!python\nprint('old')\n",
        "tool-1.0.data/data/share/tool/notes.txt": b"notes",
        "tool-1.0.data/headers/tool.h": b"#define TOOL 1\n",
        "tool-1.0.data/purelib/tool_more.py": b"MORE = 1\n",
        "tool-1.0.dist-info/entry_points.txt": b"[console_scripts]\nnew-tool = tool:main\n",
    },
    "zebra": {"zebra.py": b"STRIPES = 7\n", "shared/notice.txt": b"zebra's\n", "space/one.py": b"ONE = 1\n"},
    "heavy": {"heavy/__init__.py": b"", "heavy/lib.so": bytes(range(256)) * 20},
    "served": {"served.py": b"import sys\n"},
}
_CONTROL = """\
Package: {name}
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@x.example>
Description: made for a test
"""
_POSTINST = "#!/bin/sh\nupdate-alternatives --install /usr/bin/pager pager /bin/dash 50\n"
_DEBS = {
    "base": [
        (member("./", tarfile.DIRTYPE, mode=0o755), b""),
        (member("./bin/", tarfile.DIRTYPE, mode=0o755), b""),
        (member("./bin/dash", mode=0o755), b"#!dash\n"),
        (member("./bin/su", mode=0o4755), b"#!su\n"),
        (member("./etc/größe"), b"1\n"),
        (member("./usr/lib/libtiny.so.1.0"), elf("libtiny.so.1")),
        (member("./usr/lib/libtiny.so.1", tarfile.SYMTYPE, link="libtiny.so.1.0"), b""),
        (member("./usr/share/base-passwd/passwd.master"), b"root:*:0:0:root:/root:/bin/bash\n"),
        (member("./usr/share/base-passwd/group.master"), b"root:*:0:\n"),
        (member("./usr/share/base-files/nsswitch.conf"), b"passwd: files\n"),
        (member("./usr/share/ca-certificates/x/b.crt"), b"B\n\n"),
        (member("./usr/share/ca-certificates/x/a.crt"), b"A"),
        (member("./usr/share/z", mode=0o640), b"linked\n"),
        (member("./usr/share/a", tarfile.LNKTYPE, link="./usr/share/z"), b""),
        (member("./var/spool/", tarfile.DIRTYPE, mode=0o1777), b""),
    ],
    "python3.11-minimal": [
        (member("./usr/bin/python3.11", mode=0o755), b"no ELF either\n"),
        (member("./usr/lib/python3.11/os.py"), b"name = 'posix'\n"),
    ],
}


def make_inputs() -> None:
    """Write ``inputs/`` and ``cpack.lock``."""
    INPUTS.mkdir(exist_ok=True)
    wheels = {name: _wheel(name, files) for name, files in _WHEELS.items()}
    debs = {}
    for name, members in _DEBS.items():
        path = make_deb(INPUTS / f"{name}_1.0_all.deb", _CONTROL.format(name=name), members, postinst=_POSTINST)
        debs[name] = Deb(
            name=name, version="1.0", architecture="all", source="python3.11" if "python" in name else name,
            url=f"https://deb.example/{path.name}", sha256=_sha256(path), size=path.stat().st_size,
        )  # fmt: skip
    _archive(INPUTS / "python.tar")
    model = INPUTS / "tiny.safetensors"
    model.write_bytes(b"weights " * 625 + b"odd")
    sha256, size = _sha256(model), model.stat().st_size
    trees = read_trees()
    pins = [
        GitTree(
            name=name, url=f"https://code.example/{name}", commit=commit, tree_sha256=tree_sha256,
            committed_at=1_700_000_000,
        )
        for name, (commit, tree_sha256) in trees.items()
    ]  # fmt: skip
    zeros = "0" * 64
    lock = Lock(
        builder="0",
        inputs=Inputs(pack=zeros, settings=zeros),
        source_date_epoch=1_700_000_000,
        platform="linux/amd64",
        base=ScratchBase(),
        system=(debs["base"],),
        interpreter=DebInterpreter(
            version="3.11", path="/usr/bin/python3.11", packages=(debs["python3.11-minimal"],)
        ),
        service=_environment(wheels["served"]),
        service_code=ServiceCode(version="0", tree_sha256=hashlib.sha256(repr(SERVICE_CODE).encode()).hexdigest()),
        python=_environment(*(wheels[name] for name in ("heavy", "tool", "zebra"))),
        comfyui=pins[0],
        nodes=tuple(pins[1:]),
        models=(
            Model(
                path="models/checkpoints/größe/tiny.safetensors", sha256=sha256, size=size,
                layer_digest=hash_model(model, sha256, size), sources=(),
            ),
        ),
        environment={"GREETING": "größe"},
        comfyui_args=("--cpu",),
    )  # fmt: skip
    LOCK.write_bytes(in_form(lock).carried.to_bytes())


def _environment(*wheels: Wheel) -> PythonEnvironment:
    text = pylock_text(wheels, python_version="3.11")
    return PythonEnvironment(pylock=text, pylock_sha256=hashlib.sha256(text.encode()).hexdigest())


def _wheel(name: str, files: Mapping[str, bytes]) -> Wheel:
    info = f"{name}-1.0.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{path},{record_hash(data)},{len(data)}" for path, data in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    path = INPUTS / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for filename, data in content.items():
            entry = zipfile.ZipInfo(filename, (2020, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100755 if filename.endswith(".sh") else 0o100644) << 16
            archive.writestr(entry, data)
    size = HEAVY if name == "heavy" else path.stat().st_size  # it says so, and gets a layer of its own
    return Wheel(name, "1.0", path.name, None, _sha256(path), size)


def _archive(path: Path) -> None:
    """A standalone Python: its folder, a program, a link to it, a hard link."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in [
            (member("python/", tarfile.DIRTYPE, mode=0o755), b""),
            (member("python/lib/python3.11/os.py"), b"name = 'posix'\n"),
            (member("python/bin/python3.11", mode=0o755), b"no ELF\n"),
            (member("python/bin/python3", tarfile.SYMTYPE, link="python3.11"), b""),
            (member("python/bin/a", tarfile.LNKTYPE, link="python/bin/python3.11"), b""),
        ]:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
