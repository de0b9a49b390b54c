"""Every failure has its documented exit code, one clear message, and the same as JSON for programs."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from cpack_build import errors
from cpack_build.cli.failure import report
from cpack_build.errors import CpackError, NotAPack, StorageError
from tests.cli.calling import Caller
from tests.cpack.packs import make_pack, model, snapshot

ROOT = Path(__file__).resolve().parents[2]


def _classes() -> dict[str, type[CpackError]]:
    found = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    return {name: value for name, value in found.items() if issubclass(value, CpackError) and value is not CpackError}


def test_the_table_in_the_docs_is_that_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", (ROOT / "docs/exit-codes.md").read_text(), re.MULTILINE)
    documented = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert documented == {name: value.exit_code for name, value in _classes().items()}


def test_the_tree_in_the_docstring_is_that_of_the_errors() -> None:
    tree = errors.__doc__ or ""
    assert set(re.findall(r"[├└]── (\w+)", tree)) == set(_classes())
    assert set(errors.__all__) == {"CpackError", "together", "writing", *_classes()}


def test_the_help_of_the_group_lists_the_codes(call: Caller) -> None:
    listed = " ".join(call("--help").out.split())
    for code in {value.exit_code for value in _classes().values()} | {0, 1}:
        assert re.search(rf"[:,] {code} [a-z]", listed), code


# -- bad input, from the outside ---------------------------------------------------------------------------------------


def _no_zip(path: Path) -> None:
    path.write_bytes(b"not a zip at all")


def _truncated(path: Path) -> None:
    path.write_bytes(make_pack(path).read_bytes()[:-40])


def _without_snapshot(path: Path) -> None:
    make_pack(path, without=["snapshot.json"])


def _ui_format(path: Path) -> None:
    make_pack(path, workflow_api={"last_node_id": 1, "nodes": [], "links": []})


def _no_output(path: Path) -> None:
    make_pack(path, workflow_api={"1": {"class_type": "LoadImage", "inputs": {}}})


def _wrong_field(path: Path) -> None:
    make_pack(path, snapshot_document=snapshot(models=[model(size="big")]))


def _escaping(path: Path) -> None:
    make_pack(path, snapshot_document=snapshot(models=[model(filename="../../x")]))


def _bad_settings(path: Path) -> None:
    make_pack(path, files={"cpack.yaml": b"bsae: scratch"})


@pytest.mark.parametrize("verb", ["lock", "image"])
@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (_no_zip, 3, "it is not a zip file"),
        (_truncated, 3, "truncated"),
        (_without_snapshot, 3, "no snapshot.json"),
        (_ui_format, 3, "cannot be executed"),
        (_no_output, 3, "no CPack output node"),
        (_wrong_field, 3, "models[0].size"),
        (_bad_settings, 3, "unknown key 'bsae'"),
        (_escaping, 8, "leaves its folder"),
    ],
)
def test_bad_input_is_one_sentence_a_code_and_nothing_half_made(
    call: Caller, tmp_path: Path, verb: str, spoil: Any, code: int, words: str
) -> None:
    pack = tmp_path / "work" / "bad.cpack.zip"
    pack.parent.mkdir()
    spoil(pack)
    output = () if verb == "lock" else ("--output", f"oci:{pack.parent / 'out'}")

    plain = call(verb, pack, *output)
    assert (plain.code, plain.out) == (code, "")
    assert plain.err.startswith("Error: ")
    assert words in plain.err
    assert "bad.cpack.zip" in plain.err or "snapshot.json" in plain.err
    assert "Traceback" not in plain.err
    assert len(plain.err.splitlines()) == 2

    as_json = call(verb, pack, *output, "--json")
    assert as_json.code == code
    error = as_json.document["error"]
    assert words in error["message"]
    assert error["hint"]
    assert error["exit_code"] == code
    assert as_json.err == ""

    assert [path.name for path in pack.parent.iterdir()] == ["bad.cpack.zip"]


def test_a_missing_pack_is_named(call: Caller) -> None:
    done = call("lock", "absent.cpack.zip")
    assert done.code == 3
    assert "There is no file absent.cpack.zip." in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lock"], "Missing argument 'PACK'"),
        (["lock", "--no-such-flag", "x"], "--no-such-flag"),
        (["image", "PACK", "--output", "registry.example/x@sha256:" + "0" * 64], "no digest yet"),
        (["image", "PACK", "--output", "dokcer"], "--output 'dokcer' names no place"),
        (["image", "PACK", "--push", "r.example/x", "--output", "r.example/x:latest"], "given twice"),
        (["push", "oci:a"], "Missing argument 'REF'"),
        (["push", "docker:a", "r.example/x"], "cannot be read from here"),
        (["push", "oci:a", "r.example/x", "--insecure-registry", "http://r.example"], "is no host"),
        (["image", "PACK", "--output", "oci:"], "names no file or folder"),
        (["image", "PACK", "--output", "oci:a", "--output", "oci:a"], "given twice"),
        (["image", "PACK", "--output", "oci:a", "-t", "Bad Name"], "Bad Name"),
        (["image", "PACK", "--output", "oci:a", "--mirror", "nonsense"], "--mirror 'nonsense'"),
        (["image", "PACK", "--output", "oci:a", "--platform", "win/32"], "win/32"),
        ([], "VERB"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(call: Caller, tmp_path: Path, arguments: list[str], words: str) -> None:
    pack = make_pack(tmp_path / "x.cpack.zip")
    done = call(*(str(pack) if word == "PACK" else word for word in arguments))
    assert done.code == 2
    assert words in done.out + done.err


def test_locked_demands_a_lock_and_a_stale_one_is_told(call: Caller, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "x.cpack.zip")
    done = call("image", pack, "--locked", "--output", f"oci:{tmp_path / 'out'}")
    assert done.code == 3
    assert "There is no lock" in done.err
    (tmp_path / "x.cpack.lock").write_text("{}")
    done = call("image", pack, "--output", f"oci:{tmp_path / 'out'}")
    assert done.code == 3
    assert "x.cpack.lock" in done.err


# -- what nobody meant to happen ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (NotAPack("x.zip", "it is empty"), 3, "Error: x.zip is not a usable pack: it is empty."),
        (KeyboardInterrupt(), 130, "Stopped."),
        (click.Abort(), 130, "Stopped."),
        (OSError(errno.ENOSPC, "No space left on device", "/big/file"), 9, "No space left while writing /big/file."),
        (OSError(errno.EROFS, "Read-only file system", "/ro/file"), 9, "/ro/file: read-only file system."),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 9, "/x: permission denied."),
        (MemoryError(), 9, "The memory is full."),
        (ValueError("surprise"), 1, "This is a bug in cpack-build"),
        (click.UsageError("no such thing"), 2, "no such thing"),
    ],
)
def test_every_exception_becomes_a_code_and_a_sentence(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    assert report(error, []) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert report(error, ["--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == code


def test_a_traceback_comes_with_v_only(capsys: pytest.CaptureFixture[str]) -> None:
    report(ValueError("surprise"), ["lock", "x"])
    assert "Traceback" not in capsys.readouterr().err
    try:
        raise ValueError("surprise")
    except ValueError as error:
        for flag in ("-v", "--verbose", "-qv"):
            report(error, ["lock", flag])
            assert "Traceback" in capsys.readouterr().err
        report(error, ["lock", "--", "-v"])
        assert "Traceback" not in capsys.readouterr().err


def test_a_bug_report_holds_no_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    report(ValueError("https://user:secret@hub.example/x?token=secret"), [])
    assert "secret" not in capsys.readouterr().err


def test_a_message_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    report(StorageError("a\x1b[2Jb\rc"), [])
    assert capsys.readouterr().err == "Error: a\\x1b[2Jb\\rc\n"


def test_a_lock_that_finds_no_space_is_named_and_not_half_there(tmp_path: Path) -> None:
    program = (
        "import pathlib, resource, sys, types\n"
        "from cpack_build.cli.lockfile import LockFile\n"
        "from cpack_build.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "made = types.SimpleNamespace(to_bytes=lambda: bytes(100_000))\n"
        "try:\n"
        "    LockFile(pathlib.Path(sys.argv[1]), False, None).write([made])\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    lock = tmp_path / "x.cpack.lock"
    done = subprocess.run([sys.executable, "-c", program, str(lock)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"No space left while writing {lock}.")
    assert not list(tmp_path.iterdir())


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    models = [model(filename=f"models/{number}") for number in range(5000)]
    pack = make_pack(tmp_path / "x.cpack.zip", snapshot_document=snapshot(models=models))
    program = subprocess.Popen(
        [sys.executable, "-m", "cpack_build", "inspect", str(pack), "--all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.readline()
    program.stdout.close()
    said = program.stderr.read()
    program.stderr.close()
    program.wait()
    assert said == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_kill_end_with_130_and_leave_nothing(tmp_path: Path, number: int) -> None:
    """The pack is a pipe that nobody writes to, so the command is surely at work when it is stopped."""
    pack = tmp_path / "slow.cpack.zip"
    os.mkfifo(pack)
    with subprocess.Popen(
        [sys.executable, "-m", "cpack_build", "lock", str(pack)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"CPACK_HOME": str(tmp_path / "store")},
    ) as program:
        try:
            while not _waits_for(pack, program.pid):
                assert program.poll() is None
                time.sleep(0.02)
            program.send_signal(number)
            _, said = program.communicate(timeout=60)
        finally:
            program.kill()  # Nothing that a test starts outlives it; one that has ended does not mind.
    assert program.returncode == 130
    assert said.strip().startswith(b"Error: Stopped.")
    assert [path.name for path in tmp_path.iterdir()] == ["slow.cpack.zip"]


def _waits_for(path: Path, pid: int) -> bool:
    """Whether the process sleeps in the open of that very pipe: the kernel's word for it. On a busy machine it sleeps
    in the open of others, too, while it imports."""
    try:
        number, _, name, *_ = Path(f"/proc/{pid}/syscall").read_text().split()
        # openat is 257 on x86-64 and 56 on arm64 (asm/unistd.h); "running" otherwise. Its second argument is the name.
        if number not in ("257", "56"):
            return False
        with Path(f"/proc/{pid}/mem").open("rb") as memory:
            memory.seek(int(name, 16))
            return memory.read(len(bytes(path)) + 1) == bytes(path) + b"\0"
    except (OSError, ValueError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_that_python_loses_in_a_callback_still_ends_the_program(number: int) -> None:
    """Each import ends with a weak reference's callback; what is raised there goes nowhere."""
    program = f"""
import os, sys, time
import click
import cpack_build.cli as cli

class Lost:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
        for _ in range(100_000):  # The handler runs within this, and what it raises is dropped.
            pass

@click.command()
def lose():
    Lost()
    print("went on", flush=True)
    time.sleep(60)

cli.cli = lose
sys.argv = ['cpack-build']
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=20, check=False)
    assert done.stdout == b"went on\n", "the first was lost"
    assert done.returncode == 130
    assert done.stderr.strip().startswith(b"Error: Stopped."), done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["/", ".", ""])
def test_a_folder_without_a_name_is_no_pack(call: Caller, place: str) -> None:
    done = call("image", place)
    assert done.code == 2
    assert "is a folder, and no pack" in done.err
