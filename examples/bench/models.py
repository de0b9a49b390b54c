"""Fetching models from a server on this machine beside curl, and keeping a store of ten thousand files.

A file is fetched with its hash and its layer's, both taken while it comes; curl only writes it. ``CPACK_BENCH_MIB``
says how large it is (2048 by default).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import BenchError, Row, run, timed
from cpack_build.fetch.housekeeping import collect, holdings
from cpack_build.fetch.store import Store

_MIB = int(os.environ.get("CPACK_BENCH_MIB", "2048"))
_FILES = 8
_KNOWN = 100
_ENTRIES = 10_000
_SERVER = r"""
import os, re, socket, sys, threading
def answer(connection, folder):
    lines = connection.makefile("rb")
    while line := lines.readline():
        wanted = None
        while (header := lines.readline()) not in (b"\r\n", b""):
            wanted = re.match(rb"(?i)range: bytes=(\d+)-(\d*)", header) or wanted
        with open(os.path.join(folder, os.path.basename(line.split()[1].decode())), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, last = (int(wanted[1]), int(wanted[2] or size - 1)) if wanted else (0, size - 1)
            head = f"HTTP/1.1 {206 if wanted else 200} OK\r\nContent-Length: {last - first + 1}\r\n"
            if wanted:
                head += f"Content-Range: bytes {first}-{last}/{size}\r\n"
            connection.sendall((head + "\r\n").encode())
            while first <= last:
                first += os.sendfile(connection.fileno(), file.fileno(), first, min(last - first + 1, 1 << 22))
listening = socket.create_server(("127.0.0.1", 0), backlog=64)
print(listening.getsockname()[1], flush=True)
while True:
    threading.Thread(target=answer, args=(listening.accept()[0], sys.argv[1]), daemon=True).start()
"""
_FETCH = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.obtain import obtain
from cpack_build.fetch.folders import Wanted
from cpack_build.fetch.places import Addresses
from cpack_build.fetch.store import Store
from cpack_build.oci.modellayer import frame
store, sources = Store(Path(sys.argv[1])), Sources()
def fetch(argument):
    url, sha256, size = argument.split(",")
    done = obtain(Wanted(url, sha256, int(size), (url,)), [Addresses(Mirrors(), sources.http)], store=store,
                  tuning=sources.tuning, frame=lambda size: frame(sha256, size))
    assert done.file is not None, done.problems
with ThreadPoolExecutor(8) as pool:
    list(pool.map(fetch, sys.argv[2:]))
"""


def rows(place: Path) -> Iterator[Row]:
    """One large file, eight at once, a hundred that are known, and the store."""
    files = place / "files"
    files.mkdir()
    curl = shutil.which("curl")
    large = _random(files / "large", _MIB << 20)
    parts = [_random(files / f"part{number}", (_MIB << 20) // _FILES) for number in range(_FILES)]
    with _serving(files) as port:

        def arguments(*wanted: tuple[str, str, int]) -> list[str]:
            return [f"http://127.0.0.1:{port}/{name},{sha256},{size}" for name, sha256, size in wanted]

        peer = _curl(curl, port, place, ["large"])
        done = run([sys.executable, "-c", _FETCH, place / "store", *arguments(large)])
        note = f"{_MIB} MiB, two hashes and fsync included"
        yield Row("models", "fetch one file", done.seconds, "curl", peer, 1 / 0.9, done.peak_mb, note)

        peer = _curl(curl, port, place, [name for name, _, _ in parts])
        done = run([sys.executable, "-c", _FETCH, place / "store", *arguments(*parts)])
        yield Row("models", f"fetch {_FILES} files at once", done.seconds, "curl -Z", peer, 1 / 0.9, done.peak_mb)

    nobody = run([sys.executable, "-c", _FETCH, place / "store"])
    known = [f"http://127.0.0.1:9/{number},{_put(place / 'store', number)},1000000000000" for number in range(_KNOWN)]
    done = run([sys.executable, "-c", _FETCH, place / "store", *known])
    note = f"with none: {nobody.seconds:.2f} s"
    yield Row("models", f"fetch {_KNOWN} known models", done.seconds, "", goal=0.5 + nobody.seconds, note=note)

    root = place / "many"
    folder = root / "blobs/sha256"
    folder.mkdir(parents=True)
    for number in range(_ENTRIES):
        (folder / hashlib.sha256(str(number).encode()).hexdigest()).touch()
    store = Store(root, further=(), leased=False)
    yield Row("models", f"store ls, {_ENTRIES} files", timed(lambda: holdings(store)), "", goal=1.0)
    yield Row("models", f"store gc, {_ENTRIES} files", timed(lambda: collect(store, unused_days=0)), "", goal=1.0)


def _random(path: Path, size: int) -> tuple[str, str, int]:
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(max(1, size >> 20)):
            chunk = os.urandom(1 << 20)
            hasher.update(chunk)
            file.write(chunk)
    return path.name, hasher.hexdigest(), path.stat().st_size


def _put(root: Path, number: int) -> str:
    return Store(root, further=()).put([str(number).encode()], what="x").sha256


def _curl(program: str | None, port: int, place: Path, names: list[str]) -> float | None:
    """Seconds that curl takes to write the same files, all at once."""
    if program is None:
        return None
    command = [program, "--silent", "--show-error", "--no-progress-meter", "--fail", "--parallel"]
    for name in names:
        command += ["--output", str(place / f"curl-{name}"), f"http://127.0.0.1:{port}/{name}"]
    seconds = timed(lambda: subprocess.run(command, check=True))
    for name in names:
        (place / f"curl-{name}").unlink()
    return seconds


@contextmanager
def _serving(folder: Path) -> Iterator[int]:
    """A server of *folder*'s files, with ranges, at the port that it yields."""
    with subprocess.Popen([sys.executable, "-c", _SERVER, folder], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        if not port.isdecimal():
            raise BenchError("the server did not start")
        try:
            yield int(port)
        finally:
            server.kill()
