"""A token in a real build: the step that fetches a gated model has it, its host gets it, and nothing keeps it."""

from __future__ import annotations

import gzip
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_hex

import pytest

from tests import need
from tests.backends.conftest import Built
from tests.engines import Docker

pytestmark = [pytest.mark.network, pytest.mark.xdist_group("builders")]


@dataclass
class Hub:
    """``huggingface.co`` as a proxy leads to it: *proxy* is the address, *ca* its certificate."""

    proxy: str
    ca: Path
    model: bytes
    token: str
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    """What was asked for, and with which token."""


@contextmanager
def run_hub(folder: Path, address: str, *, model: bytes, token: str) -> Iterator[Hub]:
    """A proxy at *address* behind which there is nobody but the hub, which gives *model* for *token*."""
    subprocess.run(
        [need.tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", "/CN=huggingface.co", "-addext", "subjectAltName=DNS:huggingface.co",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "ca.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "ca.pem", folder / "key.pem")

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_response(200)
            self.end_headers()
            hub.seen.append((self.path, self.headers["Authorization"]))
            self.connection = tls.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
            self.close_connection = False

        def do_GET(self) -> None:
            given = self.headers["Authorization"]
            hub.seen.append((self.path, given))
            known = given == f"Bearer {hub.token}"
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(hub.model) if known else 0))
            self.end_headers()
            self.wfile.write(hub.model if known else b"")
            self.close_connection = True

        def finish(self) -> None:
            super().finish()
            self.connection.close()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer((address, 0), Handler) as server:
        hub = Hub(f"http://{address}:{server.server_port}", folder / "ca.pem", model, token)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def test_a_gated_model_is_fetched_with_a_token_that_nothing_keeps(
    built: Built, new_docker: Docker, tmp_path: Path
) -> None:
    token, wrong = f"hf_{token_hex(16)}", f"hf_{token_hex(16)}"
    lock = json.loads(built.example.pack.with_name("example.cpack.lock").read_text())
    (model,) = lock["models"]
    data = built.example.pack.with_name("models").joinpath("upscale_models/tiny.safetensors").read_bytes()
    source = "https://huggingface.co/someone/gated/resolve/main/tiny.safetensors"
    lock["models"] = [{**model, "sources": [source], "access": "gated"}]
    (tmp_path / "gated.lock").write_text(json.dumps(lock))
    printed = tmp_path / "printed"
    frozen = ("--lock", tmp_path / "gated.lock", "--frozen", "--trust")
    run = built.image("--backend", "buildkit", *frozen, "--print", printed, environment={"HF_TOKEN": token})
    assert run.code == 0, run.said
    assert not [path for path in printed.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]

    stage = f"FROM tools AS model-{model['sha256'][:12]}\n"
    text = (printed / "Dockerfile").read_text()
    assert stage in text
    trusting = "COPY ca.pem /test-ca.pem\nENV SSL_CERT_FILE=/test-ca.pem\n"  # the hub's certificate is the test's own
    (printed / "Dockerfile").write_text(text.replace(stage, stage + trusting))
    with (printed / ".dockerignore").open("a") as file:
        file.write("!ca.pem\n")
    gateway = new_docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").stdout
    storage = Path(new_docker.host.removeprefix("unix://")).parent / "data"
    with run_hub(tmp_path, gateway.strip(), model=data, token=token) as hub:
        (printed / "ca.pem").write_bytes(hub.ca.read_bytes())

        def bake(*words: str, given: str | None) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [new_docker.command, "buildx", "bake", "--progress=plain", f"--set=image.args.HTTPS_PROXY={hub.proxy}",
                 *words],
                cwd=printed, capture_output=True, text=True, check=False,
                env={"PATH": "/usr/bin:/bin", **new_docker.environment, **({"HF_TOKEN": given} if given else {})},
            )  # fmt: skip

        done = bake("--set=image.output=type=cacheonly", given=None)
        assert done.returncode
        assert "set the variable HF_TOKEN" in done.stderr
        assert hub.seen == []
        done = bake("--set=image.output=type=cacheonly", given=wrong)
        assert done.returncode
        assert f"{source} answered 401 to the token in HF_TOKEN" in done.stderr
        assert wrong not in done.stderr + done.stdout
        hub.seen.clear()
        layout, cache = tmp_path / "image.oci", tmp_path / "cache"
        done = bake(
            f"--set=image.output=type=oci,dest={layout},tar=false,compression=uncompressed",
            f"--set=image.cache-to=type=local,dest={cache},compression=uncompressed",
            given=token,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert token not in done.stderr + done.stdout
        path = source.removeprefix("https://huggingface.co")
        assert hub.seen == [("huggingface.co:443", None), (path, f"Bearer {token}")], "the proxy is not shown it"

    kept = list(_contents(layout)) + list(_contents(cache))
    assert any(data in content for content in kept), "the model is in the image"
    assert sum(source.encode() in content for content in kept) >= 2, "history and provenance name its address"
    assert not [content for content in kept if token.encode() in content]
    grep = [need.tool("grep"), "--recursive", "--files-with-matches", "--fixed-strings", "--binary-files=text"]
    for word, found in ((source, True), (token, False), (wrong, False)):
        done = subprocess.run([*grep, "-e", word, storage / "buildkit"], capture_output=True, text=True, check=False)
        assert bool(done.stdout) == found, f"{word} in the daemon's own cache: {done.stdout}"


def _contents(layout: Path) -> Iterator[bytes]:
    """Every file of *layout*, unpacked."""
    for path in layout.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            yield gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
