"""The parts of the service that can be held to their promises without running it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cpack_build.errors import CpackError, NodeFailed, UsageError
from cpack_build.serve.answer import answer_with_error, choose_file, names_of
from cpack_build.serve.comfyui import _child_environment, command_line
from cpack_build.serve.device import choose_device
from cpack_build.serve.exchange import Produced, safe_name, shipped_file
from cpack_build.serve.folders import prepare_folders
from cpack_build.serve.settings import Settings
from cpack_build.workflow import Output, read_workflow
from tests.serve.workflows import everything
from tests.standin.repository import COMFYUI

ENVIRONMENT = {"CPACK_APP": "/app/cpack", "COMFYUI_DIR": "/app/comfyui"}


def produced(*names: str) -> list[Produced]:
    """Files named ``OUTPUT/FILE``."""
    outputs: dict[str, Output] = {}
    found = []
    for name in names:
        output, _, file = name.partition("/")
        outputs.setdefault(output, Output(output, output, "CPackOutputImage", "image"))
        found.append(Produced(outputs[output], Path(file)))
    return found


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("*/*", None),
        ("image/png", "a.png"),
        ("text/plain;q=0.5, image/png;q=0.9", "a.png"),
        ("image/webp, */*", None),
        ("image/*", "a.png"),
        ("image/png;q=0", None),
        ("application/zip, image/png;q=0.1", None),
        ("nonsense", None),
        ("text/plain;q=wrong", None),
    ],
)
def test_accept_chooses_the_first_output_of_a_type_it_names(accept: str, chosen: str | None) -> None:
    file = choose_file(produced("x/n.txt", "y/a.png", "z/b.png"), accept)
    assert (file.path.name if file else None) == chosen


def test_an_only_file_is_the_answer_whatever_is_accepted() -> None:
    (only,) = produced("x/a.png")
    assert choose_file([only], "text/html") is only


def test_files_are_named_after_their_outputs_and_numbered_where_there_are_several() -> None:
    files = produced("picture/out_00001_.PNG", "note/out.txt", "note/out2.txt", "a/b.x")
    assert names_of(files) == ["picture.png", "note_1.txt", "note_2.txt", "a.x"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\cat.png", "cat.png"),
        ("x.png [output]", "x.png_output_"),
        (".hidden", "hidden"),
        ("", "file"),
        ("a b;c.png", "a_b_c.png"),
        ("x" * 300 + ".png", "x" * 80 + ".png"),
    ],
)
def test_the_name_of_an_upload_is_never_a_path(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_only_files_of_the_packs_input_folder_are_defaults(tmp_path: Path) -> None:
    inputs = tmp_path / "input"
    (inputs / "clipspace").mkdir(parents=True)
    for name in ("a.png", "clipspace/m.png"):
        (inputs / name).write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"x")
    (inputs / "link").symlink_to(tmp_path / "secret")
    for value, found in {
        "a.png": "a.png",
        "input/a.png": "a.png",
        "clipspace/m.png [input]": "clipspace/m.png",
        "/home/me/ComfyUI/input/a.png": "a.png",
        "D:\\ComfyUI\\input\\clipspace\\m.png": "clipspace/m.png",
    }.items():
        assert shipped_file(inputs, value) == inputs / found, value
    for value in ("../secret", "input/../../secret", "link", "/etc/passwd", "", "no", "a\0b", "x" * 5000, None, 3):
        assert shipped_file(inputs, value) is None, value


def test_an_error_keeps_paths_of_the_image_to_itself() -> None:
    workflow = read_workflow(everything(), name="w")
    text = "cannot open '/app/comfyui/models/a b.bin' or /data/input/x.png: see https://host.example/a/b; 3/4 done"
    body = answer_with_error(NodeFailed(text, node_id="8", node_class="StandinFail"), workflow).body
    assert b"/app" not in bytes(body)
    assert b"/data" not in bytes(body)
    assert "…/x.png".encode() in bytes(body)
    assert b"https://host.example/a/b; 3/4 done" in bytes(body)


def test_the_settings_name_the_variable_that_is_wrong() -> None:
    for name, value in {
        "PORT": "eighty",
        "CPACK_TIMEOUT": "-1",
        "CPACK_COMFYUI_ARGS": "--lowvram",
        "COMFYUI_OPTIONS": "'open",
    }.items():
        with pytest.raises(UsageError, match=name):
            Settings.from_environment({**ENVIRONMENT, name: value}, pid=2)
    for name in ENVIRONMENT:
        with pytest.raises(UsageError, match=name):
            Settings.from_environment({key: value for key, value in ENVIRONMENT.items() if key != name}, pid=2)


def test_only_process_1_listens_on_all_interfaces_unasked() -> None:
    assert Settings.from_environment(ENVIRONMENT, pid=2).host == "127.0.0.1"
    assert Settings.from_environment(ENVIRONMENT, pid=1).host == "0.0.0.0"
    assert Settings.from_environment({**ENVIRONMENT, "CPACK_HOST": "::1"}, pid=1).host == "::1"


def test_comfyuis_arguments_come_from_both_variables() -> None:
    environment = {**ENVIRONMENT, "CPACK_COMFYUI_ARGS": '["--lowvram"]', "COMFYUI_OPTIONS": "--verbose 'DE BUG'"}
    settings = Settings.from_environment(environment, pid=2)
    assert settings.comfyui_args == ("--lowvram", "--verbose", "DE BUG")


def test_the_command_line_leaves_out_what_an_old_comfyui_does_not_know(tmp_path: Path) -> None:
    folders = prepare_folders(tmp_path / "data", tmp_path / "none")
    settings = Settings.from_environment({**ENVIRONMENT, "CPACK_COMFYUI_ARGS": '["--fast"]'}, pid=2)
    new = command_line(Path("python"), COMFYUI, settings, folders, port=5, cpu=True)
    assert new[:7] == ["python", "-u", "main.py", "--listen", "127.0.0.1", "--port", "5"]
    assert {"--database-url", "--user-directory", "--max-upload-size", "--cpu"} <= set(new)
    assert new[-1] == "--fast"
    old = tmp_path / "old" / "comfy"
    old.mkdir(parents=True)
    (old / "cli_args.py").write_text('parser.add_argument("--listen")\nparser.add_argument("--port")\n')
    command = command_line(Path("python"), old.parent, settings, folders, port=5, cpu=False)
    assert command == ["python", "-u", "main.py", "--listen", "127.0.0.1", "--port", "5", "--fast"]


@pytest.mark.parametrize(
    ("torch", "devices", "arguments", "cpu"),
    [
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None", ["nvidia0"], [], False),
        ("cuda = '12.8'\nhip = None", ["nvidiactl"], [], True),
        ("cuda = '12.8'", ["dxg"], [], False),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", ["kfd"], [], False),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", ["nvidia0"], [], True),
        (None, ["nvidia0"], [], False),
        (None, [], [], True),
        ("cuda = None", [], ["--cpu"], False),
    ],
)
def test_the_cpu_is_chosen_where_machine_or_pytorch_have_no_gpu(
    torch: str | None, devices: list[str], arguments: list[str], cpu: bool, tmp_path: Path
) -> None:
    dev, packages = tmp_path / "dev", tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    dev.mkdir()
    for name in devices:
        (dev / name).touch()
    if torch is not None:
        (packages / "torch").mkdir(parents=True)
        (packages / "torch" / "version.py").write_text(torch)
    assert choose_device(tmp_path / "env" / "bin" / "python", arguments, environ={}, dev=dev).cpu is cpu


@pytest.mark.parametrize(
    ("environ", "cpu"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, True),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, True),
        ({"CUDA_VISIBLE_DEVICES": "0"}, False),
        ({"HIP_VISIBLE_DEVICES": ""}, False),
        ({}, False),
    ],
)
def test_a_gpu_that_the_environment_hides_is_none(environ: dict[str, str], cpu: bool, tmp_path: Path) -> None:
    dev, torch = tmp_path / "dev", tmp_path / "env/lib/python3.11/site-packages/torch"
    dev.mkdir()
    (dev / "nvidia0").touch()
    torch.mkdir(parents=True)
    (torch / "version.py").write_text("cuda: Optional[str] = '12.8'\nhip = None\n")
    assert choose_device(tmp_path / "env/bin/python", (), environ=environ, dev=dev).cpu is cpu


def test_a_gpu_that_this_user_may_not_use_is_none(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").symlink_to("nowhere")  # root may use any file that is there
    device = choose_device(tmp_path / "env/bin/python", (), environ={}, dev=tmp_path)
    assert device.cpu
    assert "nvidia0" in device.why


def test_folders_are_made_once_and_inputs_follow_the_pack(tmp_path: Path) -> None:
    inputs = tmp_path / "input"
    (inputs / "sub").mkdir(parents=True)
    (inputs / "sub" / "a.txt").write_text("one")
    (inputs / "link").symlink_to("/etc/passwd")
    folders = prepare_folders(tmp_path / "data", inputs)
    assert (folders.input / "sub" / "a.txt").read_text() == "one"
    assert not (folders.input / "link").exists()
    (inputs / "sub" / "a.txt").write_text("two")
    (folders.scratch / "left").write_text("over")
    prepare_folders(tmp_path / "data", inputs)
    assert (folders.input / "sub" / "a.txt").read_text() == "two"
    assert not any(folders.scratch.iterdir())


def test_a_folder_in_the_way_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(CpackError, match="Mount a writable volume"):
        prepare_folders(tmp_path / "data", tmp_path)


_READ_BY_A_CHILD = """
import ctypes, os, sys
from cpack_build.serve.__main__ import hide_secrets
if os.getuid() == 0:  # root may read everything
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as any program is when it was started

def read_by_a_child():
    child = os.fork()
    if not child:
        try:
            open(f"/proc/{os.getppid()}/environ", "rb").read()
        except PermissionError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

before = read_by_a_child()
hide_secrets()
print(before, read_by_a_child())
"""


def test_no_custom_node_reads_the_service_s_keys_from_its_process() -> None:
    command = [sys.executable, "-c", _READ_BY_A_CHILD]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"CPACK_TOKEN": "secret"})
    assert done.stdout.split() == ["True", "False"]


def test_comfyui_gets_none_of_the_service_s_own_secrets(tmp_path: Path) -> None:
    folders = prepare_folders(tmp_path / "data", tmp_path / "input")
    secrets = {"CPACK_TOKEN", "CPACK_REGISTRY_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_CONTAINER_AUTHORIZATION_TOKEN"}
    given = {**dict.fromkeys(secrets, "secret"), "CPACK_OUTPUT_URL": "s3://bucket", "HF_HOME": "/cache"}
    child = _child_environment(given, folders)
    assert not secrets & child.keys()
    assert child["HF_HOME"] == "/cache"
