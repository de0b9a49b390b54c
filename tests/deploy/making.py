"""A Bento made by our command line's own steps, in the BentoML of this process."""

from __future__ import annotations

import pytest

from cpack_build.cli.bento import contents_of, made_of
from cpack_build.cli.downloads import Downloads
from cpack_build.cli.options import Chosen
from cpack_build.cli.terminal import Terminal
from cpack_build.fetch.store import Store

__all__ = ["make"]


def make(source: str, *, store: Store, name: str | None = None) -> str:
    """The tag of the Bento of *source*, whose models come through *store*."""
    terminal = Terminal(quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPACK_HOME", str(store.root))
        with contents_of(source, Chosen(None, {}), Downloads(), thin=None, trust=False, terminal=terminal) as (
            contents,
            own_name,
        ):
            return made_of(contents, name or own_name, None, terminal).tag
