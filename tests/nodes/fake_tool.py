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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
