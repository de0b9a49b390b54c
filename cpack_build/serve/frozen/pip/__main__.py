"""``python -m pip`` in ComfyUI's process: ``install`` and its kin change nothing; the rest is the real pip's."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

_CHANGES = frozenset({"install", "uninstall", "download", "wheel"})


def main(arguments: list[str]) -> int:
    command = next((word for word in arguments if not word.startswith("-")), "")
    if command in _CHANGES:
        print(f"pip {' '.join(arguments)}: nothing was done; the packages of this image are those of its lock.")
        return 0
    if _step_aside():
        return int(importlib.import_module("pip._internal.cli.main").main(arguments) or 0)
    if not command and {"--version", "-V"} & set(arguments):
        print(f"pip 0 from {__file__} (changes nothing; the packages of this image are those of its lock)")
        return 0
    if command in ("freeze", "list"):
        for found in sorted(importlib.metadata.distributions(), key=lambda item: item.name.lower()):
            print(f"{found.name}=={found.version}")
        return 0
    print(f"pip {' '.join(arguments)}: there is no pip in this image.", file=sys.stderr)
    return 1


def _step_aside() -> bool:
    """Let ``import pip`` find the real one in this process; False if there is none."""
    ours = Path(__file__).resolve().parents[1]
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != ours]
    for name in [name for name in sys.modules if name.partition(".")[0] == "pip"]:
        del sys.modules[name]
    return importlib.util.find_spec("pip") is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
