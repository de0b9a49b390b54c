"""Wheels are unpacked as an installer would install them, and lying ones are refused by name."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from uv import find_uv_bin

from cpack_build.errors import BadInput, HashMismatch, UnsafeInput
from cpack_build.fetch.store import Store
from cpack_build.image import wheels
from cpack_build.image.overlaps import overlaps
from cpack_build.image.wheels import Environment, environment_entries, wheel_layer
from cpack_build.oci import tar
from tests.making import make_wheel, read_back, record_hash

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
FILES = {
    "tool/__init__.py": b"def main():\n    return 0\n",
    "tool/data.bin": bytes(range(256)),
    "tool-1.0.data/scripts/old-tool": b"#!python\nprint('old')\n",
    "tool-1.0.data/data/share/tool/notes.txt": b"notes",
    "tool-1.0.data/headers/tool.h": b"#define TOOL 1\n",
    "tool-1.0.data/purelib/tool_more.py": b"MORE = 1\n",
    "tool-1.0.dist-info/entry_points.txt": b"[console_scripts]\nnew-tool = tool:main\n",
}


def environment(prefix: str = "opt/comfyui") -> Environment:
    return Environment(prefix, MINOR, "/usr/bin/python3")


def names_and_sizes(record: bytes) -> dict[str, str]:
    return {row[0]: row[1] for row in csv.reader(io.StringIO(record.decode()))}


def test_a_wheel_is_laid_out_as_uv_installs_it(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "tool", FILES, executable=["tool/data.bin"])
    venv = tmp_path / "venv"
    uv = find_uv_bin()
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, venv], check=True)
    install = [uv, "pip", "install", "-q", "--offline", "--no-deps", "--python", venv / "bin/python", wheel.path]
    subprocess.run(install, check=True)
    before = {"bin/python", "bin/python3", f"bin/python{MINOR}", "pyvenv.cfg"}
    theirs = {
        str(path.relative_to(venv))
        for path in venv.rglob("*")
        if path.is_file() and ("tool" in str(path.relative_to(venv)))
    }

    members = read_back(wheel_layer("wheel", "tool", environment(), [wheel]).entries())
    ours = {name.removeprefix("opt/comfyui/") for name, info in members.items() if info.kind == "file"} - before
    # uv notes where a local wheel came from and that it was asked for; a wheel of an image has neither.
    notes = {"direct_url.json", "REQUESTED", "uv_cache.json"}
    assert {name for name in theirs - ours if name.rpartition("/")[2] not in notes} == set()
    assert ours - theirs == set()

    site = f"lib/python{MINOR}/site-packages"
    for name in ours - {"bin/new-tool", "bin/old-tool"}:
        if not name.endswith(("RECORD", "INSTALLER")):
            assert members[f"opt/comfyui/{name}"].data == (venv / name).read_bytes(), name
    assert members["opt/comfyui/bin/old-tool"].data == b"#!/opt/comfyui/bin/python\nprint('old')\n"
    assert members["opt/comfyui/bin/new-tool"].mode == 0o755
    assert members[f"opt/comfyui/{site}/tool/data.bin"].mode == 0o755
    assert members[f"opt/comfyui/{site}/tool/__init__.py"].mode == 0o644


def test_wheels_that_share_a_namespace_are_all_imported_from_it(tmp_path: Path) -> None:
    """PEP 420: the folder is several wheels', and none has an ``__init__.py`` in it."""
    parts = [make_wheel(tmp_path, name, {f"team/{name}.py": b"NAME = __name__\n"}) for name in ("alpha", "beta")]
    members = read_back(wheel_layer("wheels", "wheels", environment(), parts).entries())
    site = f"opt/comfyui/lib/python{MINOR}/site-packages"
    for name in ("alpha", "beta"):
        path = tmp_path / "site" / "team" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(members[f"{site}/team/{name}.py"].data)
    assert f"{site}/team/__init__.py" not in members
    program = "import team.alpha, team.beta; print(team.alpha.NAME, team.beta.NAME)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path / "site", check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["team.alpha", "team.beta"]


def test_record_lists_every_installed_file_with_its_hash(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "tool", FILES)
    members = read_back(wheel_layer("wheel", "tool", environment(), [wheel]).entries())
    site = f"opt/comfyui/lib/python{MINOR}/site-packages/"
    record = names_and_sizes(members[site + "tool-1.0.dist-info/RECORD"].data)
    installed = {name: info for name, info in members.items() if info.kind == "file"}
    assert len(record) == len(installed)
    for name, digest in record.items():
        path = site + name if not name.startswith("../../../") else "opt/comfyui/" + name.removeprefix("../../../")
        if not name.endswith("RECORD"):
            assert digest == record_hash(installed[path].data), name


def test_the_same_wheels_in_any_order_make_the_same_layer(tmp_path: Path) -> None:
    wheels = [make_wheel(tmp_path / name, name, {f"{name}/__init__.py": b""}) for name in ("one", "two", "three")]
    layers = [wheel_layer("wheels", "all", environment(), order) for order in (wheels, wheels[::-1])]
    assert layers[0].key == layers[1].key
    assert list(read_back(layers[0].entries())) == list(read_back(layers[1].entries()))


def test_of_two_wheels_with_one_path_the_later_name_has_it(tmp_path: Path) -> None:
    wheels = [make_wheel(tmp_path, name, {"shared/__init__.py": name.encode()}) for name in ("alpha", "beta")]
    members = read_back(wheel_layer("wheels", "all", environment(), wheels[::-1]).entries())
    path = f"opt/comfyui/lib/python{MINOR}/site-packages/shared/__init__.py"
    assert members[path].data == b"beta"


def test_two_wheels_that_fight_over_a_path_are_told_with_the_winner_once_and_again(tmp_path: Path) -> None:
    same = {"space/__init__.py": b""}
    alpha = make_wheel(tmp_path, "alpha", {**same, "shared/a.py": b"1", "shared/b.py": b"1"})
    script = b"[console_scripts]\ntool = %s:main\n"
    beta = make_wheel(tmp_path, "beta", {**same, "shared/a.py": b"2", "shared/b.py": b"2",
                                         "beta-1.0.dist-info/entry_points.txt": script % b"beta"})  # fmt: skip
    heavy = make_wheel(tmp_path, "zeta", {**same, "zeta-1.0.dist-info/entry_points.txt": script % b"zeta"})
    expected = [
        "alpha-1.0-py3-none-any.whl and beta-1.0-py3-none-any.whl both have shared/a.py and 1 more files, and they "
        "differ: the image has those of beta-1.0-py3-none-any.whl.",
        "zeta-1.0-py3-none-any.whl and beta-1.0-py3-none-any.whl both have bin/tool, and they differ: the image has "
        "those of beta-1.0-py3-none-any.whl.",
    ]
    store = Store(tmp_path / "store")
    assert overlaps([heavy, beta, alpha], own={heavy.sha256}, store=store) == expected
    for wheel in (alpha, beta, heavy):
        wheel.path.unlink()
    assert overlaps([alpha, heavy, beta], own={heavy.sha256}, store=store) == expected


@pytest.mark.parametrize("names", [("alpha", "beta"), ("beta", "alpha")])
def test_a_file_of_one_wheel_where_another_has_a_folder_is_refused_with_both(
    names: tuple[str, str], tmp_path: Path
) -> None:
    file = make_wheel(tmp_path, names[0], {"shared": b"1"})
    folder = make_wheel(tmp_path, names[1], {"shared/deep/a.py": b"1"})
    with pytest.raises(BadInput, match=rf"{names[1]}-1\.0.* has .*shared/deep/a\.py where {names[0]}-1\.0.* has"):
        read_back(wheel_layer("wheels", "all", environment(), [file, folder]).entries())


def test_a_file_that_differs_from_record_is_a_hash_mismatch(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "liar", {"liar.py": b"evil"}, record={"liar.py": record_hash(b"good")})
    with pytest.raises(HashMismatch, match=r"liar\.py in liar-1\.0"):
        read_back(wheel_layer("wheel", "liar", environment(), [wheel]).entries())


@pytest.mark.parametrize("hashed", ["", "shake_128=AAAA", "nonsense=AAAA", "sha256", "sha256=\u00fc"])
def test_a_record_without_a_hash_that_can_be_checked_is_refused_by_name(hashed: str, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "liar", {"liar.py": b"evil"}, record={"liar.py": hashed})
    with pytest.raises((BadInput, HashMismatch), match=r"liar-1\.0"):
        read_back(wheel_layer("wheel", "liar", environment(), [wheel]).entries())


def test_what_record_lists_and_the_wheel_lacks_is_not_in_the_new_record(tmp_path: Path) -> None:
    """Nor is a size believed that it tells: uninstalling by RECORD would remove what is another's."""
    wheel = make_wheel(tmp_path, "liar", {"liar.py": b"x"})
    lines = [f"../../../bin/python,{record_hash(b'')},0", f"ghost.py,{record_hash(b'')},0"]
    with zipfile.ZipFile(wheel.path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    honest = files["liar-1.0.dist-info/RECORD"].decode()
    files["liar-1.0.dist-info/RECORD"] = (honest.replace(",1\n", ",999\n") + "\n".join([*lines, ""])).encode()
    with zipfile.ZipFile(wheel.path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    members = read_back(wheel_layer("wheel", "liar", environment(), [wheel]).entries())
    record = members[f"opt/comfyui/lib/python{MINOR}/site-packages/liar-1.0.dist-info/RECORD"].data.decode()
    assert "ghost.py" not in record
    assert "bin/python" not in record
    assert f"liar.py,{record_hash(b'x')},1\n" in record


def test_a_file_that_record_does_not_list_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "liar", {"liar.py": b"x"})
    with zipfile.ZipFile(wheel.path, "a") as archive:
        archive.writestr("stowaway.py", b"evil")
    with pytest.raises(BadInput, match=r"RECORD does not list stowaway\.py"):
        read_back(wheel_layer("wheel", "liar", environment(), [wheel]).entries())


@pytest.mark.parametrize("name", ["../evil.py", "/etc/cron.d/evil", "a/../../evil.py", "liar-1.0.data/scripts/../../x"])
def test_a_wheel_whose_names_leave_its_place_is_refused(tmp_path: Path, name: str) -> None:
    wheel = make_wheel(tmp_path, "liar", {name: b"evil"})
    with pytest.raises(UnsafeInput, match="does not stay in its place"):
        read_back(wheel_layer("wheel", "liar", environment(), [wheel]).entries())


def test_a_wheel_with_a_symlink_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "liar", {"ok.py": b""})
    with zipfile.ZipFile(wheel.path, "a") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafeInput, match="link or device"):
        read_back(wheel_layer("wheel", "liar", environment(), [wheel]).entries())


def test_a_truncated_wheel_is_refused_by_name(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "short", {"a.py": b"x" * 1000})
    wheel.path.write_bytes(wheel.path.read_bytes()[:200])
    with pytest.raises(BadInput, match=r"short-1\.0-py3-none-any\.whl cannot be read"):
        read_back(wheel_layer("wheel", "short", environment(), [wheel]).entries())


def test_a_wheel_with_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    """It may be whole by its hash and damaged all the same: whoever made it made it so."""
    wheel = make_wheel(tmp_path, "broken", {"a.py": b"x = 1\n" * 1000})
    data = bytearray(wheel.path.read_bytes())
    with zipfile.ZipFile(wheel.path) as archive:
        info = archive.getinfo("a.py")
    start = info.header_offset + 30 + len(info.filename)
    data[start : start + info.compress_size] = b"\xff" * info.compress_size
    wheel.path.write_bytes(data)
    with pytest.raises(BadInput, match=r"broken-1\.0.*a\.py cannot be read"):
        read_back(wheel_layer("wheel", "broken", environment(), [wheel]).entries())


def test_a_file_shorter_than_the_zip_says_is_refused_by_name(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "short", {"a.bin": b"x" * 1000})
    data = bytearray(wheel.path.read_bytes())
    place = data.rindex(b"PK\1\2", 0, data.rindex(b"a.bin")) + 24  # APPNOTE 4.3.12: the central directory's size
    assert int.from_bytes(data[place : place + 4], "little") == 1000
    data[place : place + 4] = (2000).to_bytes(4, "little")
    wheel.path.write_bytes(data)
    with pytest.raises(BadInput, match=r"short-1\.0.*a\.bin"):
        read_back(wheel_layer("wheel", "short", environment(), [wheel]).entries())


def test_a_wheel_with_a_damaged_document_is_refused_by_name(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "broken", {"broken-1.0.dist-info/entry_points.txt": b"# \n" * 1000})
    for name in ("RECORD", "WHEEL", "entry_points.txt"):
        data = bytearray(wheel.path.read_bytes())
        with zipfile.ZipFile(wheel.path) as archive:
            info = archive.getinfo(f"broken-1.0.dist-info/{name}")
        start = info.header_offset + 30 + len(info.filename)
        data[start : start + info.compress_size] = b"\xff" * info.compress_size
        damaged = tmp_path / f"{name}.whl"
        damaged.write_bytes(data)
        with pytest.raises(BadInput, match=rf"broken-1\.0.*{name}"):
            read_back(wheel_layer("wheel", "b", environment(), [replace(wheel, path=damaged)]).entries())


@pytest.mark.parametrize("points", [b"[console_scripts]\ntool = tool\n", b"[console_scripts]\n\xff = a:b\n"])
def test_entry_points_that_name_nothing_to_call_are_refused_by_name(tmp_path: Path, points: bytes) -> None:
    wheel = make_wheel(tmp_path, "odd", {"odd-1.0.dist-info/entry_points.txt": points})
    with pytest.raises(BadInput, match=r"odd-1\.0.*entry_points\.txt"):
        read_back(wheel_layer("wheel", "odd", environment(), [wheel]).entries())


@pytest.mark.parametrize("name", ["RECORD", "WHEEL", "entry_points.txt"])
def test_a_document_that_would_fill_the_memory_is_refused_unread(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "_DOCUMENT_LIMIT", 1000)
    files = {f"odd-1.0.dist-info/{name}": b"# " + b"x" * 2000} if name == "entry_points.txt" else {}
    files |= {f"{number}.py": b"" for number in range(40)} if name == "RECORD" else {}
    wheel = make_wheel(tmp_path, "odd", files)
    if name == "WHEEL":
        monkeypatch.setattr(wheels, "_DOCUMENT_LIMIT", 10)
    with pytest.raises(BadInput, match=rf"{name} .*larger than"):
        read_back(wheel_layer("wheel", "odd", environment(), [wheel]).entries())


def test_the_environment_runs_its_packages(tmp_path: Path) -> None:
    """The folders that a layer makes are a virtual environment to the interpreter that they name."""
    wheel = make_wheel(tmp_path, "tool", FILES)
    env = Environment("env", MINOR, sys.executable)
    layer = wheel_layer("wheels", "all", env, [wheel], extra=environment_entries(env))
    for name, info in read_back(layer.entries()).items():
        path = tmp_path / "root" / name
        if info.kind == "directory":
            path.mkdir(parents=True, exist_ok=True)
        elif info.kind == "symlink":
            path.symlink_to(info.target)
        else:
            path.write_bytes(info.data)
            path.chmod(info.mode)
    code = "import sys, tool, tool_more; print(sys.prefix)"
    python = tmp_path / "root/env/bin/python"
    out = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(tmp_path / "root/env")


def test_golden_wheel_layer(tmp_path: Path) -> None:
    """Bytes are a promise. If this fails: a bug was made, fix it; or a rule was changed, which is a new revision."""
    wheel = make_wheel(tmp_path, "tool", FILES)
    layer = wheel_layer("wheel", "tool", Environment("opt/comfyui", "3.11", "/usr/bin/python3.11"), [wheel])
    assert (
        hashlib.sha256(b"".join(tar.stream(layer.entries()))).hexdigest()
        == "8bdd406017ebfe874e7559d8f075fcf82e033fafa1093438d12c857da3f93207"
    )
