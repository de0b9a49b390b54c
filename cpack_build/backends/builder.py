"""Docker's build commands: which there are, what their BuildKit can do, one build, and what its failures mean.

``docker buildx`` works with every driver (the daemon's own BuildKit, a container, a remote one, Kubernetes). Without
that plugin a client before 23.0 still speaks BuildKit by ``DOCKER_BUILDKIT=1 docker build``."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cpack_build.backends.features import Features, features_of, version_in_engine
from cpack_build.errors import CpackError, EngineFailed, HashMismatch, NetworkError, StorageError, ToolMissing
from cpack_build.fetch.urls import redact
from cpack_build.oci.engines import open_engine
from cpack_build.oci.reference import EngineName
from cpack_build.progress import Progress

__all__ = ["Builder", "find_builder"]

_ANSWER_SECONDS = 60
_START_SECONDS = 180
"""A Kubernetes builder may have to start its pods first, one in a container to pull its image; buildx itself gives up
after two minutes."""
_DOCKER = EngineName("docker")
_BUILDX_HINT = (
    "Install the plugin (Debian: docker-buildx), or a Docker client before 23.0, which has BuildKit of its own; "
    "--backend embedded needs neither."
)
_LAST_WORDS = 12


@dataclass(frozen=True)
class Builder:
    """A BuildKit that answers. *command* begins a build; *stores* says that it gives an OCI layout, else the image
    lies in the engine afterwards."""

    command: tuple[str, ...]
    features: Features
    driver: str
    stores: bool
    environment: Mapping[str, str]
    platforms: tuple[str, ...] = ()
    """For which it can run something; none where it does not say."""
    silent: tuple[str, ...] = ()
    """Those of its nodes that do not answer, and why; buildx builds on the others."""

    def require_platform(self, platform: str) -> None:
        """See that it can run programs of *platform*, as a build does. Raises :class:`ToolMissing`."""
        if self.platforms and platform not in self.platforms:
            raise ToolMissing(
                f"The builder runs nothing for {platform}, only for {', '.join(self.platforms)}."
                + "".join(f" Its node {one}" for one in self.silent),
                hint="Name one of that platform with --builder, append a node to it (docker buildx create --append), "
                "or use --backend embedded, which runs nothing of another platform.",
            )

    @property
    def has_contexts(self) -> bool:
        """Whether a build may have named contexts (``--build-context``)."""
        return "buildx" in self.command and self.features.version >= (0, 11)

    def build(self, folder: Path, arguments: Sequence[str], *, secrets: Sequence[str] = (), progress: Progress) -> None:
        """Build the Dockerfile in *folder*. Raises :class:`HashMismatch`, :class:`NetworkError`,
        :class:`StorageError`, :class:`EngineFailed`."""
        command = [
            *self.command, "--progress=plain", "--file", str(folder / "Dockerfile"),
            *(f"--secret=id={name},env={name}" for name in secrets), *arguments, str(folder),
        ]  # fmt: skip
        said: list[str] = []
        with (
            progress.task("BuildKit", unit="steps") as task,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env={**os.environ, **self.environment}, encoding="utf-8", errors="replace",
            ) as process,
        ):  # fmt: skip
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    said.append(line)
                    if re.match(r"#\d+ (DONE|CACHED)", line):
                        task.advance(1)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise _explained("".join(said))


def find_builder(name: str | None) -> Builder:
    """The builder called *name*, by default the one in use. Raises :class:`ToolMissing`, with what to do."""
    engine = open_engine(_DOCKER)
    docker = engine.command()[0]
    if _answers([docker, "buildx", "version"]) is None:
        return _without_buildx(docker, name)
    chosen = [name] if name else []
    inspect = [docker, "buildx", "inspect", "--bootstrap", *chosen]
    said = _answers(inspect, required=name or "the default one", seconds=_START_SECONDS)
    assert said is not None
    driver = _field(said, "Driver") or "docker"
    nodes = re.split(r"(?m)^Name: +", said)[2:]  # before them stands the builder's own
    errors = {node.partition("\n")[0].strip(): _field(node, "Error") for node in nodes}
    answering = [node for node in nodes if not _field(node, "Error")]
    if (error := _field(said, "Error")) and not answering:
        raise ToolMissing(
            f"The builder {name or _field(said, 'Name')} does not answer: {redact(error)}",
            hint="`docker buildx ls` shows which do; name one with --builder.",
        )
    features = _features(docker, driver, "\n".join(answering))
    stores = driver != "docker" or _in_containerd(docker)
    command = (docker, "buildx", "build", *(("--builder", name) if name else ()))
    listed = [word.strip().rstrip("*") for node in answering for word in _field(node, "Platforms").split(",")]
    silent = tuple(f"{node} does not answer: {redact(error)}" for node, error in errors.items() if error)
    platforms = tuple(dict.fromkeys(filter(None, listed)))
    return Builder(command, features, driver, stores and features.rewrites, {}, platforms, silent)


def _without_buildx(docker: str, name: str | None) -> Builder:
    client = _answers([docker, "version", "--format", "{{.Client.Version}} {{.Server.Version}}"], required="Docker")
    assert client is not None
    own, _, server = client.strip().partition(" ")
    if name is not None:
        raise ToolMissing(f"--builder {name} needs docker buildx, which is not installed.", hint=_BUILDX_HINT)
    if version_in_engine(own) >= (0, 10):
        raise ToolMissing(f"Docker {own} builds with the plugin buildx, which is not installed.", hint=_BUILDX_HINT)
    features = features_of(min(version_in_engine(server), version_in_engine(own)))
    return Builder((docker, "build"), features, "docker", False, {"DOCKER_BUILDKIT": "1"})


def _features(docker: str, driver: str, said: str) -> Features:
    found = re.findall(r"(?im)^build ?kit(?: version)?: +v?(\d+)\.(\d+)", said)
    # any of its nodes may get the build
    version = min(((int(major), int(minor)) for major, minor in found), default=(0, 0))
    if version == (0, 0) and driver == "docker":  # a distribution's build may not say
        server = _answers([docker, "version", "--format", "{{.Server.Version}}"], required="Docker")
        version = version_in_engine(server or "")
    return features_of(version if version != (0, 0) else (0, 13))


def _in_containerd(docker: str) -> bool:
    return "io.containerd.snapshotter" in (_answers([docker, "info", "--format", "{{.DriverStatus}}"]) or "")


def _field(text: str, name: str) -> str:
    found = re.search(rf"(?m)^{name}: +(.+)$", text)
    return found[1].strip() if found else ""


def _answers(command: Sequence[str], *, required: str | None = None, seconds: float = _ANSWER_SECONDS) -> str | None:
    """What *command* prints, or ``None`` where it fails and is not *required*."""
    why = f"it took longer than {seconds:g} seconds"
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
        if done.returncode == 0:
            return done.stdout
        why = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it says nothing")
    if required is None:
        return None
    raise ToolMissing(
        f"The builder ({required}) does not answer: {redact(why.strip())}",
        hint="`docker buildx ls` shows which do; start it, name another with --builder, or use --backend embedded.",
    )


def _last_words(said: str) -> str:
    """What the failed step printed last. It stands between rules, each line behind its time."""
    step = re.search(r"(?s)-{6}\n > [^\n]*\n(.*?)-{6}", said)
    words = [re.sub(r"^[0-9.]+ ", "", line) for line in step[1].splitlines()[-_LAST_WORDS:]] if step else []
    return " | ".join(filter(None, map(str.strip, words)))


def _explained(said: str) -> CpackError:
    """What a failed build's words mean."""
    said = redact(said)
    lines = [line for line in said.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if re.match(r"(?i)(error|failed)", line.strip())), "")
    error: CpackError
    if re.search(r"(?m)^(?:#\d+ )?(?:[0-9.]+ )?cpack-build: install\.py of ", said):
        # Before all else: the rest of the step's words are the script's, which may say anything.
        error = EngineFailed(f"The build failed: {_last_words(said) or lines[-1]}")
        error.detail = "\n".join(lines[-40:])
        return error
    ours = re.search(r"cpack-build: (.+) has sha256 ([0-9a-f]{64}), but ([0-9a-f]{64}) was promised", said)
    theirs = re.search(r"mismatch sha256:([0-9a-f]{64}): sha256:([0-9a-f]{64})", said)
    if ours:
        error = HashMismatch(ours[1], expected=ours[3], actual=ours[2])
    elif theirs:
        wanted = re.search(r"\n > \[[^]]*\] ADD (?:--\S+ )*(\S+)", said)
        what = wanted[1] if wanted else "A file that the builder fetched"
        error = HashMismatch(what, expected=theirs[2], actual=theirs[1])
    elif re.search(r"no space left on device|disk quota exceeded", said, re.IGNORECASE):
        error = StorageError(
            "The builder has no space left.", hint="Free some with `docker buildx prune`, or name another builder."
        )
    elif re.search(
        r"dial tcp|no such host|connection refused|i/o timeout|invalid response status|unexpected status|"
        r"failed to fetch remote|unable to access|failed to do request|Could not resolve host",
        said,
    ):
        error = NetworkError(
            f"The builder could not fetch a file: {last or lines[-1]}",
            hint="See that the builder reaches it, or give it a mirror with --mirror.",
        )
    elif not lines:
        error = EngineFailed("The build failed and said nothing.", hint="Try `docker buildx ls`.")
    else:
        told = _last_words(said) or last or lines[-1]
        error = EngineFailed(f"The build failed: {told}", hint="Add -v to see what the builder said last.")
    error.detail = "\n".join(lines[-40:])
    return error
