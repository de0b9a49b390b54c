"""Every error a user can see, in one place. A message says what happened, to which named thing, and what to do next.

::

    CpackError
    ├── UsageError                  2   the command line asks for something impossible
    ├── BadInput                    3   a pack, lock, workflow, setting or image is not what it should be
    │   ├── NotAPack                    not a zip, truncated, or without snapshot.json
    │   ├── BadField                    a named field of a document has the wrong value
    │   ├── BadSettings                 cpack.yaml has an unknown key or a wrong value
    │   ├── WorkflowError               a workflow that cannot be served
    │   ├── BadImage                    an image, layout or archive is not what the OCI specs say
    │   └── StaleLock                   the lock was made from other inputs, or by another builder
    ├── Unresolvable                4   something named cannot be found or resolved
    ├── HashMismatch                5   bytes are not those that were promised
    ├── NetworkError                6   a host, registry or download failed
    ├── ToolMissing                 7   an engine or program that is needed is not here or does not answer
    │   ├── NeedsBuilder                a stranger's code runs on a builder only, and none was named
    │   └── EngineFailed                it answers, but could not do what was asked
    ├── UnsafeInput                 8   refused for safety: a name that leaves its place, a forbidden URL, …
    │   ├── NeedsTrust                  a stranger's code would run, and nobody has agreed to it
    │   └── Occupied                    what is there already would be replaced, and nobody said that it may
    ├── StorageError                9   the disk is full or cannot be written
    ├── RunError                    1   the service could not run the workflow for one request (``status``: HTTP)
    │   ├── EngineUnavailable           ComfyUI does not answer yet, or not again
    │   ├── EngineDied                  ComfyUI ended while the request ran
    │   ├── PromptRefused               ComfyUI found the filled-in workflow invalid
    │   └── NodeFailed                  a node failed while it ran
    │       └── OutOfMemory                 for want of memory
    └── Cancelled                 130   Ctrl-C

The number is the exit code of the command line (``docs/exit-codes.md``).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

__all__ = [
    "BadField",
    "BadImage",
    "BadInput",
    "BadSettings",
    "Cancelled",
    "CpackError",
    "EngineDied",
    "EngineFailed",
    "EngineUnavailable",
    "HashMismatch",
    "NeedsBuilder",
    "NeedsTrust",
    "NetworkError",
    "NodeFailed",
    "NotAPack",
    "Occupied",
    "OutOfMemory",
    "PromptRefused",
    "RunError",
    "StaleLock",
    "StorageError",
    "ToolMissing",
    "Unresolvable",
    "UnsafeInput",
    "UsageError",
    "WorkflowError",
    "together",
    "writing",
]


class CpackError(Exception):
    """The root: *what happened*, and in :attr:`hint` what to do next."""

    exit_code: ClassVar[int] = 1
    parts: tuple[CpackError, ...] = ()
    """The errors that this one is made of (:func:`together`)."""
    detail: str = ""
    """What another program said, in its own words: shown with ``-v``."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(CpackError):
    """The command line asks for something impossible."""

    exit_code = 2


class BadInput(CpackError):
    """A document is not what it should be."""

    exit_code = 3


class NotAPack(BadInput):
    """The file is no readable ``.cpack.zip``."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(
            f"{path} is not a usable pack: {reason}.",
            hint="Make it again with comfy-pack or cpack-build, or copy it again if it was downloaded.",
        )


class BadField(BadInput):
    """A field of a document has the wrong type or value; *field* is its path within *document*."""

    def __init__(self, document: object, field: str, problem: str) -> None:
        super().__init__(f"{document}: {field}: {problem}.", hint="Correct that field, or make the document again.")
        self.field = field


class BadSettings(BadInput):
    """``cpack.yaml`` (or a flag that overrides it) is wrong."""


class WorkflowError(BadInput):
    """The workflow cannot be served as it is; *node_id* is the node at fault, where it is one."""

    node_id: str = ""


class BadImage(BadInput):
    """An image cannot be read: *what* names it, and the part of it, for the user."""

    def __init__(self, what: object, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{what}: {problem}.", hint=hint or "Get or make the image again.")


class StaleLock(BadInput):
    """The lock does not belong to the inputs at hand."""

    def __init__(self, lock: object, what: str, *, hint: str = "Run `cpack-build lock` again.") -> None:
        super().__init__(f"{lock} is stale: {what}.", hint=hint)


class Unresolvable(CpackError):
    """A named thing that the image needs cannot be found or resolved."""

    exit_code = 4


class HashMismatch(CpackError):
    """Bytes are not those that were promised."""

    exit_code = 5

    def __init__(self, what: object, *, expected: str, actual: str, hint: str = "") -> None:
        super().__init__(
            f"{what} has sha256 {actual.removeprefix('sha256:')}, but {expected.removeprefix('sha256:')} was promised.",
            hint=hint or "Nothing was used of it. Get the file again, or lock again if the change is meant.",
        )
        self.expected = expected
        self.actual = actual


class NetworkError(CpackError):
    """A host, registry or download failed."""

    exit_code = 6


class ToolMissing(CpackError):
    """A program, engine or daemon that is needed is not here or does not answer."""

    exit_code = 7


class NeedsBuilder(ToolMissing):
    """Code that somebody else wrote would run on a builder, and there is none: *runs* says which, one each."""

    def __init__(self, message: str, *, hint: str, runs: Sequence[str]) -> None:
        self.runs = tuple(runs)
        super().__init__(message, hint=hint)


class EngineFailed(ToolMissing):
    """An engine answers, but could not do what was asked of it."""


class UnsafeInput(CpackError):
    """Refused for safety."""

    exit_code = 8


class NeedsTrust(UnsafeInput):
    """Code that somebody else wrote would run: *runs* says which, one each; *why* and *question* are for people."""

    def __init__(
        self,
        runs: Sequence[str],
        *,
        why: str = "No index has a wheel of these for the image, and building them runs their code on this machine:",
        hint: str = "Add --trust if you trust it, give wheels with --find-links, or leave them out with "
        "python.exclude.",
        question: str = "No index has wheels of these. Build them here, which runs their code?",
    ) -> None:
        self.runs = tuple(runs)
        self.question = question
        super().__init__(why + "".join(f"\n- {run}" for run in runs), hint=hint)


class Occupied(UnsafeInput):
    """Something else lies where a thing is to go; *paths* are relative to *place*."""

    def __init__(self, place: object, paths: Sequence[str]) -> None:
        shown = "".join(f"\n- {path}" for path in paths[:20]) + (f"\n- and {len(paths) - 20} more" * (len(paths) > 20))
        super().__init__(
            f"{place} has something else at {len(paths)} paths:{shown}" if len(paths) != 1
            else f"{place} has something else at {paths[0]}.",
            hint="Nothing was touched. Name another folder, or replace a path (what is there is kept in "
            ".cpack/replaced) with --force PATH.",
        )  # fmt: skip
        self.paths = tuple(paths)


class StorageError(CpackError):
    """The disk is full, read-only or otherwise cannot be written."""

    exit_code = 9


class RunError(CpackError):
    """One request could not be served. *status* is the HTTP status to answer, *node_id* the node at fault."""

    def __init__(
        self, message: str, *, hint: str = "", status: int = 500, node_id: str = "", node_class: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.node_id = node_id
        self.node_class = node_class


class EngineUnavailable(RunError):
    """ComfyUI does not answer; *why* says what is known."""

    def __init__(self, why: str) -> None:
        super().__init__(f"ComfyUI is not ready: {why}.", hint="Try again when /readyz answers 200.", status=503)


class EngineDied(RunError):
    """ComfyUI ended, or was lost, while it worked on the request; *why* says how."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"ComfyUI was lost while it worked on this request: {why}.",
            hint="It is started again; the service's log has its last words.",
            status=502,
        )


class PromptRefused(RunError):
    """ComfyUI found the filled-in workflow invalid and ran nothing of it."""


class NodeFailed(RunError):
    """A node failed while it ran."""


class OutOfMemory(NodeFailed):
    """A node failed because the memory of its device was exhausted."""

    def __init__(self, message: str, *, node_id: str, node_class: str) -> None:
        super().__init__(
            message,
            hint="Ask for less (a smaller picture), or serve it with more memory.",
            node_id=node_id,
            node_class=node_class,
        )


class Cancelled(CpackError):
    """The user stopped it."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("Stopped.", hint="Nothing half-made was left behind; run the same command to go on.")


def together(errors: Sequence[CpackError]) -> CpackError:
    """One error for all *errors*: what is wrong comes before what is missing, and all that is missing is told at once.

    Its :attr:`~CpackError.parts` are the single ones.
    """
    single = tuple(part for error in errors for part in error.parts or (error,))
    for error in single:
        if not isinstance(error, Unresolvable | NetworkError):
            error.parts = single if len(single) > 1 else ()
            return error
    if len(single) == 1:
        return single[0]
    told = "".join(f"\n- {error}" for error in single)
    kind = NetworkError if all(isinstance(error, NetworkError) for error in single) else Unresolvable
    made = kind(f"{len(single)} things that the image needs cannot be had:{told}")
    made.parts = single
    return made


@contextmanager
def writing(place: object) -> Iterator[None]:
    """Turn the operating system's refusals to write at *place* into :class:`StorageError`; only writing goes inside."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"No space left while writing {place}.",
                hint="Free some space, or name another disk (CPACK_HOME, or another output), and run it again.",
            ) from error
        raise StorageError(
            f"{place} cannot be written: {error.strerror}.", hint="Choose a place that you may write to."
        ) from error
