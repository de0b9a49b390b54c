"""What systems do with files: here for real, and on a Windows that is made up, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpack_build import filesystem
from cpack_build.errors import UsageError

HOLD = """
import os, sys
from cpack_build import filesystem
handle = filesystem.open_file(sys.argv[1], os.O_RDWR | os.O_CREAT)
filesystem.lock(handle, shared=sys.argv[2] == "shared")
print("held", flush=True)
sys.stdin.read()
"""
WINDOWS = "from tests import windows; windows.pretend()\n"


def holder(path: Path, how: str, *, windows: bool = False) -> subprocess.Popen[str]:
    code = (WINDOWS if windows else "") + HOLD
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("windows", [False, True], ids=["here", "windows"])
def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path, windows: bool) -> None:
    path = tmp_path / "lock"
    process = holder(path, "alone", windows=windows)
    with path.open("rb") as file:
        assert not filesystem.lock(file, wait=False)
        end(process)
        assert filesystem.lock(file)
        filesystem.unlock(file)
        assert filesystem.lock(file, wait=False)


def test_a_shared_lock_keeps_out_only_who_wants_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = holder(path, "shared")
    with path.open("rb") as file:
        assert not filesystem.lock(file, wait=False)
        assert filesystem.lock(file, shared=True, wait=False)
    end(process)


def test_neither_links_nor_pipes_are_opened_by_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="symbolic links"):
        filesystem.open_file(tmp_path / "link", os.O_RDONLY)
    os.close(filesystem.open_file(tmp_path / "pipe", os.O_RDONLY))  # at once: nobody writes to it


def test_what_cannot_share_blocks_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"data")
    with (tmp_path / "source").open("rb") as source, Path("/dev/shm", f"cpack-{os.getpid()}").open("w+b") as target:
        os.unlink(target.name)
        assert not filesystem.share_blocks(source.fileno(), target.fileno())
        assert target.read() == b""


STORE = """
import os, sys
from pathlib import Path
from cpack_build.fetch.store import Store
from cpack_build.fetch.housekeeping import collect, holdings, verify
from cpack_build.oci.layout import write_layout
from cpack_build.oci.storage import whole_file

assert sys.platform == "win32"
place = Path(sys.argv[1])
model = place / "model.safetensors"
model.write_bytes(b"m" * 100)
store = Store(place / "store")
adopted = store.adopt(model)
put = store.put([b"wheel"], what="a wheel", name="a-1-py3-none-any.whl")
assert store.find(adopted.sha256).path == model
assert store.find(put.sha256).path.read_bytes() == b"wheel"
assert [entry.kind for entry in holdings(store).entries] == ["model", "wheel"]
assert verify(store) == (2, ())
assert collect(store, max_size=0).in_use == 1, "this very process uses it"
with whole_file(place / "whole") as file:
    file.write(b"all")
assert (place / "whole").read_bytes() == b"all"
os.symlink("whole", place / "link")
try:
    from cpack_build.filesystem import open_file
    open_file(place / "link", os.O_RDONLY)
except OSError as error:
    print("refused:", error.strerror)
"""


def test_on_windows_the_store_works_with_what_its_kernel_has(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WINDOWS + STORE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused: Too many levels of symbolic links\n"


EVERYTHING = """
import importlib, pkgutil, sys
import cpack_build
from tests import windows

def everything():
    for found in pkgutil.walk_packages(cpack_build.__path__, "cpack_build."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)

everything()  # so that other people's modules have looked at the system that there is
for name in [name for name in sys.modules if name.startswith("cpack_build.")]:
    del sys.modules[name]
windows.pretend()
everything()
"""


def test_on_windows_every_room_can_be_imported() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", EVERYTHING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_home_of_a_user_who_is_unknown_is_an_ordinary_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"~no-such-user/models: this machine knows no home of '~no-such-user'"):
        filesystem.expanded("~no-such-user/models")
    assert filesystem.expanded("~/models") == Path.home() / "models"
    assert filesystem.expanded(tmp_path / "~x") == tmp_path / "~x"
