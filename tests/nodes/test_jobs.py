"""Long work runs as jobs: told as it goes, cancelled whole, outlived by nothing, and with no secret in its log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cpack_build.nodes.jobs import Job, Jobs, Stage
from cpack_build.nodes.private import PrivateFolder
from cpack_build.nodes.tool import Tool, redact
from tests.nodes.routing import Comfyui, alive, fake_tool, gone, make_comfyui, running, settled, values, workflow
from tests.serve.running import wait_for


def asking(**asked: Any) -> dict[str, Any]:
    """A workflow that tells the fake tool what to do."""
    return {"1": {"class_type": "Fake", "inputs": asked}}


@pytest.fixture(scope="module")
def faked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ComfyUI with the fake tool."""
    folder = tmp_path_factory.mktemp("faked")
    with running(folder, CPACK_BUILD=str(fake_tool(folder))) as comfyui:
        yield comfyui


def test_a_pack_is_made_told_and_downloaded(comfyui: Comfyui, tmp_path: Path) -> None:
    key = comfyui.start("pack", name="my pack", prompt=workflow(), workflow={"nodes": [], "last_node_id": 0})
    job = comfyui.over(key)
    assert job["state"] == "done", values(job)
    assert [(stage["code"], stage["state"]) for stage in job["stages"]] == [("pack", "done")]
    assert job["result"]["name"] == "my pack.cpack.zip"
    assert job["ended"] >= job["started"]
    assert any("Looking at the workspace" in line for line in job["log_tail"])
    answer = comfyui.get(f"/cpack/jobs/{key}/download")
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''my%20pack.cpack.zip"
    assert len(answer.content) == job["result"]["size"]
    file = tmp_path / "x.cpack.zip"
    file.write_bytes(answer.content)
    from cpack_build.cpack.reader import read_pack

    read = read_pack(file)
    assert [model.filename for model in read.snapshot.models if not model.disabled] == [
        "models/upscale_models/tiny.safetensors"
    ]
    assert [item.name for item in read.inputs] == ["input/example.png"]


def test_exactly_what_was_ticked_is_packed_and_saved(comfyui: Comfyui) -> None:
    (comfyui.folder / "models/loras").mkdir(exist_ok=True)
    (comfyui.folder / "models/loras/extra.safetensors").write_bytes(b"x" * 40)
    (comfyui.folder / "input/[other].png").write_bytes(b"other")
    result = comfyui.done(
        "pack", name="ticked", prompt=workflow(), models=["models/loras/extra.safetensors"],
        inputs=["input/[other].png"], system=["libsndfile1"], save_as="kept",
    )  # fmt: skip
    assert result["saved"] == "cpack/kept.cpack.zip"
    from cpack_build.cpack.reader import read_pack

    read = read_pack(comfyui.saved / "kept.cpack.zip")
    assert [model.filename for model in read.snapshot.models if not model.disabled] == [
        "models/loras/extra.safetensors"
    ]
    assert [item.name for item in read.inputs] == ["input/[other].png"]
    assert json.loads(read.settings_text or "") == {"system": {"packages": ["libsndfile1"]}}
    assert any("tiny.safetensors is used by the workflow, and was not chosen" in note for note in result["notes"])
    again = comfyui.post("/cpack/jobs", {"kind": "pack", "params": {
        "name": "x", "prompt": workflow(), "save_as": "kept"}})  # fmt: skip
    assert (again.status_code, again.json()["error"]["code"]) == (409, "exists")


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"name": "../../etc/passwd"}, "bad_name"),
        ({"name": "/etc/passwd"}, "bad_name"),
        ({"name": "a/b"}, "bad_name"),
        ({"name": "a\\b"}, "bad_name"),
        ({"name": ".."}, "bad_name"),
        ({"name": ".hidden"}, "bad_name"),
        ({"name": "-rf"}, "bad_name"),
        ({"name": "$(id)"}, "bad_name"),
        ({"name": "`id`;x"}, "bad_name"),
        ({"name": "a\nb"}, "bad_name"),
        ({"name": "x\u0000"}, "bad_name"),
        ({"name": "x" * 300}, "bad_name"),
        ({"name": 7}, "bad_name"),
        ({"name": ""}, "bad_name"),
        ({"save_as": "../../../../tmp/evil"}, "bad_name"),
        ({"models": "models/x"}, "bad_value"),
        ({"models": [7]}, "bad_value"),
        ({"system": ["libgl1; rm -rf /"]}, "bad_value"),
        ({"system": ["--config=/etc/shadow"]}, "bad_value"),
        ({"include_local": "yes"}, "bad_value"),
        ({"prompt": None}, "no_prompt"),
        ({"prompt": []}, "bad_request"),
        ({"prompt": "x"}, "bad_request"),
    ],
)
def test_what_cannot_be_a_name_or_a_choice_is_refused_at_once(
    comfyui: Comfyui, params: dict[str, Any], code: str
) -> None:
    before = comfyui.get("/cpack/jobs").json()
    answer = comfyui.post("/cpack/jobs", {"kind": "pack", "params": {"name": "x", "prompt": workflow()} | params})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == code
    assert comfyui.get("/cpack/jobs").json() == before


@pytest.mark.parametrize("model", ["/etc/passwd", "../../../etc/passwd", "models/../../etc/passwd", "*", "$(id)"])
def test_a_model_s_name_is_compared_and_never_opened(comfyui: Comfyui, model: str) -> None:
    for choice in ({"models": [model]}, {"inputs": [model]}):
        job = comfyui.over(comfyui.start("pack", name="x", prompt=workflow(), **choice))
        assert job["state"] == "failed"
        assert job["error"]["code"] == "Unresolvable"
        assert "no model" in job["error"]["message"] or "no input file" in job["error"]["message"]
        assert job["error"]["next"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"kind": 7}', b'{"kind": "rm"}', b'{"kind": "pack", "params": 1}',
                                  b"\xff\xfe", b"[" * 100_000, b'{"a":' * 200_000, b"1" * 5000])  # fmt: skip
def test_a_body_that_is_none_is_refused(comfyui: Comfyui, body: bytes) -> None:
    import requests

    headers = {"X-CPack": "1", "Content-Type": "application/json"}
    answer = requests.post(comfyui.url + "/cpack/jobs", data=body, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_a_huge_body_is_refused_and_leaves_nothing(comfyui: Comfyui) -> None:
    import requests

    from cpack_build.nodes.asked import LIMIT

    def chunks() -> Any:
        for _ in range((LIMIT >> 20) + 2):
            yield b" " * (1 << 20)

    headers = {"X-CPack": "1", "Content-Type": "application/json"}
    try:
        answer = requests.post(comfyui.url + "/cpack/jobs", data=chunks(), headers=headers, timeout=60)
    except requests.ConnectionError:  # it hung up while we sent
        pass
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert not list(comfyui.temporary.glob("*/requests/*/*"))


def test_code_that_only_this_machine_has_travels_if_that_is_allowed(comfyui: Comfyui) -> None:
    node = comfyui.folder / "custom_nodes" / "mine.py"
    node.write_text("NODE_CLASS_MAPPINGS = {}\n")
    try:
        job = comfyui.over(comfyui.start("pack", name="x", prompt=workflow()))
        assert job["error"]["code"] == "local_code"
        assert "mine.py" in job["error"]["message"]
        assert "--" not in job["error"]["next"]
        assert comfyui.done("pack", name="x", prompt=workflow(), include_local=True)["size"]
    finally:
        node.unlink()


def test_a_large_workflow_is_packed_as_it_is(comfyui: Comfyui) -> None:
    large = workflow()
    large["2"]["_meta"] = {"title": "é" * 300_000}
    assert comfyui.done("pack", name="large", prompt=large)["size"] > 300_000


def test_two_of_a_kind_are_not_run_at_once_and_a_cancelled_one_leaves_nothing(faked: Comfyui, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    key = faked.start("pack", name="x", prompt=asking(sleeps=600, pids=str(pids)))
    wait_for(pids.exists, "the tool")
    second = faked.post("/cpack/jobs", {"kind": "pack", "params": {"name": "y", "prompt": asking()}})
    assert (second.status_code, second.json()["error"]["code"]) == (409, "already_running")
    processes = [int(pid) for pid in wait_for(pids.read_text, "its processes").split()]
    assert faked.post(f"/cpack/jobs/{key}/cancel").status_code == 200
    job = faked.over(key)
    assert job["state"] == "cancelled"
    assert job["stages"][0]["state"] == "cancelled"
    assert job["error"] is None
    assert (tmp_path / "unwound").exists()  # as with Ctrl-C: it had the chance to tidy up
    for pid in processes:
        gone(pid)
    assert not list(faked.temporary.glob(f"*/jobs/{key}"))
    assert not list(faked.temporary.glob("*/requests/*"))
    assert faked.get(f"/cpack/jobs/{key}/download").status_code == 404
    assert faked.over(faked.start("pack", name="y", prompt=asking()))["state"] == "failed"  # the fake makes no pack


def test_the_tool_s_failure_is_told_in_its_own_words(faked: Comfyui) -> None:
    error = {"type": "BadInput", "message": "No ComfyUI.", "hint": "Name one.", "exit_code": 3}
    job = faked.over(faked.start("pack", name="x", prompt=asking(prints=json.dumps({"error": error}), code=3)))
    assert job["state"] == "failed"
    assert job["error"] == {"code": "BadInput", "message": "No ComfyUI.", "next": "Name one."}
    dumb = faked.over(faked.start("pack", name="x", prompt=asking(prints="Segmentation fault", code=139)))
    assert dumb["error"]["code"] == "no_result"
    assert "139" in dumb["error"]["message"]


def test_progress_is_what_the_tool_tells(faked: Comfyui, tmp_path: Path) -> None:
    def event(kind: str, **more: Any) -> str:
        return json.dumps({"event": kind, **more})

    says = [
        event("start", task=1, title="Hashing models", total=100, unit="B"),
        event("note", message="One model has no source."),
        event("advance", task=1, done=40, total=100, rate=7, left=9),
        "Warning: some library said this.",
        '{"event": broken',
        event("advance", task="x", done=1),
        event("end", task=77),
    ]
    pids = tmp_path / "pids"
    key = faked.start("pack", name="x", prompt=asking(says=says, sleeps=600, pids=str(pids)))
    job = faked.until(key, lambda job: bool(job["progress"]) and job["progress"]["done"] == 40)
    assert job["progress"] == {"label": "Hashing models", "done": 40, "total": 100, "unit": "bytes", "rate": 7}
    job = faked.until(key, lambda job: '{"event": broken' in job["log_tail"])
    assert job["log_tail"] == [
        "Hashing models", "One model has no source.", "Warning: some library said this.", '{"event": broken'
    ]  # fmt: skip
    assert faked.get(f"/cpack/jobs/{key}/log").text == "".join(f"{line}\n" for line in job["log_tail"])
    assert [one["id"] for one in faked.get("/cpack/jobs").json()["jobs"]][-1] == key  # as after a reload
    faked.post(f"/cpack/jobs/{key}/cancel")
    assert faked.over(key)["progress"] is None


def test_no_token_stays_in_a_log(faked: Comfyui) -> None:
    says = [
        "GET https://someone:hunter2secret@hub.example/x",
        "Authorization: Bearer abcdef123456",
        "clone of https://hunter2secret@hub.example/x.git",
        '{"event": "start", "task": 1, "title": "https://u:hunter2secret@hub.example/x", "total": 1, "unit": "B"}',
        '{"event": "note", "message": "HF_TOKEN=hf_abcdef123456 was used"}',
    ]
    error = {"type": "NetworkError", "message": "https://u:hunter2secret@hub.example failed", "hint": ""}
    key = faked.start("pack", name="x", prompt=asking(says=says, prints=json.dumps({"error": error}), code=6))
    job = faked.over(key)
    refused = faked.post("/cpack/check", {"prompt": asking(prints=json.dumps({"error": error}), code=6)})
    assert refused.status_code == 502
    text = values(job) + refused.text + faked.get(f"/cpack/jobs/{key}/log").text
    assert "hub.example" in text
    for secret in ("hunter2secret", "abcdef123456"):
        assert secret not in text


def test_redaction_knows_the_secrets_of_a_job() -> None:
    assert redact("key s3cr3t, twice s3cr3t", ("s3cr3t", "")) == "key …, twice …"


def test_what_every_websocket_hears_has_no_word_of_a_job(tmp_path: Path) -> None:
    """ComfyUI opens its WebSocket to pages that the routes refuse."""
    heard: list[dict[str, Any]] = []
    jobs = Jobs(PrivateFolder(), heard.append)
    program = fake_tool(tmp_path)
    says = [json.dumps({"event": "start", "task": 1, "title": "s3cret title", "total": 9, "unit": "B"}), "s3cret line"]
    error = {"type": "BadInput", "message": "s3cret error", "hint": "s3cret hint"}
    (tmp_path / "w.json").write_text(json.dumps(asking(says=says, prints=json.dumps({"error": error}), code=3)))

    def work(job: Job) -> dict[str, Any]:
        job.tell({"url": "s3cret url"})
        return job.tool(Tool(tmp_path, {"CPACK_BUILD": str(program)}), "check", "--workflow", tmp_path / "w.json")

    job = jobs.start("pack", "s3cret name", [Stage("pack", "s3cret stage")], work)
    wait_for(lambda: heard and heard[-1]["state"] == "failed", "the job's end")
    assert values(job.snapshot()).count("s3cret") > 4
    assert "s3cret" not in json.dumps(heard)
    assert heard[-1] == {"id": job.id, "kind": "pack", "state": "failed", "progress": None}
    jobs.private.remove()


def test_what_was_asked_goes_with_a_job_that_is_cancelled_before_its_work(tmp_path: Path) -> None:
    jobs = Jobs(PrivateFolder(), lambda news: None)
    job = Job("pack", "x", [], jobs)
    job.request = jobs.private.below("requests", "1")
    job.cancel()
    job.run(lambda job: pytest.fail("it was cancelled"))
    assert job.state == "cancelled"
    assert not job.request.exists()
    assert not job.folder.exists()
    jobs.private.remove()


@pytest.mark.parametrize("change", ["removed", "another's", "opened", "link"])
def test_a_private_folder_that_is_no_longer_ours_is_made_anew(tmp_path: Path, change: str) -> None:
    private = PrivateFolder()
    first = private.below("jobs").parent
    assert private.below("jobs", "1") == first / "jobs" / "1"
    if change != "opened":
        first.rename(tmp_path / "moved")
    if change == "another's":
        first.mkdir(mode=0o700)
    elif change == "opened":
        first.chmod(0o777)
    elif change == "link":
        first.symlink_to(tmp_path / "moved")
    second = private.below("jobs", "2").parents[1]
    try:
        assert second != first
        for folder in (second, second / "jobs", second / "jobs/2"):
            assert folder.stat().st_mode & 0o777 == 0o700
        private.remove()
        assert not second.exists()
        assert first.exists() == (change != "removed")
    finally:
        if first.is_symlink():
            first.unlink()
        shutil.rmtree(first, ignore_errors=True)


def test_a_label_on_the_bar_has_no_secret(faked: Comfyui, tmp_path: Path) -> None:
    start = {"event": "start", "task": 1, "title": "https://hunter2@hub.example/x", "total": 1, "unit": "B"}
    prompt = asking(says=[json.dumps(start)], sleeps=600, pids=str(tmp_path / "pids"))
    key = faked.start("pack", name="x", prompt=prompt)
    job = faked.until(key, lambda job: bool(job["progress"]))
    assert job["progress"]["label"] == "https://…@hub.example/x"
    faked.post(f"/cpack/jobs/{key}/cancel")
    faked.over(key)


def test_no_line_takes_long_to_redact() -> None:
    """The first once took minutes, in which no other thread of ComfyUI ran."""
    for part in ("a-", "token", "https://", "x@", "authorization:"):
        script = f"from cpack_build.nodes.tool import redact; assert redact({part!r} * 100_000)"
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_deaf_tool_is_killed(faked: Comfyui, tmp_path: Path) -> None:
    """It ignores the first two requests to end; the last one cannot be ignored."""
    pids = tmp_path / "pids"
    key = faked.start("pack", name="x", prompt=asking(sleeps=600, pids=str(pids), deaf=True))
    processes = [int(pid) for pid in wait_for(lambda: pids.exists() and pids.read_text(), "the tool").split()]
    faked.post(f"/cpack/jobs/{key}/cancel")
    assert faked.over(key)["state"] == "cancelled"
    for pid in processes:
        gone(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_runs_ends_when_comfyui_ends_however_that_happens(tmp_path: Path, number: signal.Signals) -> None:
    pids = tmp_path / "pids"
    root = make_comfyui(tmp_path / "ComfyUI")
    with running(tmp_path, install=root, CPACK_BUILD=str(fake_tool(tmp_path))) as comfyui:
        comfyui.start("pack", name="x", prompt=asking(sleeps=600, pids=str(pids)))
        processes = [int(pid) for pid in wait_for(lambda: pids.exists() and pids.read_text(), "the tool").split()]
        assert all(alive(pid) for pid in processes)
        os.kill(comfyui.pid, number)
        for pid in [comfyui.pid, *processes]:
            gone(pid)
        left = list(comfyui.temporary.iterdir())
    assert len(left) == (1 if number == signal.SIGKILL else 0)
    with running(tmp_path, install=root, CPACK_BUILD=str(fake_tool(tmp_path))) as comfyui:
        assert not set(left) & set(comfyui.temporary.iterdir())


def test_only_the_last_twenty_are_kept(faked: Comfyui) -> None:
    keys = [faked.start("pack", name="x", prompt=asking())]
    for _ in range(24):
        faked.over(keys[-1])
        keys.append(faked.start("pack", name="x", prompt=asking()))
    faked.over(keys[-1])
    kept = [job["id"] for job in faked.get("/cpack/jobs").json()["jobs"]]
    assert len(kept) == 20
    assert kept[-1] == keys[-1]
    settled()
    assert len(list(faked.temporary.glob("*/jobs/*"))) <= 20
