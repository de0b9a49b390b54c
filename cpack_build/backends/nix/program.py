"""Nix itself, called: its settings, an evaluation, a build, files into its store. What it says becomes errors of ours.

Only ``nix-instantiate``, ``nix-build`` and ``nix-store`` are needed, which no feature has to be turned on for."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cpack_build.errors import (
    BadInput,
    CpackError,
    EngineFailed,
    HashMismatch,
    NetworkError,
    StorageError,
    ToolMissing,
    Unresolvable,
    UnsafeInput,
)
from cpack_build.progress import Progress

__all__ = ["Nix", "hidden"]

_FEATURES = ("--extra-experimental-features", "nix-command")
_KEPT = 400
"""Lines of what Nix said last."""
_BUILDING = re.compile(r"building '[^']*-cpack-([^']*)\.drv'|copying path '[^']*-cpack-([^']*)' from")
_DERIVATION = re.compile(r"^ +(/\S+\.drv)$", re.MULTILINE)
_MISMATCH = re.compile(r"hash mismatch in fixed-output derivation '[^']*-cpack-([^']*?)\.drv'.*", re.DOTALL)
_EXITED = re.compile(r"builder for '[^']*-cpack-([^']*?)\.drv' failed with exit code (\d+)")
_OURS = re.compile(r"(?:> ?|^ *)cpack-build: (.+)$", re.MULTILINE)
_UNWRITABLE = re.compile(
    r"^ *error: (.*(?:Permission denied|Read-only file system|Operation not permitted|is not a directory"
    r"|Not a directory|remounting .* writable).*)$",
    re.MULTILINE,
)
_CODES: Mapping[int, type[CpackError]] = {
    3: BadInput,
    4: Unresolvable,
    6: NetworkError,
    7: EngineFailed,
    8: UnsafeInput,
    9: StorageError,
}


@dataclass(frozen=True)
class Nix:
    """The Nix on this machine. *options* go with every build: builders and substituters."""

    options: tuple[str, ...] = ()

    def require(self) -> None:
        """See that it is here and its store answers. Raises :class:`ToolMissing`, :class:`StorageError`."""
        if shutil.which("nix-build") is None:
            raise ToolMissing(
                "Nix is not installed: there is no nix-build.",
                hint="Install it (Debian: nix-bin), or leave --backend nix out.",
            )
        with TemporaryDirectory(prefix="cpack-nix-") as place:  # whether it can be written only a write tells
            probe = Path(place, "cpack-probe")
            probe.write_text("written to see whether the store can be\n")
            self._run("nix-store", "--add", str(probe))

    def settings(self) -> dict[str, Any]:
        """Its settings by name, as it is configured for this user."""
        for command in (("config", "show"), ("show-config",)):
            done = subprocess.run(["nix", *_FEATURES, *command, "--json"], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return {name: entry["value"] for name, entry in json.loads(done.stdout).items()}
        raise _explained(done.stderr, "Nix does not tell its settings")

    def evaluated(self, folder: Path, attribute: str, *, platform: str) -> Any:
        """The value of an *attribute* of ``default.nix``, which must be plain data."""
        arguments = ["--eval", "--strict", "--json", "-A", attribute, "--argstr", "platform", platform]
        return json.loads(self._run("nix-instantiate", *arguments, str(folder / "default.nix")))

    def to_build(self, folder: Path, attribute: str, *, platform: str) -> frozenset[str]:
        """The derivations that a build would have to run; what a substituter has is not among them."""
        arguments = ["--dry-run", "-A", attribute, "--argstr", "platform", platform, *self.options]
        said = self._run("nix-build", *arguments, str(folder / "default.nix"), is_said=True)
        part = said.partition("will be built")[2].partition("will be fetched")[0]
        return frozenset(_DERIVATION.findall(part))

    def added_file(self, path: Path, name: str) -> None:
        """The file at *path* in the store, as a fixed output called *name*. No derivation need fetch it then."""
        self._run("nix", *_FEATURES, "store", "add-file", "--name", name, str(path))

    def added_folder(self, path: Path, name: str) -> None:
        """The same with a folder, by its NAR."""
        self._run("nix", *_FEATURES, "store", "add-path", "--name", name, str(path))

    def build(self, folder: Path, attribute: str, link: Path, *, platform: str, steps: int, progress: Progress) -> Path:
        """Build an *attribute*, held against garbage collection by *link*; where it lies. *steps* derivations run."""
        command = ["nix-build", str(folder / "default.nix"), "-A", attribute, "--argstr", "platform", platform]
        command += ["--out-link", str(link), *self.options]
        said: deque[str] = deque(maxlen=_KEPT)
        with (
            progress.task("Building with Nix", total=steps, unit="derivations") as task,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            ) as process,
        ):
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line)
                if _BUILDING.search(line):
                    task.advance(1)
        if process.returncode:
            raise _explained("".join(said), "Nix could not build the image")
        return link.resolve()

    def copy(self, path: Path, cache: str) -> None:
        """Put *path* and all that it needs into the binary *cache*."""
        self._run("nix", *_FEATURES, "copy", "--to", cache, str(path))

    def _run(self, *command: str, is_said: bool = False) -> str:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise _explained(done.stderr, f"`{shlex.join(command[:3])} …` failed")
        return done.stderr if is_said else done.stdout


def _explained(said: str, otherwise: str) -> CpackError:
    """What Nix *said* as an error of ours, with its own words in the detail."""
    error = _of_the_store(said) or _of_a_build(said) or _otherwise(said, otherwise)
    error.detail = said.strip()
    return error


def _of_the_store(said: str) -> CpackError | None:
    if "No space left on device" in said:
        return StorageError("No space is left for the Nix store.", hint="Run nix-collect-garbage, and try again.")
    found = _UNWRITABLE.search(said)
    if found:
        return StorageError(
            f"The Nix store cannot be written: {_line(found[1])}.",
            hint="Use the Nix daemon (NIX_REMOTE=daemon), or name a store of your own (NIX_STORE_DIR, NIX_STATE_DIR).",
        )
    if re.search(r"cannot connect to (?:socket|daemon)|cannot connect to .*daemon-socket", said):
        return ToolMissing("The Nix daemon does not answer.", hint="Start it: systemctl start nix-daemon.")
    return None


def _of_a_build(said: str) -> CpackError | None:
    if mismatch := _MISMATCH.search(said):
        hashes = re.findall(r"(?:specified|got):\s*(\S+)", mismatch[0])
        return (
            HashMismatch(f"What Nix got for {mismatch[1]}", expected=_hex(hashes[0]), actual=_hex(hashes[1]))
            if len(hashes) >= 2
            else None
        )
    if found := re.search(r"a '([^']+)' with features \{[^}]*\} is required to build", said):
        return ToolMissing(
            f"No machine that Nix knows builds for {found[1]}.",
            hint="Name a remote builder with --builder 'ssh://HOST SYSTEM', or leave that platform out.",
        )
    if re.search(r"executing '[^']+': No such file or directory", said):
        return hidden()
    exited = _EXITED.search(said)
    ours = _OURS.findall(said)
    if exited and ours:
        kind = _CODES.get(int(exited[2]), EngineFailed)
        if exited[2] == "5" and (told := re.search(r"has sha256 (\w+), but (\w+) was promised", ours[-1])):
            return HashMismatch(f"What {exited[1]} is made of", expected=told[2], actual=told[1])
        return kind(f"The derivation {exited[1]} failed: {ours[-1]}")
    if exited:
        return EngineFailed(
            f"The derivation {exited[1]} failed with exit code {exited[2]}.", hint="Its log is shown with -v."
        )
    if "unable to download" in said:
        return NetworkError(f"Nix could not fetch something: {_line(said[said.index('unable to download') :])}.")
    return None


def hidden() -> CpackError:
    """That the builder cannot be seen by the build."""
    return ToolMissing(
        "Nix's sandbox hides this machine's Python, which is to build.",
        hint="Print the build with --print and add a nixpkgs to it (docs/nix.md), or run it with sandbox = false.",
    )


def _otherwise(said: str, otherwise: str) -> CpackError:
    told = re.findall(r"^ *error: (.*\S.*)$", said, re.MULTILINE)
    return EngineFailed(f"{otherwise}: {_line(told[-1]) if told else 'it did not say why'}.")


def _line(text: str) -> str:
    return text.strip().splitlines()[0].strip().rstrip(".") if text.strip() else ""


def _hex(text: str) -> str:
    """A hash as Nix writes it (``sha256-<base64>``, ``sha256:<base32>``), in hex where it is the first."""
    import base64
    import binascii

    try:
        return base64.b64decode(text.removeprefix("sha256-"), validate=True).hex()
    except binascii.Error:
        return text
