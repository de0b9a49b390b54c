"""Revision 1 of the image format gives these bytes, layer kind by layer kind and as whole images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cpack_build.fetch.store import Store
from cpack_build.image.build import FORMATS
from cpack_build.lock.form import require_revision
from cpack_build.lock.schema import IMAGE_REVISIONS
from tests.image.golden.building import GOLDEN, INPUTS, LOCK, described, golden_lock

RECORDED: dict[str, Any] = json.loads(GOLDEN.read_text())
WHAT_TO_DO = """
The image format is a promise: the same lock gives the same bytes with every release of cpack-build.
 - You changed no rule on purpose: a bug was made. docs/image-format.md has the rules; fix the code, not the golden.
 - You changed a rule and revision {revision} is in no release yet: write the rule down in docs/image-format.md, and run
   .venv/bin/python -m tests.image.golden record
 - You changed a rule of a released revision: keep the old code and add a revision (docs/image-format.md, "A new
   revision"), with a golden of its own.
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return described(INPUTS, Store(tmp_path_factory.mktemp("golden")))


def told(what: str, was: object, now: object) -> str:
    revision = golden_lock().image_revision
    return f"{what} differs.\nrecorded: {was}\nnow:      {now}\n{WHAT_TO_DO.format(revision=revision)}"


@pytest.mark.parametrize("name", RECORDED["layers"])
def test_a_layer_of_each_kind_has_the_bytes_that_were_promised(name: str, built: dict[str, Any]) -> None:
    was, now = RECORDED["layers"][name], built["layers"][name]
    for old, new in zip(was.get("entries", []), now.get("entries", []), strict=False):
        assert old == new, told(f"Of the layer {name!r}, an entry", old, new)
    assert len(was.get("entries", [])) == len(now.get("entries", [])), told(
        f"Of the layer {name!r}, the number of entries", len(was["entries"]), len(now["entries"])
    )
    assert was["digest"] == now["digest"], told(f"Of the layer {name!r}, a byte of a header or padding", was, now)


@pytest.mark.parametrize("name", RECORDED["images"])
def test_a_whole_image_has_the_id_and_digests_that_were_promised(name: str, built: dict[str, Any]) -> None:
    was, now = RECORDED["images"][name], built["images"][name]
    for key in sorted({*was["config"], *now["config"]}):
        old, new = was["config"].get(key), now["config"].get(key)
        assert old == new, told(f"In the config of the image {name}, {key!r}", old, new)
    assert was["id"] == now["id"], told(f"The ID of the image {name}", was["id"], now["id"])
    for form in {*was["manifests"]} & {*now["manifests"]}:  # another compressor here has a digest of its own
        old, new = was["manifests"][form], now["manifests"][form]
        assert old == new, told(f"The digest of the image {name}, {form},", old, new)
    assert "plain" in was["manifests"]


def test_every_layer_kind_is_among_them(built: dict[str, Any]) -> None:
    from cpack_build.image.plan import SHARED

    assert set(RECORDED["layers"]) == set(built["layers"])
    assert {name.split()[0].rstrip(",") for name in RECORDED["layers"]} == set(SHARED)


def test_a_change_of_one_byte_is_told_with_its_entry_and_what_to_do(built: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(built))
    entries = changed["layers"]["comfyui"]["entries"]
    entries[3] = entries[3].replace(" 0644 ", " 0755 ").replace(" 0755 ", " 0700 ")
    with pytest.raises(AssertionError, match=r"'comfyui', an entry differs[\s\S]*tests\.image\.golden record"):
        test_a_layer_of_each_kind_has_the_bytes_that_were_promised("comfyui", changed)


def test_a_lock_that_was_written_is_written_the_same_again() -> None:
    """It is in its image. A field that is added to the lock is ``None`` by default, and then left out."""
    was, now = LOCK.read_text().splitlines(), golden_lock().to_bytes().decode().splitlines()
    for old, new in zip(was, now, strict=False):
        assert old == new, told("Of the lock, a line", old, new)
    assert len(was) == len(now)


def test_the_golden_is_of_a_revision_that_can_be_built(tmp_path: Path) -> None:
    assert golden_lock().image_revision in FORMATS
    for revision in IMAGE_REVISIONS:
        require_revision(revision)
