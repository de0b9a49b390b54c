"""The real ``hf_xet`` reads from a hub's Xet storage on loopback: what comes is hashed on the way, tokens go where they
belong, and whatever goes wrong there, the file is had from its address or the reason is told."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpack_build.errors import NetworkError
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.folders import Wanted
from cpack_build.fetch.http import RequestsTransport, Sources
from cpack_build.fetch.huggingface import HuggingFace, token_for
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.obtain import Obtained, obtain
from cpack_build.fetch.store import Store
from cpack_build.fetch.tuning import Tuning
from tests.fetch.servers import Answer, Request, serving
from tests.fetch.test_stopping import stopped
from tests.fetch.xetstore import HF_TOKEN, XetHub, xet_hub
from tests.lock.progress import Heard

pytest.importorskip("hf_xet")
BODY = random.Random(5).randbytes(9_000_123)
SHA256 = hashlib.sha256(BODY).hexdigest()
QUICK = Tuning(part=4 << 20, sleep=lambda _: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", further=())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[XetHub]:
    """A hub of one's own, whose user is logged in."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    with xet_hub(BODY) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.hub.url)
        monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
        yield running


def get(hub: XetHub, store: Store, *, heard: Heard | None = None, tuning: Tuning = QUICK, **more: object) -> Obtained:
    place = HuggingFace(Mirrors(), RequestsTransport(), Asker(Sources()))
    wanted = Wanted("models/loras/x.safetensors", SHA256, len(BODY), (hub.url,))
    return obtain(wanted, [place], store=store, tuning=tuning, progress=heard or Heard(), **more)  # type: ignore[arg-type]


def is_whole(done: Obtained) -> bool:
    return done.file is not None and done.file.path.read_bytes() == BODY


def test_a_file_comes_from_xet_storage_and_is_hashed_on_the_way(hub: XetHub, store: Store) -> None:
    done = get(hub, store, frame=lambda size: (b"before", b"after"))
    assert is_whole(done)
    assert done.framed == hashlib.sha256(b"before" + BODY + b"after").hexdigest()
    assert hub.paths(hub.hub, "/resolve/") == []
    assert len(hub.paths(hub.hub, "/xet-read-token/")) == 1


def test_the_users_token_goes_to_the_hub_and_the_storages_to_the_storage(hub: XetHub, store: Store) -> None:
    assert is_whole(get(hub, store))
    assert {request.headers.get("authorization") for request in hub.hub.requests} == {f"Bearer {HF_TOKEN}"}
    told = {request.headers.get("authorization") for request in hub.paths(hub.cas, "/reconstructions/")}
    assert told == {"Bearer xet-1"}
    assert {request.headers.get("authorization") for request in hub.paths(hub.cas, "/xorb/")} == {None}
    assert HF_TOKEN not in str([request.headers for request in hub.cas.requests])


def test_a_token_that_ends_midway_is_replaced(hub: XetHub, store: Store) -> None:
    """A token's ``exp`` is in 1970 here: what this machine thinks of the time makes no difference."""
    hub.uses = 1
    heard = Heard()
    assert is_whole(get(hub, store, heard=heard, tuning=Tuning(part=4 << 20, connections=1, sleep=lambda _: None)))
    assert hub.tokens >= 3
    assert hub.paths(hub.hub, "/resolve/") == []
    assert heard.notes == []


@pytest.mark.parametrize(
    "statuses",
    [{"/": 500}, {"/": 403}, {"/v": 404}, {"/xorb": 403}, {"/xorb": 500}],
    ids=["down", "refusing", "knows-not", "xorb-refused", "xorb-down"],
)
def test_where_the_storage_fails_the_address_is_asked_and_people_are_told(
    hub: XetHub, store: Store, statuses: dict[str, int]
) -> None:
    hub.cas_status = statuses
    heard = Heard()
    assert is_whole(get(hub, store, heard=heard))
    (note,) = heard.notes
    assert "x.safetensors (Xet) cannot be read from Xet storage" in note
    assert f"{hub.hub.url}/org/model/resolve/main/deep/x.safetensors is asked next." in note
    assert "secret" not in note
    assert "xet-1" not in note


def test_a_storage_that_nobody_reaches_is_passed_over(hub: XetHub, store: Store) -> None:
    hub.hub_changes = {"casUrl": "http://127.0.0.1:9"}
    heard = Heard()
    assert is_whole(get(hub, store, heard=heard))
    assert len(heard.notes) == 1


def test_a_xorb_that_ends_early_is_passed_over(hub: XetHub, store: Store) -> None:
    hub.cut = 100_000
    heard = Heard()
    assert is_whole(get(hub, store, heard=heard))
    assert "cannot be read from Xet storage" in heard.notes[0]


def test_other_bytes_are_kept_aside_under_their_own_hash(hub: XetHub, store: Store) -> None:
    hub.stored = BODY[:-1] + bytes([BODY[-1] ^ 1])
    heard = Heard()
    assert is_whole(get(hub, store, heard=heard))
    other = hashlib.sha256(hub.stored).hexdigest()
    (note,) = heard.notes
    assert other in note
    (aside,) = (store.root / "rejected").iterdir()
    assert aside.name.startswith(other)
    assert aside.read_bytes() == hub.stored


def test_it_goes_on_where_another_source_broke_off(hub: XetHub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.ends_at = len(BODY) // 2
    one = Tuning(part=1 << 30, connections=1, sleep=lambda _: None)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    assert get(hub, store, tuning=one).file is None
    assert hub.cas.requests == []
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    assert is_whole(get(hub, store, tuning=one))
    ranges = [request.headers["range"] for request in hub.paths(hub.cas, "/v1/")]
    assert ranges[0].startswith(f"bytes={hub.ends_at}-")


@pytest.mark.parametrize(
    "changes",
    [
        {"xetHash": None},
        {"xetHash": "../../etc/passwd"},
        {"lfs": {"oid": "0" * 64}},
        {"lfs": "none"},
        {"size": -1},
        {"casUrl": "local:///etc"},
        {"casUrl": "file:///etc"},
        {"casUrl": 7},
        {"accessToken": None},
        {"accessToken": "a\r\nX-Injected: 1"},
    ],
    ids=str,
)
def test_what_a_hub_says_is_checked_before_it_is_used(hub: XetHub, store: Store, changes: dict[str, object]) -> None:
    hub.hub_changes = changes
    assert is_whole(get(hub, store))
    assert hub.cas.requests == []


def test_a_size_that_lies_is_told_and_the_address_asked(hub: XetHub, store: Store) -> None:
    hub.hub_changes = {"size": len(BODY) + 1}
    heard = Heard()
    assert is_whole(get(hub, store, heard=heard))
    assert f"has {len(BODY) + 1} bytes, where {len(BODY)} were promised" in heard.notes[0]


def test_a_gated_file_says_what_to_do_and_comes_once_there_is_a_token(
    hub: XetHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    monkeypatch.delenv("HF_TOKEN")
    (problem,) = get(hub, store).problems
    assert "is gated: its owner wants its terms accepted" in problem.message
    assert "HF_TOKEN" in problem.hint
    assert hub.cas.requests == []
    monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
    assert is_whole(get(hub, store))
    assert hub.cas.requests != []


@pytest.mark.parametrize("how", ["switched off", "not installed"])
def test_without_it_the_address_is_read(hub: XetHub, store: Store, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "switched off":
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    else:
        monkeypatch.setitem(sys.modules, "hf_xet", None)
    assert is_whole(get(hub, store))
    assert hub.cas.requests == []
    assert hub.paths(hub.hub, "/api/") == []


SCRIPT = """
import sys
from pathlib import Path
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.http import RequestsTransport, Sources
from cpack_build.fetch.huggingface import HuggingFace
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.obtain import obtain
from cpack_build.fetch.folders import Wanted
from cpack_build.fetch.store import Store
from cpack_build.fetch.tuning import Tuning
root, url, sha256, size = sys.argv[1:]
done = obtain(
    Wanted("models/x", sha256, int(size), (url,)), [HuggingFace(Mirrors(), RequestsTransport(), Asker(Sources()))],
    store=Store(Path(root), further=()), tuning=Tuning(),
)
assert done.file is not None
"""


def child(hub: XetHub, store: Store, home: Path) -> subprocess.Popen[bytes]:
    home.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(home)}
    for name in ("HF_HOME", "HF_XET_LOG_DEST", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    arguments = [str(store.root), hub.url, SHA256, str(len(BODY))]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], env=environment, stderr=subprocess.PIPE)


def test_nothing_is_written_but_the_file(hub: XetHub, store: Store, tmp_path: Path) -> None:
    """Left to itself ``hf_xet`` keeps logs and reports its transfers."""
    home = tmp_path / "home"
    running = child(hub, store, home)
    assert running.communicate(timeout=120)[1] == b""
    assert running.returncode == 0
    assert hub.cas.requests != []
    assert [path for path in home.rglob("*") if not path.is_dir()] == []
    assert [request.method for request in hub.cas.requests if request.method != "GET"] == []


def test_ctrl_c_ends_it_while_the_storage_says_nothing(hub: XetHub, store: Store, tmp_path: Path) -> None:
    asked, over = threading.Event(), threading.Event()
    inner = hub.answer_cas

    def silent(request: Request) -> Answer:
        asked.set()
        over.wait(120)
        return inner(request)

    with serving(silent) as cas:
        hub.hub_changes = {"casUrl": cas.url}
        running = child(hub, store, tmp_path / "home")
        try:
            assert asked.wait(60)
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=50)
            assert b"KeyboardInterrupt" in said
            assert not over.is_set()
        finally:
            running.kill()
            running.wait()
            over.set()


def test_it_ends_when_nobody_waits_any_more(hub: XetHub, store: Store) -> None:
    """In a pool's thread, which no Ctrl-C reaches: the native download, and others that wait for their turn."""
    asked, over = threading.Event(), threading.Event()
    inner = hub.answer_cas

    def silent(request: Request) -> Answer:
        asked.set()
        over.wait(120)
        return inner(request)

    with serving(silent) as cas:
        hub.hub_changes = {"casUrl": cas.url}
        stopped(lambda: get(hub, store), when=asked.is_set)
        assert not over.is_set()
        over.set()
    hub.hub_changes = {}
    assert is_whole(get(hub, store))


def test_it_ends_while_the_hub_is_asked_for_a_grant(hub: XetHub, store: Store) -> None:
    asked, over = threading.Event(), threading.Event()
    inner = hub.answer_hub

    def silent(request: Request) -> Answer:
        if "/xet-read-token/" in request.path:
            asked.set()
            over.wait(120)
        return inner(request)

    with serving(silent) as other, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", other.url)
        stopped(lambda: get(hub, store), when=asked.is_set)
        over.set()


class Panic(BaseException):
    """As pyo3's ``PanicException``: no ``Exception``."""


class Panicking:
    """Streams whose Rust code panics."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def download_stream(self, *arguments: object) -> Iterator[bytes]:
        raise self._error

    def abort(self) -> None:
        raise self._error


@pytest.mark.parametrize("where", ["stream", "group"])
def test_a_panic_of_its_is_that_sources_failure(
    hub: XetHub, store: Store, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import hf_xet

    class Session:
        def __init__(self, config: object) -> None:
            pass

        def new_download_stream_group(self, **arguments: object) -> Panicking:
            if where == "group":
                raise Panic("index out of bounds")
            return Panicking(Panic("index out of bounds"))

    monkeypatch.setattr(hf_xet, "XetSession", Session)
    heard = Heard()
    assert is_whole(get(hub, store, heard=heard))
    (note,) = heard.notes
    assert "x.safetensors (Xet) cannot be read from Xet storage: index out of bounds" in note
    assert f"{hub.hub.url}/org/model/resolve/main/deep/x.safetensors is asked next." in note


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_no_failure_of_a_source(
    hub: XetHub, store: Store, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr("cpack_build.fetch.xet.Xet.group", lambda self, grant: Panicking(error()))
    with pytest.raises(error):
        get(hub, store)
    assert hub.paths(hub.hub, "/resolve/") == []


def test_a_login_is_that_of_huggingface_hub(hub: XetHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It renews the token of a login that is about to end; one of an unknown file is read from the file."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    own = tmp_path / "hf/token"
    own.parent.mkdir()
    own.write_text("hf_from_the_file")
    url = f"{hub.hub.url}/x"
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/elsewhere")
    assert token_for(url) == "hf_from_the_file"
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(own))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_renewed")
    assert token_for(url) == "hf_renewed"

    def fails() -> str:
        raise OSError("the exchange was refused")

    monkeypatch.setattr("huggingface_hub.get_token", fails)
    assert token_for(url) is None, "what is public needs none"
    with pytest.raises(NetworkError, match=r"cannot log in: the exchange was refused"):
        token_for(url, strict=True)
