"""A base image is pinned by its platform's manifest, and only what decides the rest is read of its layers."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cpack_build.errors import BadImage, Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.base import Base, open_base
from cpack_build.lock.interpreter import base_interpreter
from cpack_build.oci import tar
from cpack_build.oci.layout import write_layout
from cpack_build.oci.types import LAYER, LAYER_GZIP, LAYER_ZSTD, Blob, BytesBlob
from tests.lock.progress import Heard
from tests.oci.images import image_of, layer, text_layer

STATUS = "var/lib/dpkg/status"
SOURCES = "etc/apt/sources.list.d/debian.sources"


def file(path: str, text: str = "") -> tar.Entry:
    return tar.Entry(path, "file", content=tar.BytesContent(text.encode()))


def symlink(path: str, target: str) -> tar.Entry:
    return tar.Entry(path, "symlink", 0o777, target=target)


def opened(folder: Path, store: Store, *layers: Blob, heard: Heard | None = None) -> Base:
    image = image_of(layers, architecture="amd64")
    write_layout(image, folder, tag="base")
    base = open_base(f"oci:{folder}", platform="linux/amd64", store=store, sources=Sources(), progress=heard or Heard())
    assert base.record.digest == image.digest
    return base


def test_a_base_gives_apt_s_files_and_its_pythons(store: Store, tmp_path: Path) -> None:
    base = opened(
        tmp_path / "base", store,
        text_layer({STATUS: "one", SOURCES: "Types: deb\n", "etc/passwd": "root", "etc/apt/apt.conf.d/99": "evil"}),
        text_layer({"usr/local/bin/python3.11": "elf", "usr/bin/python3": "", STATUS: "two"}),
    )  # fmt: skip
    assert dict(base.files) == {STATUS: b"two", SOURCES: b"Types: deb\n"}
    assert base.paths == {"usr/local/bin/python3.11"}
    interpreter = base_interpreter("3.11", base.paths)
    assert interpreter is not None
    assert interpreter.path == "/usr/local/bin/python3.11"
    assert base_interpreter("3.12", base.paths) is None
    assert base.record.reference == "layout"


def test_whiteouts_remove_what_lies_below(store: Store, tmp_path: Path) -> None:
    keys = "usr/share/keyrings"
    base = opened(
        tmp_path / "base", store,
        text_layer({"usr/bin/python3.11": "", SOURCES: "a", f"{keys}/a.gpg": "a", f"{keys}/b.gpg": "b", STATUS: "s"}),
        layer([
            file("usr/bin/.wh.python3.11"), file("etc/.wh.apt"), file(f"{keys}/c.gpg", "c"),
            file(f"{keys}/.wh..wh..opq"),
        ]),
    )  # fmt: skip
    assert base.paths == set()
    assert dict(base.files) == {STATUS: b"s", f"{keys}/c.gpg": b"c"}


def test_links_between_keys_are_followed(store: Store, tmp_path: Path) -> None:
    entries = [file("usr/share/keyrings/d.pgp", "key"), symlink("usr/share/keyrings/d.gpg", "d.pgp")]
    entries += [symlink("etc/apt/trusted.gpg.d/d.gpg", "/usr/share/keyrings/d.gpg")]
    entries += [symlink("etc/apt/trusted.gpg.d/out.gpg", "../../../../../etc/shadow")]
    entries += [symlink("etc/apt/trusted.gpg.d/loop.gpg", "loop.gpg")]
    base = opened(tmp_path / "base", store, layer(entries))
    assert dict(base.files) == dict.fromkeys(
        ("usr/share/keyrings/d.pgp", "usr/share/keyrings/d.gpg", "etc/apt/trusted.gpg.d/d.gpg"), b"key"
    )


@pytest.mark.parametrize("kind", [LAYER_GZIP, LAYER_ZSTD])
def test_compressed_layers_are_read(kind: str, store: Store, tmp_path: Path) -> None:
    import zstandard

    plain = text_layer({STATUS: "x"}).data
    data = gzip.compress(plain) if kind == LAYER_GZIP else zstandard.compress(plain)
    assert dict(opened(tmp_path / "base", store, BytesBlob(kind, data)).files) == {STATUS: b"x"}


def test_a_base_is_read_once(store: Store, tmp_path: Path) -> None:
    layers = [text_layer({STATUS: "x", "usr/bin/python3.11": ""})]
    first, second = Heard(), Heard()
    cold = opened(tmp_path / "one", store, *layers, heard=first)
    warm = opened(tmp_path / "two", store, *layers, heard=second)
    assert cold == warm
    assert first.titles
    assert second.titles == []


@pytest.mark.parametrize(
    ("kind", "magic"),
    [
        (LAYER_GZIP, b"\x1f\x8b"),
        (LAYER_GZIP, b"\x1f\x8b\x08\0\0\0\0\0\0\0"),
        (LAYER_ZSTD, b"\x28\xb5\x2f\xfd"),
        (LAYER, b""),
    ],
)
def test_a_damaged_layer_is_named(kind: str, magic: bytes, store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="Layer sha256:"):
        opened(tmp_path / "base", store, BytesBlob(kind, magic + b"damaged" * 100))


def test_another_platform_s_image_is_refused(store: Store, tmp_path: Path) -> None:
    write_layout(image_of([text_layer({STATUS: "x"})], architecture="arm64"), tmp_path / "base", tag="base")
    with pytest.raises(Unresolvable, match="linux/arm64"):
        open_base(f"oci:{tmp_path / 'base'}", platform="linux/amd64", store=store, sources=Sources())
