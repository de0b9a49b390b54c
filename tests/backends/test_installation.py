"""What differs between two roots is told without the script's help, and what a builder gives back is not believed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cpack_build.backends import inside_install
from cpack_build.backends.installation import _file, _read, _require_own, _requirement
from cpack_build.backends.installation import _Left as Left
from cpack_build.backends.installation import _Package as Package
from cpack_build.errors import Unresolvable, UnsafeInput
from cpack_build.lock.schema import LocalTree

PIN = LocalTree(name="Node", tree_sha256="a" * 64)
SITE = "opt/comfyui/lib/python3.11/site-packages"


def _write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def _package(name: str, version: str, module: str, text: str = "1") -> dict[str, str]:
    info = f"{SITE}/{name}-{version}.dist-info"
    return {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: no\n",
        f"{info}/RECORD": f"{module},sha256=x,1\n../../../bin/{name},,\n{info.rpartition('/')[2]}/METADATA,,\n"
        f"{info.rpartition('/')[2]}/RECORD,,\n",
        f"{SITE}/{module}": text,
    }


def _compared(
    tmp_path: Path, before: dict[str, str], after: dict[str, str], *, links: dict[str, str] | None = None
) -> Any:
    one, other, out = tmp_path / "before", tmp_path / "after", tmp_path / "out"
    for folder in (one, other):
        folder.mkdir()
    _write(one, before)
    _write(other, after)
    for path, target in (links or {}).items():
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).symlink_to(target)
    inside_install.compare(
        str(one), str(other), "app/comfyui/custom_nodes/Node", "app/comfyui/models", "opt/comfyui", str(out)
    )
    return json.loads((out / "changes.json").read_text())


NODE = "app/comfyui/custom_nodes/Node"


def test_the_whole_node_is_told_but_for_git_and_bytecode(tmp_path: Path) -> None:
    told = _compared(
        tmp_path, {f"{NODE}/a.py": "a", f"{NODE}/gone.py": ""},
        {f"{NODE}/a.py": "b", f"{NODE}/sub/.git/config": "", f"{NODE}/__pycache__/a.pyc": "", "tmp/x": "", "dev/y": ""},
        links={f"{NODE}/link": "a.py"},
    )  # fmt: skip
    assert [(one["path"], one["kind"]) for one in told["tree"]] == [("a.py", "file"), ("link", "link")]
    assert (tmp_path / "out/files/1").read_text() == "b"
    assert told["elsewhere"] == []


def test_models_are_told_by_their_path_and_what_lies_elsewhere_by_name(tmp_path: Path) -> None:
    before = {"app/comfyui/main.py": "a", "app/comfyui/models/old.pt": "1", "usr/lib/x": "same"}
    after = {"app/comfyui/main.py": "b", "app/comfyui/models/new/m.pt": "2", "usr/lib/x": "same", "etc/cron": ""}
    told = _compared(tmp_path, before, after, links={"app/comfyui/models/link.pt": "/etc/passwd"})
    assert [one["path"] for one in told["models"]] == ["models/new/m.pt"]
    assert told["elsewhere"] == [
        "/app/comfyui/main.py", "/app/comfyui/models/link.pt", "removed /app/comfyui/models/old.pt", "/etc/cron",
    ]  # fmt: skip


def test_a_file_with_its_old_time_and_length_is_seen_to_differ(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    before, after = {"etc/a": "one"}, {"etc/a": "two"}
    _write(tmp_path / "after", after)
    stamp = (tmp_path / "after/etc/a").stat().st_mtime_ns
    _write(tmp_path / "before", before)
    os.utime(tmp_path / "before/etc/a", ns=(stamp, stamp))
    inside_install.compare(
        str(tmp_path / "before"), str(tmp_path / "after"), NODE, "m", "opt/comfyui", str(tmp_path / "out")
    )
    assert json.loads((tmp_path / "out/changes.json").read_text())["elsewhere"] == ["/etc/a"]


def test_packages_are_told_by_version_and_a_file_that_is_no_package_s_by_name(tmp_path: Path) -> None:
    before = {**_package("kept", "1", "kept.py"), **_package("moved", "1", "moved.py"), **_package("left", "1", "l.py")}
    after = {
        **_package("kept", "1", "kept.py", "changed"),
        **_package("moved", "2", "moved.py", "2"),
        **_package("New_Name", "3", "new.py"),
        f"{SITE}/stray.so": "",
        "opt/comfyui/bin/New_Name": "",
    }
    told = _compared(tmp_path, before, after)
    assert [(one["name"], one["version"]) for one in told["packages"]] == [("moved", "2"), ("New_Name", "3")]
    assert told["removed"] == ["left"]
    assert told["elsewhere"] == [f"/{SITE}/kept.py", f"/{SITE}/stray.so"]


def test_programs_and_notes_that_no_package_has_are_named(tmp_path: Path) -> None:
    before = {**_package("torch", "1", "torch.py"), "opt/comfyui/bin/python": "real", "opt/comfyui/bin/activate": ""}
    info = f"{SITE}/torch-1.dist-info"
    after = {
        **_package("torch", "1", "torch.py"), "opt/comfyui/bin/python": "other", "opt/comfyui/bin/ffmpeg": "",
        f"{info}/evil.bin": "", f"{info}/INSTALLER": "pip", "app/x.dist-info/a": "",
    }  # fmt: skip
    assert _compared(tmp_path, before, after)["elsewhere"] == [
        "/app/x.dist-info/a", "removed /opt/comfyui/bin/activate", "/opt/comfyui/bin/ffmpeg", "/opt/comfyui/bin/python",
        f"/{info}/evil.bin",
    ]  # fmt: skip


def test_a_home_folder_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "away/passwd").write_text("x")
    assert _compared(tmp_path, {}, {}, links={"cpack-home": str(tmp_path / "away")})["lost"] == []


def test_a_script_cannot_read_the_step_s_environment_of_the_first_process(tmp_path: Path) -> None:
    program = tmp_path / "inside_install.py"
    home = str(tmp_path / "home")
    program.write_text(Path(inside_install.__file__).read_text("utf-8").replace("/cpack-home", home), "utf-8")
    node = tmp_path / "Node"
    node.mkdir()
    (node / "install.py").write_text(
        "import os, pathlib\n"
        "first = pathlib.Path(f'/proc/{os.getppid()}/environ').read_bytes()\n"
        "pathlib.Path('seen').write_bytes(first + b'|' + repr(dict(os.environ)).encode())\n"
    )
    prefix = tmp_path / "venv"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/python").symlink_to(sys.executable)
    secret = "http://user:Pr0xyPassw0rd@proxy.example"
    environment = dict.fromkeys(("FTP_PROXY", "http_proxy", "ALL_PROXY", "HF_TOKEN"), secret)
    arguments = [str(node), str(prefix), str(tmp_path), "60", "", "{}"]
    subprocess.run(
        [sys.executable, "-B", "-S", "-s", str(program), "start", *arguments],
        env={**environment, "HTTPS_PROXY": "http://proxy.example:3128"}, check=True, timeout=60,
    )  # fmt: skip
    seen = (node / "seen").read_text()
    assert "Pr0xyPassw0rd" not in seen
    assert seen.count("http://proxy.example:3128") == 2, "one without a password is of use to pip"


def test_what_is_left_in_the_home_folder_is_told(tmp_path: Path) -> None:
    told = _compared(tmp_path, {}, {"cpack-home/.cache/hub/model": "x"})
    assert told["lost"] == [".cache/hub/model"]


@pytest.mark.parametrize(
    ("direct", "requirement"),
    [
        ("", "some-thing==1.0+cpu"),
        ('{"url": "https://x.example/a.whl", "archive_info": {}}', "some-thing @ https://x.example/a.whl"),
        (
            '{"url": "https://x.example/r.git", "vcs_info": {"vcs": "git", "commit_id": "%s"}, "subdirectory": "d"}'
            % ("a" * 40),
            "some-thing @ git+https://x.example/r.git@" + "a" * 40 + "#subdirectory=d",
        ),
    ],
)
def test_a_package_is_asked_for_as_it_was_installed(direct: str, requirement: str) -> None:
    assert _requirement(Package(name="Some_Thing", version="1.0+cpu", direct=direct), PIN) == requirement


@pytest.mark.parametrize(
    ("name", "version", "direct"),
    [
        ("x", "1", '{"url": "file:///app/comfyui/custom_nodes/Node/lib", "dir_info": {}}'),
        ("x", "1", '{"url": "https://user:secret@x.example/a.whl"}'),
        ("x", "1", "{"),
        ("x", "1", '{"url": "https://x.example/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc def"}}'),
        ("x", "1", '{"url": "https://x.example/a.whl", "subdirectory": "a\\n--index-url=x"}'),
        ("x @ https://evil.example/x.whl", "1", ""),
        ("x", "1; python_version>'3'", ""),
    ],
)
def test_a_package_that_nobody_else_could_have_is_named(name: str, version: str, direct: str) -> None:
    with pytest.raises(Unresolvable, match=r"install.py of Node installs .*cannot be pinned") as caught:
        _requirement(Package(name=name, version=version, direct=direct), PIN)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"tree": 1}', "\0", "link", "missing"])
def test_a_list_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    if text == "link":
        (tmp_path / "changes.json").symlink_to("elsewhere")
    elif text != "missing":
        (tmp_path / "changes.json").write_text(text)
    with pytest.raises(UnsafeInput, match="Node is no list"):
        _read(tmp_path, PIN)


@pytest.mark.parametrize("kind", ["link", "linked folder", "missing"])
def test_a_file_that_is_none_is_not_taken(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "files").mkdir()
    if kind == "link":
        (tmp_path / "files/1").symlink_to("../secret")
    if kind == "linked folder":
        (tmp_path / "secret").rename(tmp_path / "1")
        shutil.rmtree(tmp_path / "files")
        (tmp_path / "files").symlink_to(tmp_path)
    with pytest.raises(UnsafeInput, match=r"no file for 'a.py' of Node"):
        _file(Left(path="a.py", executable=False, kind="file", file=1), tmp_path, PIN)


def test_more_than_can_be_shown_is_counted() -> None:
    changes = _changes(elsewhere=["/etc/a"], further=7, removed=["torch"])
    with pytest.raises(UnsafeInput, match=r"(?s)/etc/a.*removed the package torch.*and 7 more"):
        _require_own(changes, PIN)
    _require_own(_changes(), PIN)


def _changes(**more: Any) -> Any:
    from cpack_build.backends.installation import _Changes

    plain: dict[str, Any] = {"tree": [], "models": [], "elsewhere": [], "further": 0, "packages": [], "removed": []}
    return _Changes(**{**plain, "lost": [], **more})
