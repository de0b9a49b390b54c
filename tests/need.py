"""What a test needs beyond Python: a missing tool skips the test by name, or fails it where everything must be there.

``.ci/run`` sets ``CPACK_TEST_REQUIRE=1``: there a skip would hide a hole.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """End the test: *what* is not here."""
    if os.environ.get("CPACK_TEST_REQUIRE") == "1":
        pytest.fail(f"{what} is missing, and CPACK_TEST_REQUIRE=1 wants every tool", pytrace=False)
    pytest.skip(f"needs {what}")


def tool(name: str) -> str:
    """The path of the program *name*."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    return path or missing(name)
