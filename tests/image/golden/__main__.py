"""``python -m tests.image.golden record``, ``inputs`` or ``build FOLDER STORE [WORKERS]``; see the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cpack_build.fetch.store import Store
from tests.image.golden.building import GOLDEN, INPUTS, described


def main(arguments: list[str]) -> None:
    match arguments:
        case ["inputs"]:
            from tests.image.golden.inputs import make_inputs

            make_inputs()
        case ["record"]:
            with TemporaryDirectory() as store:
                found = described(INPUTS, Store(Path(store)))
            GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        case ["build", folder, store, *workers]:
            found = described(Path(folder), Store(Path(store)), workers=int(workers[0]) if workers else 2)
            json.dump(found, sys.stdout, sort_keys=True, ensure_ascii=True)
        case _:
            sys.exit(__doc__)


main(sys.argv[1:])
