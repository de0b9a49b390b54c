"""What comfy-pack's plugin and server let happen, each a test that holds here; the table is held to the tests.

====================================================  ==================================================================
comfy-pack                                            here
====================================================  ==================================================================
``GET …/download/%2fetc%2fpasswd`` reads any file     nodes/test_origin.py::test_no_name_in_a_path_reads_a_file
a page of another site drives it                      nodes/test_origin.py::test_every_route_refuses_a_page_from_elsewhere_in_words
a model's ``filename`` as a path, when packing        nodes/test_jobs.py::test_a_model_s_name_is_compared_and_never_opened
… and ``filename`` or ``sha256``, when unpacking      nodes/test_faults.py::test_a_pack_s_words_lead_nowhere_out
an unquoted heredoc runs ``$(…)`` of a name           nodes/test_faults.py::test_a_pack_s_words_lead_nowhere_out
… as do printed commands                              nodes/test_serving.py::test_names_and_values_are_quoted_for_each_language
``HF_TOKEN`` goes to any "huggingface"                fetch/test_places.py::test_the_token_of_a_file_is_used_and_goes_to_no_other_host
… also where the pack came in by the page             nodes/test_faults.py::test_a_token_of_comfyui_s_goes_to_no_address_of_a_pack
``.tar`` packs escape                                 nodes/test_faults.py::test_a_tar_is_no_pack_and_nothing_of_it_is_written
an API key stays in localStorage                      nodes/test_dialogs.py::test_a_cloud_token_is_sent_once_and_kept_nowhere_in_the_browser
… or in logs and files                                nodes/test_building.py::test_a_token_comes_once_goes_to_its_endpoint_and_is_nowhere_else
it listens on all interfaces whatever is chosen       nodes/test_serving.py::test_it_listens_where_it_was_told_and_nowhere_else
… in the dialog                                       nodes/test_dialogs_for_real.py::test_a_workflow_is_served_called_as_the_dialog_says_and_stopped
====================================================  ==================================================================
"""  # noqa: E501

from __future__ import annotations

import hashlib
import io
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cpack.packs import make_pack, snapshot
from tests.fetch.servers import serving_files
from tests.nodes.routing import Comfyui, running
from tests.nodes.test_unpacking import send
from tests.standin.repository import make_repository

_TESTS = Path(__file__).resolve().parents[1]


def test_each_fault_has_a_test_that_is_there() -> None:
    lines = (line.split("  ")[-1].strip() for line in (__doc__ or "").splitlines())
    named = [line.split("::") for line in lines if "::" in line]
    assert len(named) == 13
    for path, name in named:
        assert f"\ndef {name}(" in (_TESTS / path).read_text(), name


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Comfyui, str]]:
    """A ComfyUI whose user has a token of Hugging Face, and the commit of a ComfyUI that can be restored there."""
    folder = tmp_path_factory.mktemp("faults")
    commit = make_repository(folder / "mirror")
    (folder / "store").mkdir()
    flags = shlex.join(["--mirror", f"https://github.com/Comfy-Org/ComfyUI={folder / 'mirror'}"])
    with running(folder, CPACK_RESTORE_FLAGS=flags, HF_TOKEN="hf_secret_of_mine") as comfyui:
        yield comfyui, commit


def around(comfyui: Comfyui) -> set[Path]:
    """What lies beside that ComfyUI, and in it where a name could lead."""
    root = comfyui.folder
    return {*root.parent.iterdir(), *root.iterdir(), *(root / "models").rglob("*"), *Path("/tmp").glob("escaped*")}


def refused(comfyui: Comfyui, data: bytes, name: str) -> str:
    """Unpack *data*: it fails, and lies nowhere but in the folder of that *name*; the code of what was said."""
    before = around(comfyui)
    upload = send(comfyui, data).json()["upload"]
    job = comfyui.over(comfyui.start("unpack", upload=upload, name=name, no_venv=True))
    assert job["state"] == "failed", job
    assert around(comfyui) - {comfyui.folder.parent / name} <= before
    assert job["error"]["message"]
    return str(job["error"]["code"])


def bare(commit: str, **model: object) -> dict[str, Any]:
    """A snapshot of a ComfyUI at *commit* with one *model* and nothing else."""
    document = snapshot(comfyui=commit, git_custom_nodes={}, cnr_custom_nodes={}, file_custom_nodes=[], pips={})
    document["models"] = [{**document["models"][0], **model}]
    return document


def test_a_tar_is_no_pack_and_nothing_of_it_is_written(scene: tuple[Comfyui, str]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("../escaped", "/tmp/escaped", "snapshot.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            archive.addfile(info, io.BytesIO(b"{}"))
    assert refused(scene[0], out.getvalue(), "of a tar") == "NotAPack"


@pytest.mark.parametrize(
    ("number", "changed"),
    list(
        enumerate(
            [
                {"filename": "../../escaped.safetensors"},
                {"filename": "/tmp/escaped.safetensors"},
                {"filename": "models/../../escaped.safetensors"},
                {"sha256": "../../../escaped"},
                {"sha256": "$(touch /tmp/escaped)"},
                {"filename": "models/loras/$(touch ..; touch escaped).safetensors"},
            ]
        )
    ),
)
def test_a_pack_s_words_lead_nowhere_out(
    scene: tuple[Comfyui, str], tmp_path: Path, number: int, changed: dict[str, str]
) -> None:
    comfyui, commit = scene
    pack = make_pack(tmp_path / "x.cpack.zip", snapshot_document=bare(commit, **changed))
    refused(comfyui, pack.read_bytes(), f"made anew {number}")
    assert not [path for path in comfyui.folder.parent.rglob("escaped*") if ".git" not in path.parts]


def test_a_token_of_comfyui_s_goes_to_no_address_of_a_pack(scene: tuple[Comfyui, str], tmp_path: Path) -> None:
    comfyui, commit = scene
    weights = b"weights" * 100
    with serving_files({"/huggingface.co/x.safetensors": weights}) as server:
        document = bare(
            commit, filename="models/loras/x.safetensors", size=len(weights),
            sha256=hashlib.sha256(weights).hexdigest(),
            source={"download_url": f"{server.url}/huggingface.co/x.safetensors"},
        )  # fmt: skip
        pack = make_pack(tmp_path / "x.cpack.zip", snapshot_document=document)
        upload = send(comfyui, pack.read_bytes()).json()["upload"]
        comfyui.done("unpack", upload=upload, name="with a model", no_venv=True)
    assert (comfyui.folder.parent / "with a model/models/loras/x.safetensors").read_bytes() == weights
    assert server.requests
    assert all("authorization" not in request.headers for request in server.requests)
    assert "hf_secret" not in comfyui.get("/cpack/jobs").text + comfyui.log
