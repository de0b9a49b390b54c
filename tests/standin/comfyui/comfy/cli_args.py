"""The command line: ComfyUI's options that change what is done here, and the others, which are taken and left alone."""

from __future__ import annotations

import argparse
from pathlib import Path


def is_valid_directory(path: str) -> str:
    """*path* if it is a folder; ComfyUI refuses to start with another."""
    if not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"The path '{path}' does not exist.")
    return path


parser = argparse.ArgumentParser()
parser.add_argument("--listen", type=str, default="127.0.0.1", nargs="?", const="0.0.0.0")
parser.add_argument("--port", type=int, default=8188)
parser.add_argument("--max-upload-size", type=float, default=100)
parser.add_argument("--base-directory", type=str, default=None)
parser.add_argument("--extra-model-paths-config", type=str, default=[], nargs="+", action="append")
parser.add_argument("--output-directory", type=str, default=None)
parser.add_argument("--temp-directory", type=str, default=None)
parser.add_argument("--input-directory", type=str, default=None)
parser.add_argument("--user-directory", type=is_valid_directory, default=None)
parser.add_argument("--database-url", type=str, default=None)
parser.add_argument("--auto-launch", action="store_true")
parser.add_argument("--disable-auto-launch", action="store_true")
memory = parser.add_mutually_exclusive_group()
for option in ("--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram", "--cpu"):
    memory.add_argument(option, action="store_true")
parser.add_argument("--cuda-device", type=int, default=None)
parser.add_argument("--preview-method", type=str, default="none")
parser.add_argument("--deterministic", action="store_true")
parser.add_argument("--disable-metadata", action="store_true")
parser.add_argument("--disable-all-custom-nodes", action="store_true")
parser.add_argument("--whitelist-custom-nodes", type=str, nargs="+", default=[])
parser.add_argument("--disable-api-nodes", action="store_true")
parser.add_argument("--dont-print-server", action="store_true")
parser.add_argument("--quick-test-for-ci", action="store_true")
parser.add_argument("--verbose", default="INFO", const="DEBUG", nargs="?")
parser.add_argument("--log-stdout", action="store_true")
parser.add_argument("--multi-user", action="store_true")
parser.add_argument("--front-end-version", type=str, default=None)
parser.add_argument("--front-end-root", type=str, default=None)
# The stand-in's own: ComfyUI has no such option, and nothing but a test gives it.
parser.add_argument("--standin-start-seconds", type=float, default=0.0)

args = parser.parse_args()
