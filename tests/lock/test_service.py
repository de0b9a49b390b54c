"""What of cpack-build enters the image is its service and nothing else, and its packages are pinned by hash."""

from __future__ import annotations

import re

from packaging.requirements import Requirement

from cpack_build.lock.service import service_code, service_date, service_files, service_requirements


def test_only_the_service_s_rooms_enter_the_image() -> None:
    names = [name for name, _ in service_files()]
    assert names == sorted(names)
    assert {name.split("/")[1] for name in names} == {
        "__init__.py", "errors.py", "progress.py", "py.typed", "serve", "workflow",
    }  # fmt: skip
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert "cpack_build/serve/__main__.py" in names


def test_the_code_s_hash_is_stable() -> None:
    assert service_code() == service_code()
    assert re.fullmatch(r"[0-9a-f]{64}", service_code().tree_sha256)


def test_every_package_of_the_service_is_pinned_with_hashes_and_no_host_is_named() -> None:
    text = service_requirements()
    assert "://" not in text
    entries = [line for line in re.sub(r"\\\n\s*", "", text).strip().splitlines() if not line.startswith("#")]
    names = set()
    for entry in entries:
        requirement = Requirement(entry.split("--hash", 1)[0].strip())
        names.add(requirement.name)
        assert re.fullmatch(r"==[^*]+", str(requirement.specifier)), entry
        assert "--hash=sha256:" in entry
    assert {"bentoml", "aiohttp"} <= names


def test_the_pins_are_those_that_the_requirements_ask_for() -> None:
    from pathlib import Path

    import cpack_build

    wanted = (Path(cpack_build.__file__).parent / "serve" / "requirements.in").read_text().splitlines()
    pinned = [Requirement(line.rstrip("\\ ")) for line in service_requirements().splitlines() if "==" in line]
    for line in filter(lambda line: line and not line.startswith("#"), wanted):
        requirement = Requirement(line)
        versions = [str(pin.specifier)[2:] for pin in pinned if pin.name == requirement.name]
        assert versions, line
        assert all(requirement.specifier.contains(version) for version in versions), line


def test_the_pins_are_of_a_date_that_belongs_to_the_release() -> None:
    from datetime import datetime, timezone

    assert datetime.fromisoformat(service_date().replace("Z", "+00:00")) < datetime.now(timezone.utc)
