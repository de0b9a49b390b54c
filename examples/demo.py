"""``make demo``: an example pack becomes an image, the image runs, a picture goes in and comes out four times as large.

Everything it makes lies in ``.demo/`` (or ``CPACK_DEMO``). The engine is Docker if it answers, else podman; without
either the image is unpacked and run with the system's namespace tools. ComfyUI is a small stand-in, so that the demo
takes a minute; ``--comfyui`` takes the real one, from its repository or from ``COMFYUI=PATH``. Further places of Python
packages are named by ``FIND_LINKS``, ``INDEX_URL`` and ``EXTRA_INDEX_URL``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import engineless  # noqa: E402
from upscale.example import MODEL, make_pack, picture, png_size, write_model  # noqa: E402

DEMO = Path(os.environ.get("CPACK_DEMO") or ROOT / ".demo").absolute()
COMFYUI_URL = "https://github.com/comfyanonymous/ComfyUI.git"
COMFYUI_COMMIT = "a125cd84b054a57729b5eecab930ca9408719832"
"""ComfyUI 0.3.64, whose requirements are in ``upscale/comfyui-requirements.txt``."""
NODES_URL = "https://demo.example/interface-nodes.git"
NAME = "cpack-demo"
READY_SECONDS = 180
LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks this machine itself, whatever proxy the environment names for the world outside."""


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def main() -> int:
    """Run the demo; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", action="store_true", help="with the real ComfyUI (COMFYUI=PATH: a clone of it)")
    parser.add_argument("--engine", choices=["docker", "podman", "none"], help="run it there, and nowhere else")
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C")
    options = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        pack, flags = make_example(comfyui=options.comfyui)
        result = run_somewhere(pack, flags, engine=options.engine, keep=options.keep)
    except DemoError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    say(f"Done in {time.monotonic() - began:.0f} s. The picture that came back is {result}")
    return 0


# -- the pack ----------------------------------------------------------------------------------------------------------


def make_example(*, comfyui: bool) -> tuple[Path, list[str]]:
    """Make the pack, and the flags with which its parts are found."""
    step("Making an example pack")
    DEMO.mkdir(exist_ok=True)
    write_model(DEMO / MODEL)
    flags = ["--models", str(DEMO / "models")]
    nodes = {}
    if comfyui:
        commit, requirements, more = real_comfyui()
        requirements = on_the_processor(requirements)
        flags += more
        nodes = {NODES_URL: repository(ROOT / "examples/upscale/nodes", DEMO / "repositories/interface-nodes")}
        flags += ["--mirror", f"{NODES_URL}={DEMO / 'repositories/interface-nodes'}"]
    else:
        from tests.standin.repository import COMFYUI, make_repository

        fresh(DEMO / "repositories/ComfyUI")
        commit = make_repository(DEMO / "repositories/ComfyUI")
        requirements = requirements_of((COMFYUI / "requirements.txt").read_text())
        flags += ["--mirror", f"{COMFYUI_URL}={DEMO / 'repositories/ComfyUI'}"]
    for variable, flag in (
        ("FIND_LINKS", "--find-links"),
        ("INDEX_URL", "--index-url"),
        ("EXTRA_INDEX_URL", "--extra-index-url"),
    ):
        for value in os.environ.get(variable, "").split():
            flags += [flag, value]
    pack = DEMO / "upscale.cpack.zip"
    make_pack(pack, python=system_python(), commit=commit, requirements=requirements, model=DEMO / MODEL, nodes=nodes)
    (DEMO / "upscale.cpack.yaml").write_text("system: {defaults: none}  # its nodes need no video, no OpenCV, no git\n")
    (DEMO / "photo.png").write_bytes(picture(160, 120))
    say(f"{shown(pack)}: ComfyUI {commit[:12]}{'' if comfyui else ' (a stand-in)'}, {MODEL}")
    cpack_build("inspect", str(pack))
    return pack, flags


def real_comfyui() -> tuple[str, list[str], list[str]]:
    """Commit, requirements and flags of the real ComfyUI."""
    clone = os.environ.get("COMFYUI")
    if not clone:
        text = (ROOT / "examples/upscale/comfyui-requirements.txt").read_text()
        return COMFYUI_COMMIT, requirements_of(text), []
    path = Path(clone).expanduser().absolute()
    commit = output_of("git", "-C", str(path), "rev-parse", "HEAD")
    text = output_of("git", "-C", str(path), "show", "HEAD:requirements.txt")
    return commit, requirements_of(text), ["--mirror", f"{COMFYUI_URL}={path}"]


def on_the_processor(requirements: list[str]) -> list[str]:
    """Take PyTorch and torchvision without CUDA if ``FIND_LINKS`` has both (one alone does not load the other): a third
    of the bytes, and the demo needs no GPU. It does without sound then."""
    tag = "cp" + system_python().replace(".", "")
    pins: dict[str, list[str]] = {"torchaudio": []}
    for folder in os.environ.get("FIND_LINKS", "").split():
        for name in ("torch", "torchvision"):
            for wheel in sorted(Path(folder).glob(f"{name}-*+cpu-{tag}-*.whl")):
                pins[name] = [f"{name}=={wheel.name.split('-')[1]}"]
    if len(pins) < 3:
        return requirements
    return [pin for line in requirements for pin in pins.get(line, [line])]


def repository(source: Path, folder: Path) -> str:
    """A git repository of the files in *source*, with a commit that is the same each time."""
    fresh(folder)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in (
        ("NAME", "demo"), ("EMAIL", "demo@demo.example"), ("DATE", "2025-01-02T03:04:05+00:00"))}  # fmt: skip
    for arguments in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["-c", "commit.gpgsign=false", "commit", "-q", "-m", "Nodes"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, env=os.environ | who, check=True)
    return output_of("git", "-C", str(folder), "rev-parse", "HEAD")


def requirements_of(text: str) -> list[str]:
    """The lines of a requirements.txt that are requirements, and what ComfyUI 0.3.64 forgot to name (requests)."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return sorted({line for line in lines if line and not line.startswith("-")} | {"requests"})


def system_python() -> str:
    """The Python that this system's packages have, which is the one that the image takes."""
    for program in ("/usr/bin/python3", sys.executable):
        if Path(program).exists():
            return output_of(program, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    raise DemoError("there is no python3")


# -- the image ---------------------------------------------------------------------------------------------------------


def run_somewhere(pack: Path, flags: list[str], *, engine: str | None, keep: bool) -> Path:
    """Build and run the image in the first engine that can, else without one; the picture that came back."""
    (DEMO / "upscale.cpack.lock").unlink(missing_ok=True)
    for name in ("docker", "podman") if engine is None else (engine,):
        if name == "none" or not answers(name):
            if engine in ("docker", "podman"):
                raise DemoError(f"{name} does not answer.")
            continue
        build(pack, flags, output=f"{name}:{NAME}")
        try:
            with in_engine(name) as url:
                return ask(url, keep=keep)
        except DemoError as error:
            if engine is not None:
                raise
            say(f"{error}\n  {name} cannot run it; trying the next.")
    fresh(DEMO / "upscale.oci")
    build(pack, flags, output=f"oci:{DEMO / 'upscale.oci'}")
    with without_engine(DEMO / "upscale.oci") as url:
        return ask(url, keep=keep)


def build(pack: Path, flags: list[str], *, output: str) -> None:
    """Lock the pack if that has not been done, and build its image."""
    place = output.partition(":")[0]
    if (DEMO / "upscale.cpack.lock").exists():
        step(f"Building the image again, for {place}")
    else:
        step(f"Locking the pack and building the image, for {place}")
    cpack_build("image", str(pack), "-t", NAME, "--output", output, *flags)


def answers(engine: str) -> bool:
    """Whether the engine is here and answers."""
    program = shutil.which(engine)
    if program is None:
        return False
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run([program, "info"], capture_output=True, timeout=30, check=False).returncode == 0
    return False


@contextmanager
def in_engine(engine: str) -> Iterator[str]:
    """The image running in the engine; the service's URL."""
    step(f"Running it: {engine} run --rm -p 3000:3000 {NAME}")
    container = f"{NAME}-{os.getpid()}"
    done = subprocess.run(
        [engine, "run", "--detach", "--name", container, "-p", "127.0.0.1::3000", NAME],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        # An engine that cannot start a container keeps it all the same.
        subprocess.run([engine, "rm", "--force", "--volumes", container], capture_output=True, check=False)
        raise DemoError(f"{engine} run: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    try:
        port = output_of(engine, "port", container, "3000/tcp").splitlines()[0].rpartition(":")[2]

        def alive() -> bool:
            return output_of(engine, "inspect", "--format", "{{.State.Running}}", container) == "true"

        def words() -> str:
            logs = subprocess.run([engine, "logs", container], capture_output=True, text=True, check=False)
            return (logs.stdout + logs.stderr)[-3000:]

        yield wait_until_ready(f"http://127.0.0.1:{port}", alive, words)
    finally:
        subprocess.run([engine, "rm", "--force", "--volumes", container], capture_output=True, check=False)


@contextmanager
def without_engine(layout: Path) -> Iterator[str]:
    """The image running without an engine; the service's URL."""
    step("Unpacking the image, as there is no engine here to run it")
    root = DEMO / "root"
    if root.exists():
        engineless.remove(root)
    image = engineless.unpack(layout, root)
    try:
        prefix = engineless.find_prefix(image)
    except RuntimeError as error:
        raise DemoError(str(error)) from error
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    step(f"Running it: {prefix[0]} … {' '.join(image.config['config']['Entrypoint'])}")
    log = DEMO / "service.log"
    with log.open("wb") as file:
        process = image.start(prefix, image.config["config"]["Entrypoint"], output=file, PORT=str(port))
    try:
        yield wait_until_ready(
            f"http://127.0.0.1:{port}",
            lambda: process.poll() is None,
            lambda: log.read_text(errors="replace")[-3000:],
        )
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        engineless.remove(root)


def wait_until_ready(url: str, alive: Callable[[], bool], words: Callable[[], str]) -> str:
    """Wait until the service says that it is ready, for as long as it is *alive*; *words* are its latest."""
    began = time.monotonic()
    while time.monotonic() - began < READY_SECONDS:
        if not alive():
            raise DemoError(f"the service ended:\n{words()}")
        with suppress(OSError), LOOPBACK.open(f"{url}/readyz", timeout=5) as answer:
            if answer.status == 200:
                say(f"Ready after {time.monotonic() - began:.1f} s at {url}")
                return url
        time.sleep(0.1)
    raise DemoError(f"the service was not ready after {READY_SECONDS} s; its last words:\n{words()}")


def ask(url: str, *, keep: bool) -> Path:
    """Post the picture to /generate, and save what comes back."""
    step(f"Asking: curl -F photo=@{shown(DEMO / 'photo.png')} {url}/generate")
    photo = (DEMO / "photo.png").read_bytes()
    boundary = "cpack-demo-" + os.urandom(8).hex()
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="photo"; filename="photo.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    request = urllib.request.Request(
        f"{url}/generate",
        data=head.encode() + photo + f"\r\n--{boundary}--\r\n".encode(),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    began = time.monotonic()
    try:
        with LOOPBACK.open(request, timeout=600) as answer:
            data = answer.read()
    except urllib.error.HTTPError as error:
        raise DemoError(f"/generate answered {error.code}: {error.read().decode(errors='replace')[:2000]}") from error
    except OSError as error:
        raise DemoError(f"/generate did not answer: {error}") from error
    seconds = time.monotonic() - began
    try:
        before, after = png_size(photo), png_size(data)
    except ValueError as error:
        raise DemoError(f"/generate answered something else: {data[:500]!r}") from error
    if after != (4 * before[0], 4 * before[1]):
        raise DemoError(f"the picture should be four times as large, but is {after[0]} x {after[1]}")
    result = DEMO / "result.png"
    result.write_bytes(data)
    say(f"{before[0]} x {before[1]} went in, {after[0]} x {after[1]} came out, in {seconds:.2f} s")
    if keep:
        say(f"It goes on at {url} until Ctrl-C.")
        with suppress(KeyboardInterrupt):
            signal.pause()
    return result


# -- small things ------------------------------------------------------------------------------------------------------

_steps = 0


def step(text: str) -> None:
    """Begin a step of the demo."""
    global _steps
    _steps += 1
    print(f"\n{_steps}. {text}", flush=True)


def say(text: str) -> None:
    """One line of what happened."""
    print(f"  {text}", flush=True)


def shown(path: Path) -> str:
    """*path* as seen from where the demo was started."""
    return os.path.relpath(path)


def cpack_build(*arguments: str) -> None:
    """Run our own command as a user would, its progress on the screen."""
    verb = arguments[0]
    progress = [] if sys.stderr.isatty() or verb == "inspect" else ["--progress", "plain"]
    done = subprocess.run([sys.executable, "-m", "cpack_build", *arguments, *progress], cwd=ROOT, check=False)
    if done.returncode:
        raise DemoError(f"`cpack-build {verb}` ended with exit code {done.returncode} (docs/exit-codes.md)")


def output_of(*command: str) -> str:
    """What *command* writes to stdout."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"`{' '.join(command[:4])}` failed: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def fresh(folder: Path) -> None:
    """Make sure that *folder* is not there, and that its parent is."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
