"""Bytecode is made by the image's interpreter, depends on nothing else, and never stands in the way of a build."""

from __future__ import annotations

import errno
import importlib.util
import marshal
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpack_build.errors import ToolMissing
from cpack_build.fetch.store import Store
from cpack_build.image.bytecode import Compiler, Interpreter, Launch, cache_path
from cpack_build.image.interpreter import runnable
from cpack_build.image.layer import symlink
from cpack_build.image.wheels import Environment, wheel_layer
from cpack_build.oci import tar
from tests.making import make_wheel, read_back

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


def this_python(python: str = MINOR, command: tuple[str, ...] = (sys.executable,)) -> Interpreter:
    @contextmanager
    def unpack() -> Iterator[Launch]:
        yield Launch(command)

    return Interpreter(python, "this", unpack)


def compiled(folder: Path, sources: dict[str, bytes]) -> dict[str, bytes]:
    with Compiler(this_python(), Store(folder)) as compiler:
        entries = compiler.entries("key", lambda: sorted(sources.items()))
    return {name: member.data for name, member in read_back(entries).items()}


def test_python_imports_the_bytecode_without_looking_at_the_source(tmp_path: Path) -> None:
    found = compiled(tmp_path / "store", {"site/tool.py": b"ANSWER = 42\n"})
    assert list(found) == [cache_path("site/tool.py", MINOR)]
    (tmp_path / "site/__pycache__").mkdir(parents=True)
    (tmp_path / "site/tool.py").write_text("ANSWER = 'from the source'\n")
    (tmp_path / cache_path("site/tool.py", MINOR)).write_bytes(found[cache_path("site/tool.py", MINOR)])
    run = [sys.executable, "-c", "import tool; print(tool.ANSWER)"]
    out = subprocess.run(run, cwd=tmp_path / "site", capture_output=True, text=True, check=True)
    assert out.stdout == "42\n"


def test_bytecode_says_where_the_source_lies_in_the_image(tmp_path: Path) -> None:
    (data,) = compiled(tmp_path, {"opt/x/a.py": b"pass\n"}).values()
    assert data[:4] == importlib.util.MAGIC_NUMBER
    assert marshal.loads(data[16:]).co_filename == "/opt/x/a.py"


def test_the_order_of_compilation_changes_no_byte(tmp_path: Path) -> None:
    folder = Path(os.__file__).parent
    sources = {f"lib/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.py"))[:60]}
    forth = compiled(tmp_path / "one", sources)
    assert len(forth) > 50
    with Compiler(this_python(), Store(tmp_path / "two")) as compiler:
        for name in sorted(sources, reverse=True):
            (entry,) = compiler.entries(name, lambda name=name: [(name, sources[name])])
            assert b"".join(entry.content.chunks()) == forth[entry.path], name  # type: ignore[union-attr]


def test_a_source_that_does_not_compile_gets_none_and_the_next_one_does(tmp_path: Path) -> None:
    deep = b"x = " + b"-" * 200_000 + b"1\n"
    sources = {"a.py": b"print 'two'\n", "b.py": b"\0", "c.py": deep, "d.py": b"\xff\xfe", "e.py": b"ok = 1\n"}
    assert list(compiled(tmp_path, sources)) == [cache_path("e.py", MINOR)]


def test_what_was_compiled_once_is_not_compiled_again(tmp_path: Path) -> None:
    compiled(tmp_path, {"a.py": b"pass\n"})
    broken = this_python(command=("/does/not/exist",))
    with Compiler(broken, Store(tmp_path)) as compiler:
        assert len(compiler.entries("key", list)) == 1


def test_layers_are_compiled_side_by_side_and_alike(tmp_path: Path) -> None:
    """Each of two waits in the middle of its sources until the other is there, too."""
    both = threading.Barrier(2)

    def sources() -> Iterator[tuple[str, bytes]]:
        yield "a.py", b"A = 1\n"
        both.wait(30)
        yield "b.py", b"B = 2\n"

    with Compiler(this_python(), Store(tmp_path)) as compiler, ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda key: read_back(compiler.entries(key, sources)), ("one", "two"))
    assert [name.rpartition("/")[2] for name in one] == [
        f"{name}.cpython-{MINOR.replace('.', '')}.pyc" for name in "ab"
    ]
    assert one == two


def test_an_interpreter_that_does_not_run_here_is_named_with_the_way_out(tmp_path: Path) -> None:
    with (
        pytest.raises(ToolMissing, match="does not run on this machine"),
        Compiler(this_python(command=("/bin/false",)), Store(tmp_path)) as compiler,
    ):
        compiler.entries("key", lambda: [("a.py", b"")])


def test_an_interpreter_that_cannot_be_laid_out_is_told_to_every_thread(tmp_path: Path) -> None:
    """The second must not try to start what is not there, and blame the interpreter."""

    @contextmanager
    def unpack() -> Iterator[Launch]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    with Compiler(Interpreter(MINOR, "this", unpack), Store(tmp_path)) as compiler:
        for key in ("one", "two"):
            with pytest.raises(OSError, match="No space left"):
                compiler.entries(key, lambda: [("a.py", b"")])


def test_an_interpreter_of_another_version_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ToolMissing, match="says it is"),
        Compiler(this_python("3.99"), Store(tmp_path)) as compiler,
    ):
        compiler.entries("key", lambda: [("a.py", b"")])


def test_a_wheel_layer_carries_bytecode_and_records_it(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "tool", {"tool/__init__.py": b"A = 1\n", "tool/bad.py": b"print 'x'\n"})
    environment = Environment("opt/comfyui", MINOR, "/usr/bin/python3")
    with Compiler(this_python(), Store(tmp_path / "store")) as compiler:
        layer = wheel_layer("wheel", "tool", environment, [wheel], compiler=compiler)
        members = read_back(layer.entries())
    site = f"opt/comfyui/lib/python{MINOR}/site-packages"
    cache = cache_path("tool/__init__.py", MINOR)
    assert f"{site}/{cache}" in members
    assert f"{cache},,\n".encode() in members[f"{site}/tool-1.0.dist-info/RECORD"].data
    assert layer.key != wheel_layer("wheel", "tool", environment, [wheel]).key


def test_the_image_s_interpreter_runs_from_its_files_alone(tmp_path: Path) -> None:
    """A Python with its library, laid out somewhere else from tar entries, starts and compiles."""
    home = Path(sys.base_prefix)
    library = home / f"lib/python{MINOR}"
    executable = Path(os.path.realpath(sys.executable))

    def entries() -> Iterator[tar.Entry]:
        yield symlink("opt/python/bin/python3", f"python{MINOR}")
        yield tar.Entry(f"opt/python/bin/python{MINOR}", "file", 0o755, 0, tar.BytesContent(executable.read_bytes()))
        for path in (home / "lib").glob("libpython3*.so*"):
            yield tar.Entry(f"opt/python/lib/{path.name}", "file", 0o755, 0, tar.BytesContent(path.read_bytes()))
        for path in [*library.glob("*.py"), *library.glob("[a-z]*/*.py"), *library.glob("lib-dynload/*.so")]:
            name = f"opt/python/lib/python{MINOR}/{path.relative_to(library)}"
            yield tar.Entry(name, "file", 0o644, 0, tar.BytesContent(path.read_bytes()))

    interpreter = runnable(MINOR, "/opt/python/bin/python3", "identity", entries)
    with Compiler(interpreter, Store(tmp_path)) as compiler:
        assert len(compiler.entries("key", lambda: [("a.py", b"x = 1\n")])) == 1
