"""A stand-in for cpack-build: it does what its workflow asks for, so that a test can have it stall, fail or leak."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> int:
    if arguments[0] == "version":
        print(json.dumps({"version": "9.9.9"}))
        return 0
    if "FAKE_TOOL" in os.environ:
        return answer(arguments, Path(os.environ["FAKE_TOOL"]))
    workflow = json.loads(Path(arguments[arguments.index("--workflow") + 1]).read_text())
    asked = workflow["1"]["inputs"]
    for line in asked.get("says", []):
        print(line, file=sys.stderr, flush=True)
    if asked.get("deaf"):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if "sleeps" in asked:
        Path(asked["pids"]).write_text(f"{os.getpid()} {subprocess.Popen(['sleep', '600']).pid}")
        try:
            time.sleep(asked["sleeps"])
        except KeyboardInterrupt:
            Path(asked["pids"]).with_name("unwound").touch()
            return 130
    print(asked.get("prints", json.dumps({"pack": "x.cpack.zip"})))
    return asked.get("code", 0)


def unlike_the_lock(arguments: list[str], folder: Path) -> str | None:
    """What the tool would refuse: settings that are not those of the lock, a flag that ``plan`` does not have."""
    settings = {
        name: arguments[arguments.index(name) + 1]
        for name in ("--target", "--base", "--index-url")
        if name in arguments
    }
    if arguments[0] == "lock":
        (folder / "locked").write_text(json.dumps(settings))
    elif arguments[0] in ("plan", "image") and json.loads((folder / "locked").read_text()) != settings:
        return "StaleLock"
    return "UsageError" if arguments[0] == "plan" and {"--offline", "--retries"} & {*arguments} else None


def answer(arguments: list[str], folder: Path) -> int:
    """What *folder* has for the verb; the words, and what the environment told, are added to its list of calls."""
    with (folder / "calls").open("a") as calls:
        calls.write(json.dumps([arguments, os.environ.get("BENTO_CLOUD_API_KEY")]) + "\n")
    for name in ("--output", "--dir"):
        if name in arguments and arguments[0] in ("deploy", "restore"):
            made = Path(arguments[arguments.index(name) + 1])
            made.mkdir()
            (made / "made.txt").write_text("made")
    if (wrong := unlike_the_lock(arguments, folder)) is not None:
        print(json.dumps({"error": {"type": wrong, "message": " ".join(arguments), "hint": "", "exit_code": 2}}))
        return 2
    verb = "dry" if "--dry-run" in arguments else arguments[0]
    print((folder / f"{verb}.json").read_text())
    print(f"token {os.environ.get('BENTO_CLOUD_API_KEY')} of {arguments[0]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
