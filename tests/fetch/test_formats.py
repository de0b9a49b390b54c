"""A model file is judged by what it says and would do, without being loaded."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import BadInput
from cpack_build.fetch.architecture import guess
from cpack_build.fetch.pickles import Verdict, scan, scan_file, verdict_of
from cpack_build.fetch.safetensors import read_header
from cpack_build.fetch.store import Store


def safetensors(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def tensor(begin: int, end: int, *, dtype: str = "F16", shape: tuple[int, ...] = (2, 2)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_a_sound_header_tells_tensors_types_and_metadata(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": tensor(0, 8),
        "a": tensor(8, 9, dtype="BOOL", shape=()),
        "none": tensor(9, 9, dtype="F32", shape=(0, 5)),
    }
    found = read_header(safetensors(tmp_path / "x", header, bytes(9)))
    assert found.parameters == 5
    assert found.dtypes == ("F16", "BOOL", "F32")
    assert found.metadata == {"format": "pt"}
    assert found.tensors["b"].shape == (2, 2)


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": tensor(0, 8)}, b"", "tensors have 8 bytes, and the file has room for 0"),
        ({"a": tensor(0, 8)}, bytes(9), "room for 9"),
        ({"a": tensor(1, 9)}, bytes(9), "begins at byte 1"),
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12), "begins at byte 4, not at 8"),
        ({"a": tensor(0, 6)}, bytes(6), "takes 6 bytes, where its shape needs 8"),
        ({"a": tensor(0, 8, shape=(-1, -4))}, bytes(8), "has no shape"),
        ({"a": tensor(0, 8, shape=(2**62, 2**62))}, bytes(8), "its shape needs"),
        ({"a": tensor(0, 8, dtype="F99")}, bytes(8), "unknown type 'F99'"),
        ({"a": {"dtype": "F16", "shape": [4], "data_offsets": [True, 8]}}, bytes(8), "has no place"),
        ({"a": 5}, b"", "unknown type None"),
        ({"__metadata__": {"a": 1}}, b"", "metadata is not text"),
        (b'{"a": 1, "a": 2}', b"", "a name occurs twice"),
        (b"[1]", b"", "no JSON object"),
        (b"{" * 5000, b"", "damaged"),
        (b"{", b"", "damaged"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused_by_name(tmp_path: Path, header: object, data: bytes, said: str) -> None:
    path = safetensors(tmp_path / "x.safetensors", header, data)
    with pytest.raises(BadInput, match=r"x\.safetensors is no sound safetensors file") as caught:
        read_header(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("length", [2**64 - 1, 200_000_000, 100])
def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path, length: int) -> None:
    with pytest.raises(BadInput, match="its header would have"):
        read_header(safetensors(tmp_path / "x", b"{}", length=length))


# -- pickles ---------------------------------------------------------------------------------------------------------


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def zipped(program: bytes) -> bytes:
    """As ``torch.save`` writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", random.Random(1).randbytes(1000))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def verdict(data: bytes) -> Verdict:
    return scan(io.BytesIO(data))


STATE = OrderedDict({"model.0.weight": [1.0, 2.0], "conv_first.weight": None})


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_safe_and_its_names_are_told(protocol: int) -> None:
    for data in (pickle.dumps(STATE, protocol), zipped(pickle.dumps(STATE, protocol))):
        found = verdict(data)
        assert (found.level, found.unknown, found.dangerous) == ("safe", (), ())
        assert "conv_first.weight" in found.names


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [eval, exec, __import__("os").system, __import__("subprocess").Popen, getattr])
def test_what_would_run_something_is_dangerous_and_named(protocol: int, function: Any) -> None:
    program = pickle.dumps({"weights": Runs(function, "1")}, protocol)
    for data in (program, zipped(program)):
        found = verdict(data)
        assert found.level == "dangerous"
        assert any(one.endswith(function.__name__) for one in found.dangerous)


def test_what_nobody_knows_is_unknown() -> None:
    assert verdict(b"cmy_package.models\nNetwork\n.").unknown == ("my_package.models.Network",)
    assert verdict(b"ctorch\n_utils\n.").level == "unknown"


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x0bcollections\x8c\x0bOrderedDict00\x93.",  # harmless names, popped
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x9400h\x00h\x01\x93.",  # by the memo: named, and dangerous
        b"\x80\x04K\x01K\x02\x93.",  # names that are no text
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x04\x8c\x02os\x8c\x06system\x93",  # no end
        b"\x80\x04\xff.",  # no opcode
    ],
)
def test_what_hides_its_imports_is_dangerous(program: bytes) -> None:
    assert verdict(program).level == "dangerous"
    assert verdict(zipped(program)).level == "dangerous"


def test_pytorchs_old_format_is_several_pickles_and_then_data() -> None:
    parts = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, STATE, ["0"])]
    assert verdict(b"".join(parts) + random.Random(2).randbytes(1000)).level == "safe"
    parts[3] = pickle.dumps(Runs(eval, "1"), 2)
    assert verdict(b"".join(parts) + bytes(1000)).level == "dangerous"


def test_code_of_torchscript_is_told_and_is_no_plain_data() -> None:
    file = io.BytesIO(zipped(pickle.dumps(STATE)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/code/__torch__.py", "class Net: pass")
    found = scan(file)
    assert (found.level, found.unknown) == ("unknown", ("TorchScript code in 'archive/code/__torch__.py'",))


def test_a_damaged_or_encrypted_zip_is_dangerous() -> None:
    data = bytearray(zipped(pickle.dumps(STATE)))
    data[40:60] = b"x" * 20
    assert verdict(bytes(data)).level == "dangerous"


def test_a_program_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpack_build.fetch.pickles._LIMIT", 1000)
    assert verdict(b"\x80\x04" + b"N0" * 10_000).level == "dangerous"
    assert verdict(b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x").level == "dangerous"


def test_a_pickle_under_another_name_is_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps(Runs(eval, "1")))
    found = scan_file(path)
    assert found is not None
    assert found.is_dangerous
    assert scan_file(safetensors(tmp_path / "y.safetensors", {})) is None


UNET = "model.diffusion_model.input_blocks"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], "LoRA"),
        ([f"{UNET}.0.0.weight", "conditioner.embedders.1.model.x"], "Stable Diffusion XL checkpoint"),
        ([f"{UNET}.0.0.weight", "cond_stage_model.transformer.x"], "Stable Diffusion 1 checkpoint"),
        (["double_blocks.0.img_attn.x", "single_blocks.0.linear1"], "Flux"),
        (["joint_blocks.0.x"], "Stable Diffusion 3"),
        (["model.1.sub.0.RDB1.conv1.0.weight"], "upscaler (ESRGAN)"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5 text encoder"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "VAE"),
        (["something.else"], None),
        ([], None),
    ],
)  # fmt: skip
def test_the_kind_of_a_model_is_told_by_its_names(names: list[str], kind: str | None) -> None:
    assert guess(names) == kind


@pytest.mark.parametrize("data", [pickle.dumps(OrderedDict(a=1)), pickle.dumps(print), b"no pickle at all"])
@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_a_verdict_is_remembered_by_what_the_file_holds_and_is_called(tmp_path: Path, data: bytes, name: str) -> None:
    store = Store(tmp_path / "store")
    path = tmp_path / "x"
    path.write_bytes(data)
    file = store.adopt(path)
    first = verdict_of(file, name=name, store=store)
    assert first == scan_file(path, name=name)
    path.unlink()
    assert verdict_of(file, name=name, store=store) == first
    with pytest.raises(FileNotFoundError):
        verdict_of(file, name="x.safetensors" if name == "x.ckpt" else "x.ckpt", store=store)
