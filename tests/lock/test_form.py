"""How an image is compressed and which revision of the format it has is in the lock, and in no image ID."""

from __future__ import annotations

import json

import pytest

from cpack_build.cpack.settings import Settings
from cpack_build.errors import BadField, BadInput, StaleLock, ToolMissing, UsageError
from cpack_build.image.build import FORMATS
from cpack_build.image.config import image_config
from cpack_build.lock.form import compression_of, in_form
from cpack_build.lock.freshness import check_fresh
from cpack_build.lock.schema import IMAGE_REVISIONS, Compression, Lock, read_lock
from cpack_build.lock.service import service_code
from tests.image.test_gather import lock


def recorded(made: Lock) -> tuple[str, int]:
    assert made.compression is not None
    return made.compression.algorithm, made.compression.level


def test_a_lock_records_what_is_asked_or_the_default_and_keeps_it() -> None:
    made = in_form(lock())
    assert recorded(made) == ("zstd", 3)
    assert made.compression is not None
    assert made.compression.compressor.startswith("libzstd ")
    assert recorded(in_form(made, compression="gzip:9")) == ("gzip", 9)
    assert recorded(in_form(in_form(made, compression="none"))) == ("none", 0)
    elsewhere = made.model_copy(update={"compression": Compression(algorithm="zstd", level=3, compressor="libzstd 1")})
    assert in_form(elsewhere, compression="zstd") is elsewhere, "what it promises already is not promised anew"
    assert read_lock(made.to_bytes(), name="lock") == made


def test_what_the_image_carries_and_is_named_for_does_not_depend_on_it() -> None:
    locks = [in_form(lock(), compression=how) for how in ("zstd", "gzip", "none")]
    assert len({made.sha256 for made in locks}) == 3
    assert len({made.carried.to_bytes() for made in locks}) == 1
    assert len({image_config(made, history=[], diff_ids=[], base=None).data for made in locks}) == 1


def test_another_compressor_than_the_lock_s_is_an_error_unless_the_user_says_so() -> None:
    other = Compression(algorithm="zstd", level=7, compressor="libzstd 9.9.9")
    made = lock().model_copy(update={"compression": other})
    with pytest.raises(ToolMissing, match=r"libzstd 9\.9\.9"):
        compression_of(made)
    assert str(compression_of(made, instead="gzip")) == "gzip:6"
    assert str(compression_of(in_form(lock(), compression="zstd:7"))) == "zstd:7"
    assert str(compression_of(lock())) == "zstd:3", "of a lock from an image"


def test_a_setting_that_the_lock_does_not_follow_makes_it_stale_and_the_default_follows_it() -> None:
    class Pack:
        sha256 = content_sha256 = "1" * 64
        snapshot = None

    settings = Settings(compression="gzip")
    inputs = lock().inputs.model_copy(update={"pack": Pack.sha256, "settings": settings.digest()})
    made = in_form(lock().model_copy(update={"inputs": inputs, "service_code": service_code()}), compression="gzip")
    pack: object = Pack()
    check_fresh(made, pack, settings)  # type: ignore[arg-type]
    check_fresh(made, pack, Settings())  # type: ignore[arg-type]
    with pytest.raises(StaleLock, match="zstd:3"):
        check_fresh(made, pack, Settings(compression="zstd"))  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [-1, 20, 22, True])
def test_a_level_that_would_take_the_memory_is_refused(level: int) -> None:
    document = json.loads(in_form(lock()).to_bytes())
    document["compression"]["level"] = level
    with pytest.raises(BadField, match=r"compression\.level"):
        read_lock(json.dumps(document).encode(), name="lock")


def test_every_revision_can_be_built_and_another_is_refused_by_name() -> None:
    assert tuple(FORMATS) == IMAGE_REVISIONS
    assert in_form(lock(), revision=1).image_revision == 1
    with pytest.raises(UsageError, match="revision 2 is not known"):
        in_form(lock(), revision=2)
    document = json.loads(lock().to_bytes()) | {"image_revision": 2}
    with pytest.raises(BadInput, match="format revision 2"):
        read_lock(json.dumps(document).encode(), name="lock")
