"""A stand-in for ComfyUI: its command line, folders, protocol and a few nodes, without PyTorch.

Tests put this folder into a git repository, so that packs pin it by commit as they pin ComfyUI. What it answers and
how it fails is ComfyUI 0.3.64's; what it computes is small and the same everywhere.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import sys
import time

import comfyui_version
import folder_paths
from comfy.cli_args import args

logging.basicConfig(level=args.verbose, format="%(message)s", stream=sys.stdout if args.log_stdout else sys.stderr)


def apply_custom_paths() -> None:
    """Take the folders from the command line, as ComfyUI does."""
    for config in itertools.chain(*args.extra_model_paths_config):
        import yaml

        with open(config, encoding="utf-8") as file:
            sections = yaml.safe_load(file) or {}
        for section in sections.values():
            base = os.path.expanduser((section or {}).pop("base_path", "")) if section else ""
            section and section.pop("is_default", None)
            for name, listed in (section or {}).items():
                for path in filter(None, str(listed).split("\n")):
                    folder_paths.add_model_folder_path(name, os.path.join(os.path.dirname(config), base, path))
    if args.output_directory:
        logging.info("Setting output directory to: %s", args.output_directory)
        folder_paths.set_output_directory(os.path.abspath(args.output_directory))
    if args.input_directory:
        logging.info("Setting input directory to: %s", args.input_directory)
        folder_paths.set_input_directory(os.path.abspath(args.input_directory))
    if args.user_directory:
        logging.info("Setting user directory to: %s", args.user_directory)
        folder_paths.set_user_directory(os.path.abspath(args.user_directory))
    if args.temp_directory:
        folder_paths.set_temp_directory(os.path.join(os.path.abspath(args.temp_directory), "temp"))


def main() -> None:
    """Load the nodes and serve until ended."""
    logging.info("Python version: %s", sys.version)
    logging.info("ComfyUI version: %s", comfyui_version.__version__)
    apply_custom_paths()
    shutil.rmtree(folder_paths.get_temp_directory(), ignore_errors=True)
    time.sleep(args.standin_start_seconds)

    import nodes
    import server

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    instance = server.PromptServer(loop)
    nodes.init_extra_nodes()
    if args.quick_test_for_ci:
        return
    os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)
    try:
        loop.run_until_complete(instance.run(args.listen, args.port))
    except KeyboardInterrupt:
        logging.info("\nStopped server")
    shutil.rmtree(folder_paths.get_temp_directory(), ignore_errors=True)


if __name__ == "__main__":
    main()
