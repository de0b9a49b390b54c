"""What somebody chose by name, in a dialog or by hand: exactly these models and input files, and no others.

The file is ``{"models": ["models/loras/x.safetensors"], "inputs": ["input/a.png"]}``, each list as :func:`draft_pack`
names things; a list that is not there leaves the choice to the workflow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cpack_build.cpack.workflowfile import read_json_file
from cpack_build.errors import BadField, Unresolvable

__all__ = ["Ticked", "read_ticked", "taken"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ticked:
    """Names of models and of input files; None where nobody chose."""

    models: tuple[str, ...] | None = None
    inputs: tuple[str, ...] | None = None


def read_ticked(file: Path) -> Ticked:
    """The choice in *file*. Raises :class:`~cpack_build.errors.BadInput`."""
    document = read_json_file(file, what="choice of models and inputs")
    if unknown := sorted(document.keys() - {"models", "inputs"}):
        raise BadField(file, unknown[0], "is neither models nor inputs")
    return Ticked(_names(file, document, "models"), _names(file, document, "inputs"))


def taken(
    listed: Mapping[str, T], names: Sequence[str], *, used: Collection[str], what: str
) -> tuple[dict[str, T], list[str]]:
    """Those of *listed* that *names* are, and a note for each that the workflow has *used* and nobody chose.

    Raises :class:`Unresolvable` for a name that is not there.
    """
    for name in names:
        if name not in listed:
            raise Unresolvable(
                f"{name!r:.200} was chosen, and is no {what} of the workspace.", hint="Look again: it may have moved."
            )
    notes = [f"{name} is used by the workflow, and was not chosen." for name in sorted(set(used) - set(names))]
    return {name: listed[name] for name in sorted(set(names))}, notes


def _names(file: Path, document: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    given = document.get(key)
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise BadField(file, key, "must be a list of names")
    return tuple(given)
