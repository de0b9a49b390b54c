"""The job ``serve``: the workflow on the page as a service, with this ComfyUI as its engine, until it is stopped.

The service is the tool's own (``cpack-build serve``) in a process of its own. While it runs the job's result has its
address, how it is, and lines that call it; its health is asked for every second.
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from .errors import Failed, Refused
from .examples import examples
from .jobs import Job, Stage
from .packing import require_prompt
from .params import number, pick, secret

if TYPE_CHECKING:
    from .asked import Asked
    from .plugin import Plugin

__all__ = ["serve"]

Health = Literal["starting", "ready", "busy", "down"]
_EVERY = 1.0
_SECONDS = 5
_BUSY = re.compile(rb"^cpack_(?:running|queue_depth) ([0-9.]+)$", re.MULTILINE)


def serve(plugin: Plugin, asked: Asked, params: Mapping[str, Any]) -> Job:
    """Start the job."""
    prompt = require_prompt(asked)
    port = number(params, "port", default=3000, low=1, high=65535)
    listen = pick(params, "listen", "loopback", "network", default="loopback")
    token = secret(params, "token", longest=500)
    host = "127.0.0.1" if listen == "loopback" else "0.0.0.0"  # noqa: S104
    _require_free(host, port)

    def work(job: Job) -> dict[str, Any]:
        job.stage("serve")
        found = plugin.tool.require()
        read = job.tool(plugin.tool, "inspect", prompt)
        if read["interface"] is None:
            raise Failed("WorkflowError", str(read["problem"]))
        parameters = read["interface"]["inputs"]
        command = [
            found.path, "serve", str(plugin.comfyui.root), "--workflow", str(prompt),
            "--input-directory", str(plugin.comfyui.input), "--comfyui", plugin.comfyui.address,
            "--host", host, "--port", str(port),
        ]  # fmt: skip
        # what ComfyUI was started with is not meant for the service
        alone = {"COMFYUI_SERVER": "", "COMFYUI_DIR": "", "COMFYUI_PYTHON": "", "CPACK_TOKEN": token}
        process = job.start(command, environment=plugin.tool.environment(**alone), is_service=True)
        url = f"http://127.0.0.1:{port}"
        result = {
            "url": url, "port": port, "listen": listen, "health": "starting", "pid": process.pid,
            "network_url": _network_url(port) if listen == "network" else None,
            "examples": examples(url, parameters, inputs=plugin.comfyui.input, token=bool(token)),
        }  # fmt: skip
        job.tell(result)
        over = threading.Event()
        watch = threading.Thread(target=_watch, args=(job, over, result, token), name="cpack-health", daemon=True)
        watch.start()
        try:
            code, _ = process.run(job.write)
        finally:
            over.set()
            watch.join()
        job.check()
        raise Failed("service_ended", f"The service ended by itself (exit code {code}).", next="Its log says why.")

    title = f"Serve on port {port}"
    stages = [Stage("serve", "Serve the workflow")]
    return plugin.start(asked, "serve", title, stages, work, secrets=[token] if token else [])


def _require_free(host: str, port: int) -> None:
    """Raise :class:`Refused` (409) if another program listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Refused(
                "port_taken", f"Port {port} cannot be used: {(error.strerror or str(error)).lower()}.",
                next="Choose another port.", status=409,
            ) from None  # fmt: skip


def _watch(job: Job, over: threading.Event, result: Mapping[str, Any], token: str) -> None:
    """Keep the job's *result* up to date until *over*."""
    health: Health = "starting"
    while not over.wait(_EVERY):
        now = _health(result["port"], token, was=health)
        if now != health:
            health = now
            job.tell({**result, "health": health})


def _health(port: int, token: str, *, was: Health) -> Health:
    status, _ = _get(port, "/readyz", token)
    if status != 200:
        return "starting" if was == "starting" else "down"
    _, metrics = _get(port, "/metrics", token)
    return "busy" if any(float(count) for count in _BUSY.findall(metrics)) else "ready"


def _get(port: int, path: str, token: str) -> tuple[int, bytes]:
    """Status and body; status 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 20)
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _network_url(port: int) -> str | None:
    """Where others reach this machine; found without sending anything."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1: a datagram socket only chooses its own address
            return f"http://{probe.getsockname()[0]}:{port}"
    except OSError:
        return None
