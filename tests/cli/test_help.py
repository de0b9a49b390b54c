"""Help answers without importing what is heavy, and says for every verb what it does, an example and the exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest

from cpack_build.cli import VERBS, cli
from tests.cli.calling import Caller

HEAVY = (
    "pydantic",
    "rich",
    "yaml",
    "requests",
    "packaging",
    "zstandard",
    "debian",
    "docker",
    "bentoml",
    "uv",
    "asyncio",
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["--version"], ["version"], ["lock", "--help"], ["image", "-h"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from cpack_build.cli import run; code = run(sys.argv[1:]);"
        "print(code, *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0"
    assert "click" in modules
    assert not set(HEAVY) & set(modules)


def test_the_list_of_verbs_imports_no_verb() -> None:
    program = (
        "import sys; from cpack_build.cli import run; run(['--help']);"
        "print(*(name for name in sys.modules if name.startswith('cpack_build')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["cpack_build", "cpack_build.cli"]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_an_example(call: Caller, verb: str) -> None:
    done = call(verb, "--help")
    assert done.code == 0
    assert f"Usage: cpack-build {verb}" in done.out
    assert f"Example: cpack-build {verb}" in " ".join(done.out.split())
    assert done.err == ""


def test_the_table_of_verbs_is_true() -> None:
    context = click.Context(cli)
    for verb, (_, line) in VERBS.items():
        command = cli.get_command(context, verb)
        assert command is not None
        assert command.name == verb
        assert line.endswith(".")
        assert len(line) <= 78


def test_an_unknown_verb_names_the_nearest(call: Caller) -> None:
    done = call("inspct", "x")
    assert done.code == 2
    assert "There is no verb 'inspct'. Did you mean 'inspect'?" in done.err
    assert "cpack-build --help" in done.err


def test_no_verb_at_all_gives_the_help(call: Caller) -> None:
    done = call()
    assert done.code == 2
    assert done.err.startswith("Usage: cpack-build")
    assert "Error" not in done.err


def test_completion_knows_the_verbs() -> None:
    environment = {"_CPACK_BUILD_COMPLETE": "bash_complete", "COMP_WORDS": "cpack-build in", "COMP_CWORD": "1"}
    program = "import sys; from cpack_build.cli import main; sys.argv = ['cpack-build']; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    assert done.stdout.split() == ["plain,init", "plain,inspect"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_line_for_each_shell(call: Caller, shell: str) -> None:
    assert f"_CPACK_BUILD_COMPLETE={shell}_source cpack-build" in call("completion", shell).out


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cpack_build", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("cpack-build ")
