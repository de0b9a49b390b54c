"""A rebuild after one node changed, by each backend that is here: what a person waits for between two tries; and beside
each time the image's digest, and what of its root file system is not the embedded one's.

Each has built the example before, so its caches are warm. Locking the changed pack is not counted."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import PIL.Image

from bench.measure import BenchError, Row, cpack_build
from cpack_build.lock.machine import this_platform
from cpack_build.oci.reference import LayoutName
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import Image
from tests.backends.roots import differences, root_of
from tests.example import make_example

BACKENDS = {"embedded": None, "buildkit": "docker", "nix": "nix"}
"""Name → the program that it needs."""


def rows(place: Path) -> Iterator[Row]:
    """Build with each, change the node, and build again with each."""
    picture = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (200, 100, 50)).save(picture, "PNG")
    pack = make_example(place, sample=picture.getvalue()).pack
    home = place / "store"
    here = []
    cpack_build("lock", pack, "-q", home=home)
    for name, program in BACKENDS.items():
        try:
            if program is None or shutil.which(program):
                _image(pack, name, home, place / f"{name}-1")
                here.append(name)
        except BenchError as error:
            print(f"backends: {name} is left out: {str(error).splitlines()[-1]}")
    _change(pack, place / "standin-tint")
    cpack_build("lock", pack, "-q", home=home)
    seconds = {name: _image(pack, name, home, place / f"{name}-2") for name in here}
    for name, took in seconds.items():
        peer = "" if name == "embedded" else "embedded"
        yield Row(
            "backends", f"one node changed, {name}", took, peer, seconds["embedded"] if peer else None,
            note=_compared(place / "embedded-2", place / f"{name}-2"),
        )  # fmt: skip


def _compared(ours: Path, theirs: Path) -> str:
    """The digest of *theirs*, and how its root differs from that of *ours*, by the names of the files that do."""
    image, other = _opened(ours), _opened(theirs)
    if other.digest == image.digest:
        return other.digest if ours == theirs else f"{other.digest}, the same"
    root, found = root_of(image), differences(root_of(image), root_of(other))
    kinds = Counter("bin/*" if "/bin/" in path else path.rpartition("/")[2] for path in found)
    told = ", ".join(f"{count} {name}" for name, count in kinds.most_common(6))
    return f"{other.digest}, {len(found)} of {len(root)} entries differ: {told}"


def _opened(layout: Path) -> Image:
    return open_source(LayoutName(layout)).as_image(this_platform())


def _image(pack: Path, backend: str, home: Path, layout: Path) -> float:
    words = ("image", pack, "--backend", backend, "--locked", "--trust", "-q", "--output", f"oci:{layout}")
    return cpack_build(*words, home=home, environment=_nix_store(home.parent / "nix")).seconds


def _nix_store(root: Path) -> dict[str, str]:
    """A Nix store of the bench's own, that any user can write and no nixpkgs is needed for."""
    return {
        "NIX_STORE_DIR": f"{root}/store",
        "NIX_STATE_DIR": f"{root}/state",
        "NIX_LOG_DIR": f"{root}/log",
        "NIX_CONF_DIR": f"{root}/conf",
        "NIX_CONFIG": "sandbox = false\nsubstituters =\nbuild-users-group =",
    }


def _change(pack: Path, repository: Path) -> None:
    """Commit a change to the node, and pin that in the pack."""
    with (repository / "__init__.py").open("a") as file:
        file.write("\n# changed\n")
    git = ["git", "-C", str(repository), "-c", "user.name=bench", "-c", "user.email=bench@bench.example"]
    subprocess.run([*git, "commit", "--quiet", "--all", "--message", "change"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    with zipfile.ZipFile(pack) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    snapshot = json.loads(files["snapshot.json"])
    for pin in snapshot["git_custom_nodes"].values():
        pin["hash"] = commit
    files["snapshot.json"] = json.dumps(snapshot).encode()
    with zipfile.ZipFile(pack, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
