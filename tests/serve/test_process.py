"""The service keeps ComfyUI running, says truthfully when it does not, and leaves nothing behind when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import requests
from PIL import Image

from cpack_build.serve.comfyui import _forward
from tests.serve.running import Engine, children, free_port, is_running, serving, wait_for, write_app
from tests.serve.workflows import EVERYTHING_INPUTS, everything, node, picture, upscale


def crashing() -> dict[str, object]:
    return {
        "1": node("CPackInputString", "caption", value="x"),
        "2": node("CPackInputAny", "crash", input=False),
        "3": node("StandinCrash", "Crash", value=["1", 0], code=70, crash=["2", 0]),
        "4": node("CPackOutputTextFile", "note", text=["3", 0], filename_prefix="p", file_extension=".txt"),
    }


def test_a_crash_fails_the_request_with_its_cause_and_comfyui_comes_back(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", crashing())
    with serving(app, tmp_path, engine=own_standin) as service:
        answer = service.generate(crash="true")
        assert answer.status_code == 502
        assert "exit code 70" in answer.json()["error"]
        assert service.get("/livez").status_code == 200
        service.wait_ready()
        assert service.generate(caption="again").text == "again"


def test_comfyui_that_is_killed_is_noticed_and_started_again(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", crashing())
    with serving(app, tmp_path, engine=own_standin) as service:
        (child,) = children(service.process.pid)
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: service.get("/readyz").status_code == 503, "/readyz to say that ComfyUI is gone")
        wait_for(lambda: "it was ended by SIGKILL" in service.log, "the log to say how it ended")
        service.wait_ready()
        assert children(service.process.pid) != [child]


def test_killed_it_fails_what_ran_and_what_waited_and_both_are_told_why(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    with serving(app, tmp_path, engine=own_standin) as service:
        answers: list[requests.Response] = []
        asking = [
            threading.Thread(target=lambda size=size: answers.append(service.generate(seconds=500, size=size)))  # type: ignore[misc]
            for size in (50, 51)
        ]
        for thread in asking:
            thread.start()

        def both() -> bool:
            queue = requests.get(f"{service.comfyui}/queue", timeout=60).json()
            return bool(queue["queue_running"] and queue["queue_pending"])

        wait_for(both, "one to run and one to wait")
        (child,) = children(service.process.pid)
        os.kill(child, signal.SIGKILL)
        for thread in asking:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [502, 502]
        assert all("SIGKILL (often: out of memory)" in answer.json()["error"] for answer in answers)
        service.wait_ready()
        assert service.generate(accept="text/plain", caption="again").text == "again"
        assert not service.leftovers()


def out_of_memory(times: int) -> dict[str, object]:
    return {
        "1": node("CPackInputString", "caption", value="x"),
        "2": node("StandinOutOfMemory", "Sample", value=["1", 0], times=times),
        "3": node("CPackOutputTextFile", "note", text=["2", 0], filename_prefix="p", file_extension=".txt"),
    }


def test_without_memory_a_request_is_run_once_more_where_that_is_asked_for(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", out_of_memory(1))
    with serving(app, tmp_path, engine=own_standin, CPACK_RETRY_OUT_OF_MEMORY="1") as service:
        assert service.generate(caption="second").text == "second"
        assert "run once more" in service.log


def test_without_memory_a_request_fails_by_its_node_and_comfyui_lives(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", out_of_memory(2))
    with serving(app, tmp_path, engine=own_standin) as service:
        for _ in range(2):
            answer = service.generate(caption="x")
            assert (answer.status_code, answer.json()["type"]) == (500, "OutOfMemory")
            assert answer.json()["node"]["title"] == "Sample"
        assert service.generate(caption="third").text == "third"


def test_warmed_up_it_is_ready_only_after_the_workflow_ran(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", out_of_memory(1))
    with serving(app, tmp_path, engine=own_standin, wait=False, CPACK_WARM_UP="1") as service:
        # The first run fails, so it is not ready though ComfyUI answers; the second is ten seconds later.
        wait_for(lambda: "The warm-up failed" in service.log, "the first warm-up to fail")
        assert service.get("/readyz").status_code == 503
        assert service.get("/livez").status_code == 200
        service.wait_ready()
        assert "was warmed up" in service.log
        (child,) = children(service.process.pid)
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: service.get("/readyz").status_code == 503, "/readyz to say that ComfyUI is gone")
        wait_for(lambda: service.log.count("The warm-up failed") == 2, "the new one to be warmed up, too")
        assert not service.leftovers()


def test_a_workflow_without_values_of_its_own_cannot_be_warmed_up(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", upscale())
    with serving(app, tmp_path, engine=own_standin, wait=False, CPACK_WARM_UP="1") as service:
        assert service.process.wait(60) == 2
        assert "no value of its own for photo" in service.log


def test_without_space_a_request_says_so_and_the_next_is_served(own_standin: Engine, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    data = tmp_path / "data"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(data)], check=True)
    try:
        with serving(app, tmp_path, engine=own_standin) as service:
            answer = service.generate(files={"photo": ("x.png", os.urandom(6 << 20))})
            assert answer.status_code == 507, answer.text
            assert "no space" in answer.json()["error"]
            filler = data / "filler"
            with contextlib.suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            # Now it is the nodes that cannot write.
            answer = service.generate(accept="image/png", size=501)
            assert answer.status_code in (500, 507), answer.text
            assert service.get("/livez").status_code == 200
            filler.unlink()
            assert service.generate(accept="image/png").status_code == 200
            assert not service.leftovers()
            assert "Traceback" not in re.sub(r"\[comfyui\].*\n", "", service.log)
    finally:
        subprocess.run(["umount", str(data)], check=True)


def test_told_to_stop_under_load_it_loses_no_result_that_it_began_to_send(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    answers: list[requests.Response | requests.RequestException] = []

    def ask(number: int) -> None:
        while True:
            try:
                answers.append(service.generate(accept="image/png", size=32 + number))
            except requests.ConnectionError:
                return  # it listens no more
            except requests.RequestException as error:
                answers.append(error)
                return
            if answers[-1].status_code != 200:  # type: ignore[union-attr]
                return

    with serving(app, tmp_path, engine=own_standin, CPACK_SHUTDOWN_SECONDS="60") as service:
        asking = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in asking:
            thread.start()
        wait_for(lambda: len(answers) > 20, "some answers")
        service.process.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join(60)
        assert service.process.wait(60) == 0
    assert all(isinstance(answer, requests.Response) for answer in answers), answers
    assert {answer.status_code for answer in answers} <= {200, 503}  # type: ignore[union-attr]
    for answer in answers:
        if answer.status_code == 200:  # type: ignore[union-attr]
            Image.open(io.BytesIO(answer.content)).load()  # type: ignore[union-attr]


def test_comfyui_that_hangs_is_not_called_ready(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", crashing())
    with serving(app, tmp_path, engine=own_standin) as service:
        (child,) = children(service.process.pid)
        os.kill(child, signal.SIGSTOP)
        assert service.get("/readyz").status_code == 503
        assert service.get("/livez").status_code == 200
        os.kill(child, signal.SIGCONT)
        service.wait_ready()


def test_until_comfyui_answers_the_service_says_so(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", crashing())
    arguments = '["--standin-start-seconds", "600"]'
    with serving(app, tmp_path, engine=own_standin, wait=False, CPACK_COMFYUI_ARGS=arguments) as service:

        def live() -> bool:
            try:
                return service.get("/livez").status_code == 200
            except requests.ConnectionError:
                return False

        wait_for(live, "the service to be live", log=lambda: service.log)
        assert service.get("/readyz").status_code == 503
        answer = service.generate(caption="x")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "it is starting" in answer.json()["error"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_well_and_comfyui_with_it(how: int, own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", crashing())
    with serving(app, tmp_path, engine=own_standin) as service:
        started = children(service.process.pid)
        service.process.send_signal(how)
        assert service.process.wait(60) == 0, service.log
        assert started
        assert not any(is_running(pid) for pid in started)
        assert "Traceback" not in service.log


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_while_it_starts_it_ends_well(how: int, own_standin: Engine, tmp_path: Path) -> None:
    # As process 1 of a container it would not even notice: the kernel drops a signal that nobody asked for.
    app = write_app(tmp_path / "app", crashing())
    with serving(app, tmp_path, engine=own_standin, wait=False) as service:
        started = wait_for(lambda: children(service.process.pid), "ComfyUI to be started", log=lambda: service.log)
        assert "Serving" not in service.log
        service.process.send_signal(how)
        assert service.process.wait(60) == 0, service.log
        assert not any(is_running(pid) for pid in started)
        assert "Traceback" not in service.log


def test_comfyui_that_cannot_be_started_is_told_and_tried_again(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", crashing())
    python = tmp_path / "python"
    python.write_text("#!/no/such/interpreter\n")
    python.chmod(0o755)
    engine = dataclasses.replace(own_standin, python=str(python))
    with serving(app, tmp_path, engine=engine, wait=False) as service:
        wait_for(lambda: service.log.count("it cannot be started") > 1, "a second try", log=lambda: service.log)
        whole = tmp_path / "whole"
        whole.write_text(f'#!/bin/sh\nexec {own_standin.python} "$@"\n')
        whole.chmod(0o755)
        whole.replace(python)
        service.wait_ready()


def test_a_line_without_end_and_a_log_that_nobody_reads_do_not_stop_comfyui() -> None:
    async def forward(text: bytes) -> None:
        stream = asyncio.StreamReader()
        stream.feed_data(text)
        stream.feed_eof()
        await _forward(stream)

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with contextlib.redirect_stdout(Gone()):
        asyncio.run(forward(b"one\ntwo\n" * 100_000 + b"three"))  # raises nothing, and reads to the end
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(narrow):
        asyncio.run(forward("\N{GRINNING FACE}\nafter\n".encode()))
        narrow.flush()
    assert narrow.buffer.getvalue().endswith(b"[comfyui] after\n")  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(io.StringIO()) as lines:
        asyncio.run(forward(b"x" * (1 << 20)))
    assert max(map(len, lines.getvalue().splitlines())) < 1 << 18


def test_told_to_stop_it_lets_the_running_request_end(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    with serving(app, tmp_path, engine=own_standin, CPACK_SHUTDOWN_SECONDS="60") as service:
        answers: list[requests.Response] = []
        asking = threading.Thread(target=lambda: answers.append(service.generate(accept="image/png", seconds=2)))
        asking.start()
        queue = f"{service.comfyui}/queue"
        wait_for(lambda: requests.get(queue, timeout=60).json()["queue_running"], "the request to run")
        service.process.send_signal(signal.SIGTERM)
        asking.join()
        assert answers[0].status_code == 200
        assert service.process.wait(60) == 0


def test_killed_outright_it_still_leaves_no_comfyui(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", crashing())
    with serving(app, tmp_path, engine=own_standin) as service:
        started = children(service.process.pid)
        service.process.kill()
        service.process.wait()
        wait_for(lambda: not any(is_running(pid) for pid in started), "ComfyUI to end, too")


def test_a_folder_that_cannot_be_written_is_named_at_once(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", crashing())
    (tmp_path / "data").write_text("in the way")
    with serving(app, tmp_path, engine=own_standin, wait=False) as service:
        assert service.process.wait(60) == 9
        assert f"{tmp_path / 'data'}" in service.log
        assert "Mount a writable volume" in service.log
        assert "Traceback" not in service.log


def test_a_workflow_that_cannot_be_served_is_one_sentence(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", {"last_node_id": 1, "nodes": []})
    with serving(app, tmp_path, engine=own_standin, wait=False) as service:
        assert service.process.wait(60) == 3
        assert "UI format" in service.log
        assert "Traceback" not in service.log


def test_a_taken_port_ends_it_and_its_comfyui(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", crashing())
    with serving(app, tmp_path / "one", engine=own_standin) as first:
        port = first.url.rpartition(":")[2]
        with serving(app, tmp_path / "two", engine=own_standin, wait=False, PORT=port) as second:
            assert second.process.wait(60) != 0
            assert "address already in use" in second.log
            assert not children(second.process.pid)


def test_without_a_gpu_it_says_that_it_uses_the_cpu(own_standin: Engine, tmp_path: Path) -> None:
    if any(Path("/dev").glob("nvidia*")):
        pytest.skip("this machine has a GPU")
    app = write_app(tmp_path / "app", crashing())
    arguments = json.dumps(["--lowvram"])  # which ComfyUI takes on a GPU only
    with serving(app, tmp_path, engine=own_standin, CPACK_COMFYUI_ARGS=arguments) as service:
        assert service.log.count("ComfyUI runs on the CPU") == 1
        stats = requests.get(f"{service.comfyui}/system_stats", timeout=60).json()
        assert "--cpu" in stats["system"]["argv"]
        assert stats["system"]["argv"][stats["system"]["argv"].index("--listen") + 1] == "127.0.0.1"


def test_a_custom_node_that_runs_pip_installs_nothing_and_is_loaded(own_standin: Engine, tmp_path: Path) -> None:
    package = own_standin.folder / "custom_nodes" / "installs"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import subprocess, sys\n"
        "subprocess.check_call([sys.executable, '-m', 'pip', 'install', 'no-such-package-of-cpack'])\n"
        "subprocess.check_call([sys.executable, '-m', 'pip', '--version'], stdout=subprocess.DEVNULL)\n"
        "NODE_CLASS_MAPPINGS = {}\n"
    )
    app = write_app(tmp_path / "app", crashing())
    with serving(app, tmp_path, engine=own_standin) as service:
        assert "nothing was done; the packages of this image are those of its lock" in service.log
        assert "IMPORT FAILED" not in service.log


def test_a_comfyui_on_another_machine_is_served_through_its_protocol_alone(own_standin: Engine, tmp_path: Path) -> None:
    # 127.0.0.2 is this machine, but nothing that the service knows to be.
    folders = {name: tmp_path / "remote" / name for name in ("input", "output", "user")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    port = free_port()
    command = [sys.executable, "main.py", "--listen", "127.0.0.2", "--port", str(port)]
    for name, folder in folders.items():
        command += [f"--{name}-directory", str(folder)]
    remote = subprocess.Popen(command, cwd=own_standin.folder, stderr=subprocess.DEVNULL)
    try:
        workflow = everything()
        del workflow["13"]
        app = write_app(tmp_path / "app", workflow, inputs=EVERYTHING_INPUTS)
        with serving(app, tmp_path / "service", COMFYUI_SERVER=f"127.0.0.2:{port}") as service:
            answer = service.generate(accept="image/png", files={"photo": ("x.png", picture())})
            assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
            assert service.generate(accept="text/plain", caption="far away").text == "far away"
            remote.kill()
            remote.wait()
            wait_for(lambda: service.get("/readyz").status_code == 503, "/readyz to say that it is gone")
    finally:
        remote.kill()
        remote.wait()


def test_any_user_can_run_it_with_nothing_else_writable(own_standin: Engine) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    probe = [sys.executable, "-c", "import bentoml, cpack_build"]
    shown = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        subprocess.run(probe, user=54321, group=54321, extra_groups=[], env=shown, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("another user cannot read this Python environment")
    with TemporaryDirectory(dir="/tmp") as folder:  # pytest's own is closed to other users
        Path(folder).chmod(0o755)
        _serve_as_another(own_standin, Path(folder), shown["PYTHONPATH"])


def _serve_as_another(engine: Engine, folder: Path, python_path: str) -> None:
    comfyui = shutil.copytree(engine.folder, folder / "ComfyUI")
    app = write_app(folder / "app", everything(), inputs=EVERYTHING_INPUTS)
    data = folder / "data"
    data.mkdir()
    data.chmod(0o1777)
    port = str(free_port())
    variables = {
        **{name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
        "PYTHONPATH": python_path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
        "CPACK_APP": str(app),
        "CPACK_DATA": str(data),
        "COMFYUI_DIR": str(comfyui),
        "COMFYUI_PYTHON": engine.python,
        "PORT": port,
    }
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "cpack_build.serve"]
        process = subprocess.Popen(
            command, env=variables, cwd="/", user=54321, group=54321, extra_groups=[], stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                return requests.get(f"{url}/readyz", timeout=60).ok
            except requests.ConnectionError:
                return False

        wait_for(ready, "the service of another user", log=lambda: (folder / "log").read_text())
        answer = requests.post(f"{url}/generate", json={}, headers={"Accept": "image/png"}, timeout=60)
        assert answer.headers["content-type"] == "image/png"
    finally:
        process.terminate()
        process.wait(60)
