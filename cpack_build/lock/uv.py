"""uv, which resolves Python packages: how it is asked, and what its refusals mean.

It resolves for another Python and platform than this machine's and never builds anything: of a package that has only a
source distribution it is told that it depends on nothing, so that it needs not run code to know.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from cpack_build.errors import NetworkError, ToolMissing, Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import local_path
from cpack_build.fetch.urls import redact
from cpack_build.lock.tags import MACOS, Target

__all__ = ["Refused", "compiled", "found_python", "lacks_wheels", "options_of", "program"]


class Refused(Unresolvable):
    """uv found no solution; *said* is what it printed, without secrets."""

    def __init__(self, message: str, *, hint: str, said: str) -> None:
        super().__init__(message, hint=hint)
        self.said = said


def lacks_wheels(error: Refused) -> tuple[str, ...]:
    """The packages that *error* says have source distributions at most."""
    return tuple(dict.fromkeys(map(canonicalize_name, re.findall(r"Wheels are required for `([^`]+)`", error.said))))


def options_of(
    find_links: Sequence[str], index_url: str | None, extra_index_urls: Sequence[str], sources: Sources
) -> list[str]:
    """The options that say where packages come from."""
    options = ["--offline"] if sources.mirrors.is_offline else []
    for place in find_links:
        path = local_path(place)
        if path is not None and not path.is_dir():
            raise Unresolvable(f"--find-links names {place}, where no folder is.", hint="Correct it.")
        options.append("--find-links=" + (str(path.absolute()) if path is not None else place))
    if index_url is not None:
        options.append("--default-index=" + sources.mirrors.apply(index_url))
    options += ["--index=" + sources.mirrors.apply(url) for url in extra_index_urls]
    return options


def compiled(
    requirements: Sequence[str],
    *,
    overrides: Sequence[str],
    target: Target,
    options: Sequence[str],
    preferred: Sequence[str] = (),
    from_source: Collection[str] = (),
    is_service: bool = False,
) -> str:
    """``pylock.toml`` as uv writes it. The user's own uv configuration counts; that of the current folder does not.

    Of the packages named in *from_source* it gives the source distribution, as if that depended on nothing.
    """
    with tempfile.TemporaryDirectory(prefix="cpack-uv-") as folder:
        place = Path(folder)
        (place / "requirements.in").write_text("".join(line + "\n" for line in requirements), "utf-8")
        (place / "overrides.txt").write_text("".join(line + "\n" for line in overrides), "utf-8")
        sourced = [f"--no-binary={name}" for name in from_source]
        if from_source:
            stubs = "".join(f'[[dependency-metadata]]\nname = "{name}"\nrequires-dist = []\n' for name in from_source)
            (place / "uv.toml").write_text(stubs, "utf-8")
            if os.environ.get("UV_NO_CONFIG"):  # which would leave this one out, too
                sourced.append("--config-file=uv.toml")
        # uv keeps the versions that it finds in its output where they still fit; only a requirements.txt says no more
        form, output = ("requirements.txt", "kept.txt") if preferred else ("pylock.toml", "pylock.toml")
        if preferred:
            (place / output).write_text("".join(line + "\n" for line in preferred), "utf-8")
        result = subprocess.run(
            [
                program(), "pip", "compile", "requirements.in", "--override=overrides.txt", f"--format={form}",
                f"--output-file={output}", f"--python-version={target.python_version}",
                f"--python-platform={target.uv_platform}", "--only-binary=:all:", "--no-python-downloads",
                "--no-header", "--no-annotate", "--no-progress", "--color=never", *options, *sourced,
            ],
            cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={
                **{key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "UV_PROJECT")},
                "MACOSX_DEPLOYMENT_TARGET": ".".join(map(str, MACOS)),
            },
        )  # fmt: skip
        if result.returncode:
            raise _explained(result.stderr.decode("utf-8", "replace"), target, is_service=is_service)
        if preferred:
            pins = (place / output).read_text("utf-8").splitlines()
            return compiled(
                [*requirements, *pins],
                overrides=overrides,
                target=target,
                options=options,
                from_source=from_source,
                is_service=is_service,
            )
        return (place / "pylock.toml").read_text("utf-8")


def found_python(version: str) -> Path | None:
    """A Python *version* (``3.11``) on this machine, if there is one."""
    result = subprocess.run(
        [program(), "python", "find", "--no-python-downloads", "--no-project", "--system", version],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    return Path(result.stdout.strip()) if result.returncode == 0 and result.stdout.strip() else None


def program() -> str:
    """Where uv is. Raises :class:`ToolMissing`."""
    try:
        from uv import find_uv_bin

        return os.fspath(find_uv_bin())
    except (ImportError, FileNotFoundError):
        raise ToolMissing(
            "uv, which resolves Python packages, is not installed.", hint="Run `python -m pip install uv`."
        ) from None


def _explained(said: str, target: Target, *, is_service: bool) -> Unresolvable | NetworkError | ToolMissing:
    """One sentence from what uv printed."""
    lines = [line.strip() for line in redact(said).splitlines() if line.strip()]
    causes = " ".join(
        re.sub(r"^(error|cause|×|╰─▶|├─▶|│)[:\s]*", "", line)
        for line in lines
        if not line.startswith(("hint", "warning", "Resolved"))
    )
    causes = re.sub(r"we can conclude that your requirements are unsatisfiable", "nothing fits", causes)
    causes = re.sub(r"^No solution found when resolving dependencies:?\s*", "", causes).rstrip(".")
    whose = "The service's own Python packages" if is_service else "The Python packages"
    if re.search(r"(F|f)ailed to fetch|error sending request|Could not connect|dns error", said):
        return NetworkError(
            f"{whose} cannot be resolved: {causes}.",
            hint="Check the network, or name an index with --index-url or wheels with --find-links.",
        )
    if "No interpreter found" in said or "no interpreter" in said.lower():
        return ToolMissing(f"uv found no Python to work with: {causes}.", hint="Install python3.")
    missing = re.search(r"there is no version of ([A-Za-z0-9_.-]+)==(\S+?\+\w[\w.]*)", said)
    if is_service:
        hint = (
            f"It needs Python 3.10 or newer and glibc 2.28 or newer (here: {target.python_version}, 2.{target.glibc}), "
            "and an index that has its pinned versions."
        )
    elif missing:
        hint = (
            f"Name where {missing[1]} {missing[2]} lies with --find-links or --extra-index-url: wheels with a label "
            "such as +cpu, +cu128 or +rocm6.4 are on their project's own index, one for each label."
        )
    elif "no usable wheels" in said or "no wheels" in said:
        hint = (
            f"Only wheels for Python {target.python_version} on {target.uv_platform} are used: give one with "
            "--find-links, choose another version in python.packages, or leave it out with python.exclude."
        )
    else:
        hint = "Change versions with python.packages or python.exclude in cpack.yaml, or add an index or --find-links."
    return Refused(f"{whose} cannot be resolved: {causes}.", hint=hint, said=redact(said))
