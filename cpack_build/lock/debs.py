"""System packages: names → the .deb files that apt would install, by sha256, with nothing installed and nothing run.

The host's own ``apt-get`` resolves (or another's, :mod:`.apt`), in a state of its own below the store: its own lists,
caches and status file, no locks, no hooks, any user. apt checks the signatures; nothing here ever waives that. On
``scratch`` the sources are the host's and the status file is empty; over a base image both are the base's. apt's
``--print-uris`` says which files, the signed Packages lists say their sha256.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from cpack_build import filesystem
from cpack_build.errors import NetworkError, ToolMissing, Unresolvable, UnsafeInput, writing
from cpack_build.fetch.http import Sources, download
from cpack_build.fetch.mirrors import Mirrors, local_path
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.fetch.urls import redact, without_credentials
from cpack_build.lock.apt import Apt, HostApt, has_apt
from cpack_build.lock.schema import Deb
from cpack_build.progress import SILENT, Progress

__all__ = [
    "FLOOR",
    "AptSources",
    "Archive",
    "base_sources",
    "fetch_deb",
    "glibc_minor",
    "host_sources",
    "installed",
    "open_archive",
]

FLOOR = (
    "base-files",
    "base-passwd",
    "ca-certificates",
    "coreutils",
    "dash",
    "libc-bin",
    "libexpat1",
    "libstdc++6",
    "tzdata",
    "zlib1g",
)
"""What every image on ``scratch`` gets: the file tree, accounts, a shell and its commands, certificates, ``ldconfig``,
time zones, and of the libraries that manylinux wheels count on (PEP 600) those that need no display."""

_FRESH = 3600.0
"""Seconds for which the lists of a set of sources are taken as current."""
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+)?")
_URI = re.compile(r"\b(?P<url>https?://[^\s\]#]+)")
_PRINTED = re.compile(r"'(?P<url>[^']+)' (?P<file>[^ /]+)_(?P<arch>[^ _/]+)\.deb (?P<size>\d+) ?.*")
"""A line of ``apt-get --print-uris``; the file name holds the version with its epoch's colon as ``%3a``."""
_SOURCE = re.compile(r"deb( \[[^\[\]\n%\"]*\])? https?://[^\s\[\]#]+ \S+( [\w./-]+)*")
"""No ``%`` or quote among the options: apt reads ``%74rusted`` as ``trusted`` (``ParseQuoteWord``)."""
_WAIVED = re.compile(
    r"\b(trusted|allow-(insecure|weak|downgrade-to-insecure))\s*[=:](?!\s*(no|false|without|off|disable|0)\b)",
    re.IGNORECASE,
)
"""Anything but apt's words for no (apt-pkg/contrib/strutl.cc, ``StringToBool``), which has as many for yes."""


@dataclass(frozen=True)
class AptSources:
    """Where apt may take packages from: *files* maps paths without a first ``/`` (``etc/apt/sources.list``) to content.

    *status* is dpkg's record of what is installed already. Key paths in the sources lead to the host's own files if
    *is_host*, else to those among *files*.
    """

    files: Mapping[str, bytes]
    status: bytes
    is_host: bool

    def replaced(self, lines: Sequence[str]) -> AptSources:
        """The same keys and status with other sources: *lines* of the one-line format (sources.list(5)).

        Raises :class:`UnsafeInput` where one waives its signature or names no http(s) URL.
        """
        for line in lines:
            if not _SOURCE.fullmatch(line):
                raise UnsafeInput(
                    f"system.sources has {redact(line)!r}, which is no line of apt's for an http(s) archive.",
                    hint="Write `deb [options] https://host/path suite component…`.",
                )
            if _WAIVED.search(line):
                raise UnsafeInput(f"system.sources has {redact(line)!r}, which waives apt's signature check.")
        kept = {path: data for path, data in self.files.items() if not path.startswith("etc/apt/sources.list")}
        text = "".join(f"{line}\n" for line in lines)
        return AptSources({**kept, "etc/apt/sources.list": text.encode()}, self.status, self.is_host)


def host_sources() -> AptSources:
    """This machine's own. Raises :class:`ToolMissing` where it is neither Debian nor Ubuntu nor anything with apt."""
    if not has_apt():
        raise ToolMissing(
            "There is no apt on this machine, and system packages on `scratch` come from the host's own sources.",
            hint="Run it on Debian or Ubuntu, or name a base with apt: `lock --backend buildkit --base REF`.",
        )
    etc = Path("/etc/apt")
    files = {}
    for pattern in ("sources.list", "sources.list.d/*.list", "sources.list.d/*.sources", "preferences",
                    "preferences.d/*"):  # fmt: skip
        for path in sorted(etc.glob(pattern)):
            if path.is_file() and os.access(path, os.R_OK):
                files[str(path)[1:]] = path.read_bytes()
    if not any("sources.list" in path for path in files):
        raise ToolMissing("This machine's apt has no sources.", hint="Write them to /etc/apt/sources.list.d.")
    return AptSources(files, b"", True)


def base_sources(files: Mapping[str, bytes]) -> AptSources:
    """A base image's own, from its files below ``etc/apt`` and ``usr/share/keyrings`` and its dpkg status.

    Raises :class:`UnsafeInput` where a source waives its signature, :class:`Unresolvable` where there is no dpkg.
    """
    status = files.get("var/lib/dpkg/status")
    if status is None:
        raise Unresolvable(
            "The base image has no dpkg, so no system packages can be added to it.",
            hint="Set system: {defaults: none} in cpack.yaml, or choose a Debian or Ubuntu base.",
        )
    kept = {}
    for path, content in files.items():
        if re.match(r"etc/apt/(sources\.list|sources\.list\.d/[^/]+\.(list|sources))$", path):
            text = content.decode("utf-8", "replace")
            if _WAIVED.search(_without_comments(text)):
                raise UnsafeInput(f"The base image's {path} waives apt's signature check.", hint="Use another base.")
            if re.search(r"\b(file|cdrom|copy|ssh|rsh|mirror|tor)(\+\w+)?:/", _without_comments(text)):
                raise UnsafeInput(f"The base image's {path} names a source that is no http(s) URL.")
        if path.startswith(("etc/apt/", "usr/share/keyrings/")) and not path.startswith("etc/apt/apt.conf"):
            kept[path] = content
    return AptSources(kept, status, False)


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


@dataclass(frozen=True)
class Archive:
    """apt's view of a set of sources, up to date; :meth:`resolve` asks it."""

    root: Path
    problems: str
    """What apt said against single sources; it matters only if something cannot be found."""
    _original: Mapping[str, str]
    _apt: Apt = field(default_factory=HostApt)

    def resolve(self, packages: Sequence[str]) -> tuple[Deb, ...]:
        """*packages* and all that they depend on and that is not installed, by name. Raises :class:`Unresolvable`."""
        for package in packages:
            if not _NAME.fullmatch(package):
                raise UnsafeInput(f"{package!r} is no name of a system package.", hint="Correct system.packages.")
        if not packages:
            return ()
        result = self._run(
            "apt-get", "install", "--no-install-recommends", "--print-uris", "-q", "-y", "--", *sorted(packages)
        )
        if result.returncode:
            raise self._explained(result.stderr + result.stdout)
        files = {}
        for line in result.stdout.splitlines():
            if match := _PRINTED.fullmatch(line):
                name, _, version = match["file"].partition("_")
                files[name, unquote(version), match["arch"]] = (match["url"], int(match["size"]))
        return tuple(sorted(self._described(files), key=lambda deb: (deb.name, deb.architecture)))

    def has(self, package: str) -> bool:
        """Whether some source offers *package*."""
        found = self._run("apt-cache", "policy", "--", package).stdout
        return bool(re.search(r"^ +Candidate: (?!\(none\))", found, re.MULTILINE))

    def _described(self, files: Mapping[tuple[str, str, str], tuple[str, int]]) -> Iterator[Deb]:
        """The records of the Packages lists (deb-src-control, "Debian repository format") for what apt would get."""
        if not files:
            return
        asked = [f"{name}:{arch}={version}" if arch != "all" else f"{name}={version}" for name, version, arch in files]
        records = self._run("apt-cache", "show", "--", *asked).stdout
        found = set()
        for stanza in re.split(r"\n\n+", records):
            fields: dict[str, str] = dict(re.findall(r"^([A-Za-z0-9-]+): *(.*)$", stanza, re.MULTILINE))
            key = (fields.get("Package", ""), fields.get("Version", ""), fields.get("Architecture", ""))
            if key not in files or key in found or "SHA256" not in fields:
                continue
            url, size = files[key]
            if not unquote(url).endswith("/" + fields["Filename"].removeprefix("./")) or int(fields["Size"]) != size:
                continue  # the same version from another source
            found.add(key)
            source = fields.get("Source", key[0]).split(" ", 1)[0]
            yield Deb(
                name=key[0], version=key[1], architecture=key[2], source=source, url=self._public(url),
                sha256=fields["SHA256"].lower(), size=size,
            )  # fmt: skip
        if lacking := sorted(name for name, version, arch in files if (name, version, arch) not in found):
            raise Unresolvable(
                f"apt's lists give no SHA256 for {', '.join(lacking)}.", hint="Use a source whose Packages files do."
            )

    def _public(self, url: str) -> str:
        for mirror, original in self._original.items():
            if url.startswith(mirror):
                return without_credentials(original + url[len(mirror) :])
        return without_credentials(url)

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self._apt.run(self.root, *command)

    def _explained(self, said: str) -> Unresolvable:
        lines = [line.strip() for line in redact(said).splitlines()]
        errors = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
        needs = [
            re.sub(r"\s+", " ", line) for line in lines if re.search(r"\bDepends:|is not (going|installable)", line)
        ]
        problems = f" apt had trouble with its sources: {self.problems}" if self.problems else ""
        return Unresolvable(
            f"The system packages cannot be resolved: {'; '.join([*errors, *needs[:3]]) or 'apt failed'}.",
            hint="Correct system.packages in cpack.yaml (names as in Debian or Ubuntu)." + problems,
        )


def open_archive(
    apt: AptSources,
    *,
    architecture: str,
    store: Store,
    mirrors: Mirrors,
    program: Apt | None = None,
    progress: Progress = SILENT,
) -> Archive:
    """apt's lists for *apt*'s sources, updated unless that was done within the hour. *architecture* as Debian's names.

    A source that fails is a note; whether it is missed shows in :meth:`Archive.resolve`.
    """
    program = program or HostApt()
    texts, original = _mapped(apt, mirrors, reads_files=program.reads_files)
    identity = hashlib.sha256(architecture.encode())
    for path, content in sorted(texts.items()):
        identity.update(f"\0{path}\0{len(content)}\0".encode() + content)
    identity.update(b"\0" + apt.status + b"\0" + os.fsencode(program.seen_at(Path())))
    root = store.root.absolute() / "apt" / identity.hexdigest()[:32]
    stamp = root / "updated"
    with _locked(root):
        is_fresh = stamp.exists() and (mirrors.is_offline or time.time() - stamp.stat().st_mtime < _FRESH)
        if not is_fresh and mirrors.is_offline:
            raise NetworkError(
                "apt's lists are not in the store, and --offline forbids to fetch them.",
                hint="Run it once without --offline.",
            )
        if not is_fresh:
            with writing(root):
                _lay_out(root, texts, apt=apt, architecture=architecture, program=program)
            with progress.task("Updating apt's lists", unit="lists"):
                result = program.run(root, "apt-get", "update", "-qq", fetches=True)
            problems = _complaints(result.stderr)
            if not any((root / "lists").glob("*_Packages*")):
                raise Unresolvable(
                    f"apt could read none of its sources: {problems or 'it gave no reason'}.",
                    hint="Check the network and the sources; --mirror maps a source to a reachable copy.",
                )
            with writing(stamp):
                stamp.write_text(problems, "utf-8")
        problems = stamp.read_text("utf-8")
    if problems:
        progress.note(f"Some apt sources cannot be used and are left out: {problems}")
    return Archive(root, problems, original, program)


def fetch_deb(deb: Deb, *, store: Store, sources: Sources, progress: Progress = SILENT) -> StoredFile:
    """The .deb in the store, its hash proved; http will do, for the hash came from a signed list.

    Raises :class:`NetworkError`, :class:`HashMismatch`.
    """
    return download(
        deb.url, store=store, sources=sources, sha256=deb.sha256, size=deb.size,
        what=f"{deb.name} {deb.version}", progress=progress,
    )  # fmt: skip


def installed(files: Mapping[str, bytes]) -> dict[str, str]:
    """Package names and versions from dpkg's status, if it is among *files*."""
    status = files.get("var/lib/dpkg/status", b"").decode("utf-8", "replace")
    versions = {}
    for stanza in re.split(r"\n\n+", status):
        fields: dict[str, str] = dict(re.findall(r"^(Package|Version|Status): *(.*)$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            versions[fields.get("Package", "")] = fields.get("Version", "")
    return versions


def glibc_minor(versions: Mapping[str, str]) -> int | None:
    """N of glibc 2.N from package names and versions, if ``libc6`` is among them."""
    match = re.match(r"(?:\d+:)?2\.(\d+)", versions.get("libc6", ""))
    return int(match[1]) if match else None


# -- apt's state -------------------------------------------------------------------------------------------------------


def _mapped(apt: AptSources, mirrors: Mirrors, *, reads_files: bool) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files with mirrored URLs in the sources, and the way back."""
    original: dict[str, str] = {}

    def replaced(match: re.Match[str]) -> str:
        url = match["url"]
        target = mirrors.apply(url)
        if target == url:
            return url
        path = local_path(target)
        if path is not None and not reads_files:
            raise Unresolvable(
                f"--mirror maps {redact(url)} to a folder of this machine, where the builder that runs apt is not.",
                hint="Map it to an address.",
            )
        if path is not None:
            target = path.absolute().as_uri()
        original[target.rstrip("/")] = url.rstrip("/")
        return target

    texts = {}
    for path, content in apt.files.items():
        if "sources.list" in path:
            lines = content.decode("utf-8", "surrogateescape").splitlines(keepends=True)
            lines = [line if line.lstrip().startswith("#") else _URI.sub(replaced, line) for line in lines]
            content = "".join(lines).encode("utf-8", "surrogateescape")
        texts[path] = content
    return texts, original


def _lay_out(root: Path, texts: Mapping[str, bytes], *, apt: AptSources, architecture: str, program: Apt) -> None:
    seen = program.seen_at(root)
    etc = seen / "root" / "etc" / "apt"
    for folder in ("lists/partial", "cache/archives/partial", "root/etc/apt/sources.list.d", "empty",
                   "root/etc/apt/preferences.d", "root/etc/apt/trusted.gpg.d"):  # fmt: skip
        (root / folder).mkdir(parents=True, exist_ok=True)
    for path, content in texts.items():
        place = root / "root" / path
        if ".." in place.parts:
            raise UnsafeInput(f"The base image's file name {path!r} leaves its place.")
        if not apt.is_host and "sources.list" in path:
            # the keys that the base's sources name are the base's, not the host's
            content = re.sub(rb"(?<![\w.])/((?:etc/apt|usr/share)/[\w./-]+)", _rebased(seen), content)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (root / "status").write_bytes(apt.status)
    trusted = Path("/etc/apt") if apt.is_host else etc
    configuration = {
        "APT::Architecture": architecture,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::GzipIndexes": "true",
        "Acquire::Retries": "2",
        "Debug::NoLocking": "true",
        "Dir::Cache": seen / "cache",
        "Dir::Cache::archives": seen / "cache" / "archives",
        "Dir::Cache::pkgcache": "pkgcache.bin",
        "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
        "Dir::Etc::main": seen / "empty" / "none",
        "Dir::Etc::parts": seen / "empty",
        "Dir::Etc::preferences": etc / "preferences",
        "Dir::Etc::preferencesparts": etc / "preferences.d",
        "Dir::Etc::sourcelist": etc / "sources.list",
        "Dir::Etc::sourceparts": etc / "sources.list.d",
        "Dir::Etc::trusted": trusted / "trusted.gpg",
        "Dir::Etc::trustedparts": trusted / "trusted.gpg.d",
        "Dir::State": seen,
        "Dir::State::lists": seen / "lists",
        "Dir::State::status": seen / "status",
    }
    lines = [f'{key} "{value}";' for key, value in configuration.items()]
    lines += [f'APT::Architectures {{ "{architecture}"; }};', *program.network()]
    (root / "apt.conf").write_text("\n".join(lines) + "\n", "utf-8")


def _rebased(root: Path) -> Callable[[re.Match[bytes]], bytes]:
    def replaced(match: re.Match[bytes]) -> bytes:
        return os.fsencode(root / "root") + b"/" + match[1]

    return replaced


def _complaints(said: str) -> str:
    lines = [re.sub(r"^[EW]: ", "", line) for line in redact(said).splitlines() if line.startswith(("E: ", "W: "))]
    lines = [line for line in lines if "old ones used instead" not in line and "ignored" not in line]
    return "; ".join(dict.fromkeys(lines))[:600]


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One update at a time, across threads and processes."""
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        file = (root / "lock").open("w")
    with file:
        filesystem.lock(file)
        yield
