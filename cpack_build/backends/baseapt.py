"""The apt of a base image, run by BuildKit for a machine that has none (:class:`cpack_build.lock.apt.Apt`).

apt's state is the build's context; each question is a build of one step with no network, and only the fetching of lists
is given one. apt checks the signatures in there as it would here."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from time import time_ns

from cpack_build.backends.builder import Builder
from cpack_build.backends.buildkit import base_context, require_quiet
from cpack_build.backends.dockerfile import BASE_CONTEXT, HEAD, pinned_base, text_of
from cpack_build.backends.ingredients import Foundation
from cpack_build.backends.protocol import Network, Request
from cpack_build.errors import UnsafeInput, writing
from cpack_build.lock.schema import BaseImage

__all__ = ["BaseApt"]

_SEEN = PurePosixPath("/cpack-apt")
_VARIABLES = f"LC_ALL=C TZ=UTC DEBIAN_FRONTEND=noninteractive APT_CONFIG={_SEEN}/apt.conf"
_RUN = f'mkdir /cpack-out; {_VARIABLES} "$@" >/cpack-out/stdout 2>/cpack-out/stderr; echo $? >/cpack-out/code'
_STATE = ("apt.conf", "status", "root", "empty", "lists", "cache")
_ANSWER_LIMIT = 256 << 20


@dataclass(frozen=True)
class BaseApt:
    """That of the base of *below*, on *builder*; lists are fetched with its own network, or its machine's."""

    below: Foundation
    base: BaseImage
    builder: Builder
    request: Request
    network_mode: Network

    reads_files = False

    def seen_at(self, root: Path) -> Path:
        return Path(_SEEN)

    def network(self) -> Iterator[str]:
        return iter(())

    def run(self, root: Path, *command: str, fetches: bool = False) -> subprocess.CompletedProcess[str]:
        require_quiet(self.below, self.request)
        base = base_context(self.below, self.request)
        network = ("host" if self.network_mode == "host" else "default") if fetches else "none"
        option = f"--network={network} " if self.builder.features.isolates else ""
        words = json.dumps(["/bin/sh", "-c", _RUN, "sh", *command])
        lines = [
            *HEAD,
            f"FROM {BASE_CONTEXT if base is not None else pinned_base(self.base)} AS apt",
            "USER 0",
            f"COPY . {_SEEN}/",
            # lists are new each time; what is asked of them is the same answer
            *([f"RUN {option}true {time_ns()}"] if fetches else []),
            f"RUN {option}{words}",
            "FROM scratch",
            "COPY --from=apt /cpack-out/ /",
            *([f"COPY --from=apt {_SEEN}/lists/ /lists/"] if fetches else []),
        ]
        arguments = ["--platform", str(self.below.platform)]
        arguments += ["--build-context", f"{BASE_CONTEXT}={base}"] if base is not None else []
        arguments += ["--allow", "network.host"] if network == "host" else []
        with self.request.store.folder("apt-") as work:
            context, out = work / "context", work / "out"
            with writing(context):
                context.mkdir()
                for part in _STATE:
                    source = root / part
                    if source.is_dir():
                        shutil.copytree(source, context / part)
                    elif source.exists():
                        shutil.copyfile(source, context / part)
                (context / "Dockerfile").write_text(text_of(lines), "utf-8")
                (context / ".dockerignore").write_text("Dockerfile\n.dockerignore\n", "utf-8")
            self.builder.build(
                context, [*arguments, "--output", f"type=local,dest={out}"], progress=self.request.progress
            )
            if fetches:
                self._take(out / "lists", root / "lists")
            return subprocess.CompletedProcess(
                command, int(_answer(out / "code") or 1), _answer(out / "stdout"), _answer(out / "stderr")
            )

    def _take(self, lists: Path, place: Path) -> None:
        """The *lists* that apt has fetched and checked."""
        with writing(place):
            for path in sorted(lists.iterdir()):
                if stat.S_ISREG(path.lstat().st_mode):
                    shutil.copyfile(path, place / path.name)


def _answer(path: Path) -> str:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _ANSWER_LIMIT:
        raise UnsafeInput(f"The builder's apt leaves {path.name!r}, which is no answer.", hint="Use another base.")
    return path.read_text("utf-8", "replace")
