"""`cpack-build fetch` brings what a lock names, says what it would bring, and tells a fresh user what a gate wants."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cpack_build.fetch.partial import Partial
from cpack_build.fetch.store import Store
from cpack_build.lock.schema import Lock, Model, PythonEnvironment
from cpack_build.lock.service import service_code
from tests.cli.calling import Caller
from tests.fetch.servers import Answer, Request, serving
from tests.fetch.test_transfer import ranged
from tests.lock.test_preflight import lock as make_lock

BODY = b"model bytes " * 10_000
SHA256 = hashlib.sha256(BODY).hexdigest()


def model(*urls: str, name: str = "x.safetensors", body: bytes = BODY) -> Model:
    sha256 = hashlib.sha256(body).hexdigest()
    return Model(
        path=f"models/loras/{name}", sha256=sha256, size=len(body), layer_digest=f"sha256:{sha256}", sources=urls
    )


Locked = Callable[..., Path]
_PYLOCK = 'lock-version = "1.0"\ncreated-by = "test"\npackages = []\n'
NO_WHEELS = PythonEnvironment(pylock=_PYLOCK, pylock_sha256=hashlib.sha256(_PYLOCK.encode()).hexdigest())


@pytest.fixture
def locked(tmp_path: Path) -> Locked:
    """A lock of a ComfyUI, a node and models alone."""

    def make(*models: Model) -> Path:
        made: Lock = make_lock(
            tmp_path, "http://none.example", models=models, service_code=service_code(), service=NO_WHEELS,
            python=NO_WHEELS,
        )  # fmt: skip
        made = made.model_copy(update={"interpreter": made.interpreter.model_copy(update={"packages": ()})})
        path = tmp_path / "x.cpack.lock"
        path.write_bytes(made.to_bytes())
        return path

    return make


@pytest.fixture
def clone(tmp_path: Path) -> tuple[str, str]:
    return "--mirror", f"https://code.example/={tmp_path}/"


def test_what_is_missing_is_told_fetched_once_and_then_here(
    call: Caller, locked: Locked, clone: tuple[str, str], tmp_path: Path
) -> None:
    with serving(ranged(BODY)) as server:
        lock = locked(model(f"{server.url}/x"))
        would = call("fetch", lock, *clone, "--dry-run", "--json").document
        assert would["missing"] == [{"name": "x.safetensors", "size": len(BODY)}]
        assert server.requests == []
        done = call("fetch", lock, *clone, "--json")
        assert done.code == 0, done.out
        assert Path(done.document["models"][0]["file"]).read_bytes() == BODY
        asked = len(server.requests)
        again = call("fetch", lock, *clone)
    assert "Everything was here already" in again.out
    assert len(server.requests) == asked
    assert call("store", "ls", "--json").document["entries"][0]["name"] == "x.safetensors"


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Every file that Python opens from now on. (An audit hook stays; it is deaf afterwards.)"""
    names: list[str] = []
    is_listening = True

    def hear(event: str, details: tuple[object, ...]) -> None:
        if is_listening and event == "open":
            names.append(str(details[0]))

    sys.addaudithook(hear)
    yield names
    is_listening = False


def test_a_fetch_of_known_models_reads_none_of_them(
    call: Caller, locked: Locked, clone: tuple[str, str], tmp_path: Path, opened: list[str]
) -> None:
    bodies = [b"%d" % number * 1000 for number in range(100)]
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, body in enumerate(bodies):
        (folder / f"{number}.safetensors").write_bytes(body)
    lock = locked(*(model(name=f"{number}.safetensors", body=body) for number, body in enumerate(bodies)))
    # Half of them lie in the store, half where the user has them.
    for number in range(50):
        assert call("store", "add", folder / f"{number}.safetensors").code == 0
    first = call("fetch", lock, *clone, "--models", folder, "--json")
    assert first.code == 0, first.out
    assert any(name.startswith(str(folder)) for name in opened), "the hook hears"
    opened.clear()
    again = call("fetch", lock, *clone, "--models", folder, "--json")
    assert again.code == 0, again.out
    assert len(again.document["models"]) == 100
    assert [name for name in opened if name.endswith(".safetensors") or "/blobs/sha256/" in name] == []


def test_a_bundle_is_used_offline_and_nothing_else_is_asked(
    call: Caller, locked: Locked, clone: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(ranged(BODY)) as server:
        lock = locked(model(f"{server.url}/x"))
        for name in ("bundle", "bundle.tar"):
            done = call("fetch", lock, *clone, "-o", tmp_path / name, "--json")
            assert done.code == 0, done.out
    for name in ("bundle", "bundle.tar"):
        monkeypatch.setenv("CPACK_HOME", str(tmp_path / f"store of {name}"))
        would = call("fetch", lock, "--offline", "--from", tmp_path / name, "--dry-run", "--json")
        assert would.document["missing"] == []
        assert not (Path(os.environ["CPACK_HOME"]) / "blobs").exists()  # nothing was taken over
        alone = call("fetch", lock, "--offline", "--json")
        assert alone.code == 6
        assert "is not in the store" in alone.out
        carried = call("fetch", lock, "--offline", "--from", tmp_path / name, "--json")
        assert carried.code == 0, carried.out
        assert carried.document["fetched"] == 0


def test_a_gated_model_without_a_token_says_what_to_do(
    call: Caller, locked: Locked, clone: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def gate(request: Request) -> Answer:
        return Answer(404 if "/api/" in request.path else 401, headers={"X-Error-Code": "GatedRepo"})

    with serving(gate) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        lock = locked(model("https://huggingface.co/org/gated/resolve/main/x.safetensors"))
        done = call("fetch", lock, *clone)
    assert done.code == 4
    assert "models/loras/x.safetensors" in done.err
    assert "https://huggingface.co/org/gated is gated" in done.err
    assert "accept its terms; then set HF_TOKEN" in done.err


def test_pickles_are_refused_where_they_are_not_wanted_and_told_where_they_would_run_code(
    call: Caller, locked: Locked, clone: tuple[str, str]
) -> None:
    import pickle

    class Runs:
        def __reduce__(self) -> object:
            return eval, ("1",)

    body = pickle.dumps(Runs())
    with serving(ranged(body)) as server:
        lock = locked(model(f"{server.url}/x", name="x.ckpt", body=body))
        refused = call("fetch", lock, *clone, "--no-pickle")
        assert refused.code == 8
        assert "models/loras/x.ckpt" in refused.err
        assert server.requests == []
        done = call("fetch", lock, *clone)
    assert done.code == 0
    assert "x.ckpt would run code when it is loaded: builtins.eval" in done.err


def test_another_file_is_kept_aside_and_never_used(
    call: Caller, locked: Locked, clone: tuple[str, str], tmp_path: Path
) -> None:
    wrong = BODY[::-1]
    with serving(ranged(wrong)) as server:
        done = call("fetch", locked(model(f"{server.url}/x")), *clone)
    actual = hashlib.sha256(wrong).hexdigest()
    assert done.code == 5
    assert str(tmp_path / "store/rejected" / actual) in done.err
    assert Store(tmp_path / "store").find(actual) is None


def test_models_tells_what_is_here_and_where_the_rest_is(call: Caller, locked: Locked, tmp_path: Path) -> None:
    here = tmp_path / "models/loras/here.safetensors"
    here.parent.mkdir(parents=True)
    here.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    listed = (
        model(name="here.safetensors", body=here.read_bytes()),
        model("https://hub.example/x?token=secret", name="big-00001-of-00002.safetensors"),
        model(name="lost.ckpt", body=b"lost"),
    )
    done = call("models", locked(*listed), "--models", tmp_path, "--offline", "--json")
    rows = {row["name"]: row for row in done.document["models"]}
    assert (rows["here.safetensors"]["state"], rows["here.safetensors"]["where"]) == ("here", str(here))
    assert rows["here.safetensors"]["folder"] == "loras"
    assert rows["big-00001-of-00002.safetensors"]["where"] == "hub.example"
    assert rows["lost.ckpt"]["state"] == "missing"
    assert done.document["incomplete"] == {
        "models/loras/big.safetensors": ["models/loras/big-00002-of-00002.safetensors"]
    }
    text = call("models", tmp_path / "x.cpack.lock", "--models", tmp_path, "--offline")
    assert "secret" not in text.out
    assert "1 here" in text.out
    assert call("models", tmp_path / "x.cpack.lock", "--offline", "--no-pickle").code == 8


def test_models_tells_gates_and_licences(
    call: Caller, locked: Locked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    def hub(request: Request) -> Answer:
        return Answer(body=json.dumps({"gated": "auto", "tags": ["license:other-license"]}).encode())

    with serving(hub) as server:
        mirror = ("--mirror", f"https://huggingface.co/api/={server.url}/api/")
        lock = locked(model("https://huggingface.co/org/gated/resolve/main/x.safetensors"))
        (row,) = call("models", lock, *mirror, "--json").document["models"]
        assert (row["gated"], row["licence"]) == (True, "other-license")
        assert "(gated, other-license)" in call("models", lock, *mirror).out


def test_inspect_of_a_model_file_tells_what_it_is(call: Caller, tmp_path: Path) -> None:
    import json

    header = json.dumps(
        {"lora_unet_x.lora_up.weight": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}}
    ).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    found = call("inspect", path, "--json").document
    assert (found["kind"], found["tensors"], found["dtypes"], found["parameters"]) == ("LoRA", 1, ["F16"], 4)
    path.write_bytes(path.read_bytes()[:-1])
    broken = call("inspect", path)
    assert broken.code == 3
    assert "x.safetensors is no sound safetensors file" in broken.err


LARGE, MIDDLE = b"large" * 1_500_000, b"middle" * 500_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fetch_that_is_interrupted_ends_says_so_and_goes_on_next_time(
    locked: Locked,
    clone: tuple[str, str],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """The program itself, with two files under way."""
    large = hashlib.sha256(LARGE).hexdigest()
    is_silent, over = True, threading.Event()

    def answer(request: Request) -> Answer:
        told = ranged(LARGE if request.path == "/large" else MIDDLE)(request)
        return replace(told, cut=700_000, silent=over) if is_silent else told

    environment = {
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "CPACK_HOME": str(tmp_path / "store"),
        "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }  # fmt: skip
    with serving(answer) as server:
        lock = locked(model(f"{server.url}/large", body=LARGE), model(f"{server.url}/x", name="y.bin", body=MIDDLE))
        command = [sys.executable, "-m", "cpack_build", "fetch", str(lock), *clone]
        running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 60
            journals = (tmp_path / "store/partial").glob
            while len({request.path for request in server.requests}) < 2 or len(list(journals("*.journal"))) < 2:
                assert running.poll() is None, running.communicate()
                assert time.monotonic() < until
                time.sleep(0.02)
            time.sleep(0.5)
            running.send_signal(number)
            _, said = running.communicate(timeout=30.0)
        finally:
            running.kill()
            running.wait()
            over.set()
        assert running.returncode == 130
        assert said.decode().endswith("Stopped.\nNothing half-made was left behind; run the same command to go on.\n")
        store = Store(tmp_path / "store", further=())
        assert store.find(large) is None
        partial = Partial(store.root, large)
        assert partial.count == 700_000
        partial.close()
        is_silent = False
        server.requests.clear()
        again = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert again.returncode == 0, again.stderr
        assert store.find(large) is not None
        assert store.find(hashlib.sha256(MIDDLE).hexdigest()) is not None
        assert {length(request) for request in server.requests} == {len(LARGE) - 700_000, len(MIDDLE) - 700_000}


def length(request: Request) -> int:
    first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1


@pytest.mark.parametrize("connections", [1, 3])
def test_connections_are_as_many_as_the_flag_says(
    call: Caller, locked: Locked, clone: tuple[str, str], connections: int
) -> None:
    """A file of four parts; the server counts the requests that it has at once."""
    body, lock = bytes(100 << 20), threading.Lock()
    at_once, most = 0, 0

    def answer(request: Request) -> Answer:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return ranged(body)(request)

    with serving(answer) as server:
        done = call("fetch", locked(model(f"{server.url}/x", body=body)), *clone, "--connections", connections)
    assert done.code == 0, done.err
    assert len(server.requests) == 4
    assert most <= connections
    assert (most > 1) == (connections > 1)


@pytest.mark.parametrize("retries", [1, 3])
def test_a_source_that_fails_is_asked_as_often_as_the_flag_says(
    call: Caller, locked: Locked, clone: tuple[str, str], retries: int
) -> None:
    with serving(lambda _: Answer(503, headers={"Retry-After": "0"})) as server:
        done = call("fetch", locked(model(f"{server.url}/x")), *clone, "--retries", retries)
    assert len(server.requests) == retries
    assert done.code == 4
    assert "x.safetensors" in done.err
    assert "answered HTTP 503 again and again" in done.err


def test_the_rate_is_what_the_flag_says(
    call: Caller, locked: Locked, clone: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of its own: two files together take as long as their bytes do at that rate."""
    from cpack_build.fetch import tuning

    lock, clock, taken = threading.Lock(), 0.0, 0

    class Limit(tuning.RateLimit):
        def __init__(self, bytes_a_second: int) -> None:
            assert bytes_a_second == 20_000
            super().__init__(bytes_a_second, sleep=sleep)

        def take(self, count: int) -> None:
            nonlocal taken
            with lock:
                taken += count
            super().take(count)

    class Clock:
        monotonic = staticmethod(lambda: 0.0)

    def sleep(seconds: float) -> None:
        nonlocal clock
        clock = max(clock, seconds)  # the hands of the clock stay at 0: each wait is until a moment

    monkeypatch.setattr(tuning, "RateLimit", Limit)
    monkeypatch.setattr(tuning, "time", Clock)
    files = {"/x": BODY, "/y": BODY[::-1]}
    with serving(lambda request: ranged(files[request.path])(request)) as server:
        models = [model(f"{server.url}{path}", name=f"{path[1:]}.bin", body=body) for path, body in files.items()]
        done = call("fetch", locked(*models), *clone, "--limit-rate", "20kB")
    assert done.code == 0, done.err
    assert taken == 2 * len(BODY)
    assert 0 < 2 * len(BODY) / 20_000 - clock <= len(BODY) / 20_000  # the last chunk is not waited for
    assert call("fetch", locked(*models), *clone, "--limit-rate", "fast").code == 2


def test_progress_is_told_by_file_and_in_all(
    call: Caller, locked: Locked, clone: tuple[str, str], tmp_path: Path
) -> None:
    import json

    from tests.cli.test_terminal import _on_a_terminal

    files = {"/x": BODY, "/y": BODY[:1000]}

    def slow(request: Request) -> Answer:
        time.sleep(0.4)  # a bar is drawn some ten times a second
        return ranged(files[request.path])(request)

    with serving(slow) as server:
        lock = locked(model(f"{server.url}/x"), model(f"{server.url}/y", name="y.bin", body=files["/y"]))
        told = call("fetch", lock, *clone, "--json", "--progress", "json")
        assert told.code == 0, told.err
        assert told.document["fetched"] == 2
        command = [sys.executable, "-m", "cpack_build", "fetch", str(lock), *clone]
        shown = _on_a_terminal(command, CPACK_HOME=str(tmp_path / "another"))
    events = [json.loads(line) for line in told.err.splitlines()]
    titles = {event["task"]: event["title"] for event in events if event["event"] == "start"}
    ends = {titles[event["task"]]: event for event in events if event["event"] == "end"}
    sizes = {"x.safetensors": len(BODY), "y.bin": 1000, "In all": len(BODY) + 1000}
    assert {name: (ends[name]["done"], ends[name]["total"], ends[name]["complete"]) for name in sizes} == {
        name: (size, size, True) for name, size in sizes.items()
    }
    for title in sizes:
        assert title in shown
    assert "0.0/120.0 kB" in shown
    assert "0.0/121.0 kB" in shown
