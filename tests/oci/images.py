"""Small images for the tests of this room: a real one that runs (a static busybox) and ones of a few bytes."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpack_build.oci import tar
from cpack_build.oci.types import CONFIG, LAYER, MANIFEST, Blob, BytesBlob, Descriptor, Image, canonical_json
from tests import need

APPLETS = ("cat", "echo", "httpd", "id", "ls", "sh", "sleep")


def machine() -> str:
    """This machine's architecture by its OCI name."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def layer(entries: Sequence[tar.Entry]) -> BytesBlob:
    """An uncompressed layer in memory."""
    return BytesBlob(LAYER, b"".join(tar.stream(entries)))


def text_layer(files: Mapping[str, str | bytes]) -> BytesBlob:
    """A layer with those files and nothing else."""
    contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    return layer([tar.Entry(path, "file", content=tar.BytesContent(data)) for path, data in contents.items()])


def image_of(layers: Sequence[Blob], *, config: Mapping[str, Any] | None = None, architecture: str = "") -> Image:
    """An image of uncompressed *layers*; *config* is the part that ``docker run`` reads."""
    document = {
        "architecture": architecture or machine(),
        "os": "linux",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [blob.descriptor.digest for blob in layers]},
        "history": [{"created_by": "cpack-build test"} for _ in layers],
    }
    config_blob = BytesBlob(CONFIG, canonical_json(document))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config_blob.descriptor.to_json(),
        "layers": [blob.descriptor.to_json() for blob in layers],
    }
    return Image(BytesBlob(MANIFEST, canonical_json(manifest)), config_blob, tuple(layers))


def small_image(text: str = "hello") -> Image:
    """Two layers of a few hundred bytes; *text* makes it another image."""
    return image_of([text_layer({"etc/motd": "below\n"}), text_layer({"srv/text": text})])


def web_image() -> Image:
    """Serves ``/index.html`` on port 3000 as uid 1000; one layer occurs twice, as in images with empty steps."""
    busybox = Path(need.tool("busybox"))
    programs = layer(
        [
            tar.Entry("bin", "directory", 0o755),
            tar.Entry("bin/busybox", "file", 0o755, content=tar.BytesContent(busybox.read_bytes())),
            *(tar.Entry(f"bin/{name}", "symlink", 0o777, target="busybox") for name in APPLETS),
        ]
    )
    pages = layer([tar.Entry("www", "directory", 0o755), *_file("www/index.html", b"hello\n")])
    return image_of(
        [programs, pages, programs],
        config={
            "Entrypoint": ["/bin/httpd", "-f", "-p", "3000", "-h", "/www"],
            "Env": ["PATH=/bin"],
            "ExposedPorts": {"3000/tcp": {}},
            "User": "1000:1000",
        },
    )


def _file(path: str, data: bytes) -> list[tar.Entry]:
    return [tar.Entry(path, "file", content=tar.BytesContent(data))]


@dataclass(frozen=True)
class BrokenBlob:
    """A blob that gives other bytes than its descriptor promises, or fails on the way."""

    descriptor: Descriptor
    data: bytes
    error: BaseException | None = None

    def chunks(self) -> Iterator[bytes]:
        yield self.data
        if self.error is not None:
            raise self.error


def with_top_layer(image: Image, data: bytes, *, error: BaseException | None = None) -> Image:
    """*image* whose top layer really gives *data* (and then *error*)."""
    *below, top = image.layers
    return replace(image, layers=(*below, BrokenBlob(top.descriptor, data, error)))
