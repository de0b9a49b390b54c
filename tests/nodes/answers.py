"""What the plugin's routes answer, without the work behind them: for tests of how dialogs look, and of what is rare.

The paths of a real one from open to result are in ``test_dialogs_for_real.py``.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Page, Route

HOSTILE = "<img src=x onerror=document.title='broken'>.safetensors"
"""A model's name that would run, were it ever taken for markup."""

_SIZES = {"sd_xl_base_1.0.safetensors": 6_938_078_334, "sdxl_vae.safetensors": 334_641_164}
_MODELS = [
    ("checkpoints", "sd_xl_base_1.0.safetensors", True, True),
    ("checkpoints", "dreamshaper_8.safetensors", False, True),
    ("upscale_models", "tiny_esrgan_4x.safetensors", True, False),
    ("vae", "sdxl_vae.safetensors", False, False),
    ("loras", HOSTILE, False, False),
    *[("loras", f"watercolour_{number:02}.safetensors", False, False) for number in range(60)],
]
_INPUTS = [("example.png", True), ("e.png", False), ("faces/anna.png", False), ("faces/old/ben.jpg", False)]

INVENTORY = {
    "models": [
        {
            "path": f"{folder}/{name}",
            "folder": folder,
            "size": _SIZES.get(name, 912_345),
            "referenced": referenced,
            "recent": recent,
            "node_ids": ["1"] if referenced else [],
        }
        for folder, name, referenced, recent in _MODELS
    ],
    "inputs": [{"path": path, "size": 58_111, "referenced": referenced} for path, referenced in _INPUTS],
    "packages": [
        {"name": "torch", "version": "2.13.0+cpu"},
        {"name": "my-own-thing", "version": "0.1", "source": "file:///srv/my-own-thing"},
        *[{"name": f"package-{number}", "version": "1.0"} for number in range(80)],
    ],
    "nodes": [
        {"name": "comfyui-impact-pack", "kind": "registry", "version": "8.1.2", "used": False},
        {"name": "cpack-build", "kind": "git", "commit": "d628263a" * 5, "dirty": True, "local": True, "used": True},
        {"name": "my_nodes.py", "kind": "file", "local": True, "used": False},
    ],
    "system": ["ffmpeg", "git", "libgl1"],
}

CHECK = {
    "findings": [
        {
            "level": "note",
            "code": "unknown_source",
            "message": "tiny_esrgan_4x.safetensors has no known source.",
            "next": "Whoever builds the image needs the file.",
        },
        {
            "level": "error",
            "code": "missing_model",
            "message": "The model bad.ckpt is not in this ComfyUI.",
            "next": "Choose another one in the node.",
            "node_id": "2",
        },
        {"level": "warning", "code": "local_package", "message": "my-own-thing was installed from a folder."},
    ],
    "parameters": [
        {"name": "photo", "type": "image", "required": True, "description": "The picture to enlarge", "node_id": "1"}
    ],
    "outputs": [{"name": "result", "type": "image", "node_id": "2"}],
}

_LAYERS = [
    ("debs", "Debian 12, 114 packages", 188e6, True),
    ("interpreter", "Python 3.11.9", 48e6, True),
    ("service", "service environment", 62e6, True),
    ("wheel", "torch 2.13.0+cpu", 712e6, True),
    ("model", "sd_xl_base_1.0.safetensors", 6_938_078_334, True),
    ("model", "tiny_esrgan_4x.safetensors", 912_345, False),
    ("wheels", "84 packages", 310e6, False),
    ("comfyui", "ComfyUI 0.3.64", 22e6, False),
    ("nodes", "2 custom nodes", 1.2e6, False),
    ("config", "links and settings", 4e3, False),
]

RESULTS: dict[str, dict[str, Any]] = {
    "pack": {"name": "upscale.cpack.zip", "size": 123_456, "download": True, "notes": []},
    "plan": {
        "layers": [
            {
                "kind": kind,
                "name": name,
                "size": size,
                "known": known,
                "shared_with": ["every image with this layer"] if known else [],
            }
            for kind, name, size, known in _LAYERS
        ]
    },
    "image": {
        "digest": f"sha256:{'ab' * 32}",
        "reference": "upscale:latest",
        "run": "docker run --rm -p 3000:3000 upscale:latest",
    },
    "deploy": {"name": "upscale-kubernetes.zip", "download": True, "apply": "kubectl apply -f upscale/"},
    "unpack": {"folder": "/srv/upscale", "command": "cd /srv/upscale && .venv/bin/python main.py"},
    "inspect": {
        "comfyui": {"version": "0.3.64", "same": False},
        "python": "3.11",
        "models": [
            {"name": "lost.safetensors", "folder": "checkpoints", "size": 6_938_078_334, "here": False, "source": None},
            {"name": "tiny_esrgan_4x.safetensors", "folder": "upscale_models", "size": 912_345, "here": True},
        ],
        "nodes": [{"name": "comfy-pack", "kind": "git", "commit": "aabbccddeeff", "here": False}],
        "inputs": ["example.png"],
        "packages": ["torch", "numpy"],
    },
}

SERVING = {
    "url": "http://127.0.0.1:3000",
    "port": 3000,
    "listen": "loopback",
    "health": "ready",
    "pid": 4711,
    "examples": {
        "curl": "curl -F photo=@picture.png http://127.0.0.1:3000/generate -o result.png",
        "python": "import requests\n\nprint(requests.post('http://127.0.0.1:3000/generate'))",
        "javascript": "await fetch('http://127.0.0.1:3000/generate', {method: 'POST'})",
    },
}


@dataclass
class Answers:
    """Answers for the routes on *page*; jobs are at work until a test ends them. *asked*: for which jobs."""

    page: Page
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    """Other answers than the usual ones, by path."""

    def __post_init__(self) -> None:
        self.page.route(lambda url: "/cpack/" in url and "/extensions/" not in url, self._answer)

    def _answer(self, route: Route) -> None:
        path = route.request.url.split("/cpack", 1)[1].partition("?")[0]
        status, document = self._document(path, route)
        if isinstance(document, str):
            route.fulfill(status=status, content_type="text/plain", body=document)
        else:
            route.fulfill(status=status, json=document)

    def _document(self, path: str, route: Route) -> tuple[int, Any]:
        if path in self.told:
            return 409, {"error": self.told[path]}
        posted = route.request.method == "POST"
        if path == "/jobs" and posted:
            asked = json.loads(route.request.post_data or "")
            self.asked.append(asked)
            return 202, {"job": self.begin(asked["kind"])}
        if path.startswith("/jobs/"):
            job = self.jobs.get(path.split("/")[2])
            if job is None:  # of the page's last test
                return 404, {"error": {"code": "no_job", "message": "No job.", "next": ""}}
            if path.endswith("/cancel"):
                job["state"] = "cancelled"
            return 200, "reading\nhashing\n" if path.endswith("/log") else {"job": job}
        return 200, {
            "/status": {"tool": {"found": True, "looking": False}, "token_known": False, "folder": "ComfyUI"},
            "/inventory": INVENTORY,
            "/check": CHECK,
            "/jobs": {"jobs": list(self.jobs.values())},
            "/uploads": {"upload": "1", "name": "upscale.cpack.zip", "size": 1234},
            "/serve/log": "listening\n",
        }[path]

    def begin(self, kind: str, **more: Any) -> dict[str, Any]:
        """A new job, half done."""
        job = {
            "id": f"{kind}{len(self.jobs)}", "kind": kind, "title": f"{kind} upscale", "state": "running",
            "started": time.time() + len(self.jobs), "ended": None, "result": None, "error": None,
            "progress": {"label": "sd_xl_base_1.0.safetensors", "done": 3_100_000_000, "total": 6_938_078_334,
                         "unit": "bytes", "rate": 910e6},
            "stages": [{"code": "look", "label": "Look around", "state": "done"},
                       {"code": "pack", "label": "Pack", "state": "running"},
                       {"code": "save", "label": "Save", "state": "queued"}],
            "log_tail": ["hashing"],
        }  # fmt: skip
        job |= more
        self.jobs[str(job["id"])] = job
        return job

    def push(self, **change: Any) -> None:
        """Let the newest job change, and the page hear of it as by the WebSocket."""
        job = list(self.jobs.values())[-1]
        job |= change
        progress = {key: value for key, value in (job["progress"] or {}).items() if key != "label"}
        news = {"id": job["id"], "kind": job["kind"], "state": job["state"], "progress": progress or None}
        self.page.evaluate("news => app.api.dispatchEvent(new CustomEvent('cpack.job', {detail: news}))", news)

    def finish(self) -> None:
        """Let the newest job end well."""
        job = list(self.jobs.values())[-1]
        self.push(state="done", ended=time.time(), progress=None, result=RESULTS[job["kind"]])
