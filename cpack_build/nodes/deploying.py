"""The job ``deploy``: to BentoCloud, or as files for Kubernetes or Compose to download.

A token comes once and stays in this process's memory; it reaches the tool by its environment, and no job, log, error or
file ever has it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Refused
from .jobs import Job, Stage
from .packing import PACKING, make_pack, require_prompt
from .params import flag, pick, secret, text, write_choice

if TYPE_CHECKING:
    from .asked import Asked
    from .plugin import Plugin

__all__ = ["deploy"]

_NAME = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
_IMAGE = r"[A-Za-z0-9][\w.:/@-]{0,400}"
_ENDPOINT = r"(https://[\w.-]+(:\d{1,5})?|http://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?)/?"
_APPLY = {"kubernetes": "kubectl apply -k {name}", "compose": "docker compose --project-directory {name} up"}


def deploy(plugin: Plugin, asked: Asked, params: Mapping[str, Any]) -> Job:
    """Start the job."""
    where = pick(params, "where", "bentocloud", "kubernetes", "compose")
    name = text(params, "name", pattern=_NAME)
    return _to_bentocloud(plugin, asked, params, name) if where == "bentocloud" else _files(plugin, asked, params, name)


def _to_bentocloud(plugin: Plugin, asked: Asked, params: Mapping[str, Any], name: str) -> Job:
    endpoint = text(params, "endpoint", pattern=_ENDPOINT)
    if given := secret(params, "token", longest=4000):
        plugin.keep_token(endpoint, given)
    token = plugin.token_for(endpoint)
    if token is None:
        raise Refused("no_token", f"No API token for {endpoint} is known.", next="Enter it; it is not written down.")
    trust = ["--trust"] if flag(params, "trust") else []
    prompt, flags, local = require_prompt(asked), write_choice(params, asked.folder), flag(params, "include_local")

    def work(job: Job) -> dict[str, Any]:
        job.stage("pack")
        told = make_pack(plugin, job, asked, prompt, name, flags, include_local=local)
        job.stage("deploy")
        done = job.tool(
            plugin.tool, "deploy", "bentocloud", told["pack"], "--name", name, "--endpoint", endpoint, "--wait",
            *trust, *plugin.build_flags, environment={"BENTO_CLOUD_API_KEY": token},
        )  # fmt: skip
        url = next(iter(done["urls"]), None) or done["console"]
        return {"name": done["deployment"], "url": url, "status": done["status"], "console": done["console"]}

    stages = [Stage(*PACKING), Stage("deploy", "Deploy to BentoCloud")]
    return plugin.start(asked, "deploy", f"Deploy {name}", stages, work, secrets=[token])


def _files(plugin: Plugin, asked: Asked, params: Mapping[str, Any], name: str) -> Job:
    where = str(params["where"])
    image = text(params, "image", pattern=_IMAGE)

    def work(job: Job) -> dict[str, Any]:
        job.stage("write")
        folder = job.folder / "files" / name
        folder.parent.mkdir(mode=0o700)
        done = job.tool(plugin.tool, "deploy", where, image, "--output", folder, "--name", name)
        job.stage("zip")
        job.file = Path(shutil.make_archive(str(job.folder / name), "zip", folder.parent, name))
        return {
            "name": job.file.name,
            "size": job.file.stat().st_size,
            "download": True,
            "apply": _APPLY[where].format(name=name),
            "notes": done.get("notes", []),
        }

    stages = [Stage("write", "Write the files"), Stage("zip", "Put them into a zip")]
    return plugin.start(asked, "deploy", f"Files of {name}", stages, work)
