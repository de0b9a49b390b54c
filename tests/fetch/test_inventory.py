"""A model that is several files counts as one, and one of which a part lacks is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpack_build.fetch.inventory import Listed, incomplete_sets, inventory, unit_of
from cpack_build.fetch.store import Store


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("models/loras/x.safetensors", "models/loras/x.safetensors"),
        ("models/text_encoders/t5-00001-of-00002.safetensors", "models/text_encoders/t5.safetensors"),
        ("models/text_encoders/t5.safetensors.index.json", "models/text_encoders/t5.safetensors"),
        ("models/diffusers/sd/model_index.json", "models/diffusers/sd"),
        ("models/diffusers/sd/unet/diffusion_pytorch_model.safetensors", "models/diffusers/sd"),
        ("models/diffusers/alone.safetensors", "models/diffusers/alone.safetensors"),
    ],
)
def test_shards_and_the_files_of_a_diffusers_folder_are_parts_of_one_model(path: str, unit: str) -> None:
    assert unit_of(path) == unit


def test_a_shard_that_lacks_is_named_however_many_are_claimed() -> None:
    assert incomplete_sets(["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors", "b.safetensors"]) == {}
    assert incomplete_sets(["t/a-00001-of-00003.safetensors", "t/a-00003-of-00003.safetensors"]) == {
        "t/a.safetensors": ("t/a-00002-of-00003.safetensors",)
    }
    (missing,) = incomplete_sets(["a-00001-of-99999.safetensors"]).values()
    assert len(missing) == 9_999


def test_the_rows_of_one_model_have_one_unit(tmp_path: Path) -> None:
    files = [
        Listed(f"models/diffusers/sd/{name}", None, 1)
        for name in ("model_index.json", "unet/config.json", "vae/x.safetensors")
    ]
    rows = inventory(files, store=Store(tmp_path / "store", further=()))
    assert {row.unit for row in rows} == {"models/diffusers/sd"}
    assert [row.state for row in rows] == ["missing"] * 3
