"""A yes at the terminal is for what was shown there, and for nothing that comes to light later."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from cpack_build.cli.lock import make_locks
from cpack_build.cpack.settings import Settings
from cpack_build.errors import CpackError, NeedsTrust, Unresolvable, together
from cpack_build.fetch.http import Sources
from cpack_build.lock import resolve
from cpack_build.progress import SILENT

SCRIPT, BUILD = "install.py of mine, 3 lines; with no network", "tiny from tiny-1.0.tar.gz, built by setuptools"


class Terminal(io.StringIO):
    """Somebody sits at it."""

    def isatty(self) -> bool:
        return True


class Resolver:
    """Needs the script, whose run shows that a package is to be built as well; keeps what it was allowed each time."""

    def __init__(self) -> None:
        self.allowed: list[bool | frozenset[str]] = []

    def __call__(self, *arguments: Any, trust: bool | frozenset[str], **options: Any) -> tuple[str, ...]:
        self.allowed.append(trust)
        for run in (SCRIPT, BUILD):
            if trust is not True and (not trust or run not in trust):
                raise NeedsTrust([run], question=f"Run {run.partition(' ')[0]}?")
        return ("lock",)


def locked(monkeypatch: pytest.MonkeyPatch, resolver: Any, answers: str, *, trust: bool = False) -> str:
    """What the terminal shows while a pack is locked and somebody answers so."""
    shown = Terminal()
    monkeypatch.setattr(resolve, "resolve_all", resolver)
    monkeypatch.setattr(sys, "stdin", Terminal(answers))
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(sys, "stdout", shown)
    pack: Any = SimpleNamespace(served=lambda: None, snapshot=SimpleNamespace(notes=()))
    terminal: Any = SimpleNamespace(json=False, progress=SILENT)
    made: Any = make_locks(pack, Settings(), sources=Sources(), trust=trust, terminal=terminal)
    assert made == ("lock",)
    return shown.getvalue()


def test_what_comes_to_light_later_is_shown_and_asked_for_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver()
    shown = locked(monkeypatch, resolver, "y\ny\n")
    assert resolver.allowed == [frozenset(), frozenset({SCRIPT}), frozenset({SCRIPT, BUILD})]
    assert [shown.count(run) for run in (SCRIPT, BUILD)] == [1, 1]


def test_a_no_to_the_second_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver()
    with pytest.raises(NeedsTrust, match="built by setuptools"):
        locked(monkeypatch, resolver, "y\nn\n")
    assert len(resolver.allowed) == 2


def test_trust_is_for_all_of_it_and_an_error_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver()
    assert locked(monkeypatch, resolver, "", trust=True) == ""

    def fails(*arguments: Any, **options: Any) -> Any:
        raise together([NeedsTrust([SCRIPT]), Unresolvable("no torch")])

    with pytest.raises(CpackError) as caught:
        locked(monkeypatch, fails, "y\n")
    assert [part.message for part in caught.value.parts][1:] == ["no torch"]


def test_who_asks_again_for_what_was_agreed_to_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(*arguments: Any, **options: Any) -> Any:
        raise NeedsTrust([SCRIPT])

    with pytest.raises(NeedsTrust):
        locked(monkeypatch, forgets, "y\n" * 9)
