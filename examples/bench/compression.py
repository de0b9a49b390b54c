"""Compressing a layer for a registry, and the second time, beside the gzip and zstd programs on the same bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.measure import Row, run, timed
from cpack_build.fetch.store import Store
from cpack_build.oci.compressed import compressed, parse_compression
from cpack_build.oci.types import LAYER, Descriptor, FileBlob

_MIB = 96


def rows(place: Path) -> Iterator[Row]:
    """Compress one file as a layer: words in a random order, about as compressible as programs are."""
    path = place / "layer.tar"
    digest = _write(path)
    layer = FileBlob(Descriptor(LAYER, digest, path.stat().st_size), path)
    for how, program in (("gzip", ["gzip", "-6"]), ("zstd", ["zstd", "-q", "-3", "-T2"])):
        compression = parse_compression(how)
        once = partial(compressed, layer, compression, store=Store(place / how))
        cold, warm, size = timed(once), timed(once), once().descriptor.size
        peer, seconds = "", None
        if shutil.which(program[0]):
            peer, seconds = " ".join(program), run([*program, "-k", "-f", path]).seconds
        note = f"{_MIB} MiB to {size / (1 << 20):.0f}, hashed on both sides, kept"
        yield Row("compress", f"a layer, {compression}", cold, peer, seconds, note=note)
        yield Row("compress", f"the same again, {compression}", warm, peer, seconds, note="remembered")


def _write(path: Path) -> str:
    """The file; its digest."""
    import hashlib

    chance = random.Random(1)
    words = [bytes(chance.choices(range(256), k=chance.randint(2, 12))) for _ in range(5000)]
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(_MIB):
            piece = b"".join(chance.choices(words, k=1 << 18))[: 1 << 20].ljust(1 << 20)
            file.write(piece)
            hasher.update(piece)
    return f"sha256:{hasher.hexdigest()}"
