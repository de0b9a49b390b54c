"""BentoCloud's REST API, as BentoML's client uses it (``bentoml/_internal/cloud/client.py``, the schemas beside it): a
server on loopback with repositories, uploads by each of the three ways, deployments, secrets, and the pods' WebSocket.

What it is given is checked: the token at each request and its absence in the bucket, tars that are whole, parts that
are complete and have their own ETag. A test makes it fail by :attr:`Cloud.faults`.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import WSMsgType, web

TOKEN = "cloud-token-of-the-test"
SIGNATURE = "signature-of-the-test"
_TIME = "2026-11-23T10:00:00Z"
_USER = {"name": "tester", "email": "tester@mail.example", "first_name": "", "last_name": ""}


@dataclass
class Fault:
    """An answer in place of the usual, *times* times, to requests whose ``METHOD path`` has *pattern*."""

    pattern: str
    status: int = 500
    body: str = "{}"
    times: int = 1
    cut: bool = False
    """Read some of the body, then break the connection."""


@dataclass
class Cloud:
    """What the server holds, and how it behaves."""

    url: str = ""
    transmission: Literal["proxy", "presigned", "multipart"] = "proxy"
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """``METHOD path`` of each request, the bucket's included."""
    bodies: list[tuple[str, Any]] = field(default_factory=list)
    repositories: set[str] = field(default_factory=set)
    """``bento/NAME`` and ``model/NAME``."""
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    """``bento/NAME/VERSION`` → the document."""
    contents: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """Upload id → part number → bytes."""
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    statuses: list[str] = field(default_factory=lambda: ["deploying", "running"])
    """What a deployment is at each look; the last one stays."""
    pods: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What a client must not do, and did."""

    def count(self, pattern: str) -> int:
        """How many requests match *pattern*."""
        return sum(re.search(pattern, request) is not None for request in self.requests)


def pod(name: str, status: str, reason: str, *, ready: bool = False) -> dict[str, Any]:
    """A pod as the WebSocket tells it."""
    return {
        "name": name,
        "namespace": "yatai",
        "labels": {},
        "pod_status": {"status": status, "reason": reason},
        "status": {"phase": "Pending", "ready": ready},
        "runner_name": "main",
    }


@contextmanager
def running_cloud(**options: Any) -> Iterator[Cloud]:
    """The server, for as long as the context lasts."""
    cloud = Cloud(**options)
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stop: list[asyncio.Event] = []

    async def serve() -> None:
        runner = web.AppRunner(_application(cloud))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        cloud.url = f"http://127.0.0.1:{port}"
        stop.append(asyncio.Event())
        started.set()
        await stop[0].wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield cloud
    finally:
        loop.call_soon_threadsafe(stop[0].set)
        thread.join(30)
        loop.close()
    assert cloud.problems == []


def _application(cloud: Cloud) -> web.Application:
    api = _Api(cloud)
    app = web.Application(middlewares=[api.guard], client_max_size=8 << 30)
    app.router.add_get("/api/v1/auth/current", api.user)
    app.router.add_get("/api/v1/current_org", api.organization)
    for kind in ("bento", "model"):
        place = f"/api/v1/{{kind:{kind}}}_repositories"
        one = f"{place}/{{name}}/{kind}s/{{version}}"
        app.router.add_post(place, api.create_repository)
        app.router.add_get(f"{place}/{{name}}", api.repository)
        app.router.add_get(f"{place}/{{name}}/{kind}s", api.listed)
        app.router.add_post(f"{place}/{{name}}/{kind}s", api.create_item)
        app.router.add_get(one, api.item)
        app.router.add_patch(one, api.update_item)
        app.router.add_patch(f"{one}/presign_upload_url", api.presign)
        app.router.add_patch(f"{one}/presign_download_url", api.item)
        app.router.add_patch(f"{one}/start_upload", api.start)
        app.router.add_patch(f"{one}/finish_upload", api.finish)
        app.router.add_put(f"{one}/upload", api.upload)
        app.router.add_get(f"{one}/download", api.download)
        app.router.add_patch(f"{one}/start_multipart_upload", api.start_parts)
        app.router.add_patch(f"{one}/presign_multipart_upload_url", api.presign_part)
        app.router.add_patch(f"{one}/complete_multipart_upload", api.complete)
    app.router.add_put("/bucket/{kind}/{name}/{version}", api.put)
    app.router.add_put("/bucket/{kind}/{name}/{version}/{part}", api.put_part)
    app.router.add_post("/api/v2/deployments", api.create_deployment)
    app.router.add_get("/api/v2/deployments/{name}", api.deployment)
    app.router.add_put("/api/v2/deployments/{name}", api.update_deployment)
    app.router.add_get("/api/v1/org_secrets/{name}", api.secret)
    app.router.add_get("/ws/v2/deployments/{name}/pods", api.tell_pods)
    return app


class _Api:
    """The handlers."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Write the request down, fail as told, and see that the token is where it belongs."""
        line = f"{request.method} {request.path}"
        self.cloud.requests.append(line)
        for fault in self.cloud.faults:
            if fault.times and re.search(fault.pattern, line):
                fault.times -= 1
                if fault.cut:
                    await request.content.read(1000)
                    assert request.transport is not None
                    request.transport.abort()
                    return web.Response()
                return web.Response(status=fault.status, text=fault.body)
        token = request.headers.get("X-YATAI-API-TOKEN")
        if request.path.startswith("/bucket/"):
            if token is not None:
                self.cloud.problems.append(f"the token was sent to the bucket: {line}")
            if request.query.get("X-Amz-Signature") != SIGNATURE:
                return web.Response(status=403, text="SignatureDoesNotMatch")
        elif token != TOKEN:
            return web.json_response({"error": "unauthorized: the token is not known"}, status=401)
        return await handler(request)  # type: ignore[no-any-return]

    async def user(self, request: web.Request) -> web.Response:
        return web.json_response(_USER)

    async def organization(self, request: web.Request) -> web.Response:
        return web.json_response({**_resource("team", "organization"), "description": ""})

    # -- repositories and what is in them

    async def repository(self, request: web.Request) -> web.Response:
        kind, name = request.match_info["kind"], request.match_info["name"]
        if f"{kind}/{name}" not in self.cloud.repositories:
            return _not_found()
        return web.json_response(_repository(kind, name))

    async def create_repository(self, request: web.Request) -> web.Response:
        kind, name = request.match_info["kind"], (await self._body(request))["name"]
        if f"{kind}/{name}" in self.cloud.repositories:
            return web.json_response({"error": f"repository {name} already exists"}, status=409)
        self.cloud.repositories.add(f"{kind}/{name}")
        return web.json_response(_repository(kind, name))

    async def listed(self, request: web.Request) -> web.Response:
        place = f"{request.match_info['kind']}/{request.match_info['name']}/"
        items = [item for key, item in self.cloud.items.items() if key.startswith(place)]
        return web.json_response({"start": 0, "count": len(items), "total": len(items), "items": items})

    async def create_item(self, request: web.Request) -> web.Response:
        kind, name = request.match_info["kind"], request.match_info["name"]
        body = await self._body(request)
        key = f"{kind}/{name}/{body['version']}"
        if f"{kind}/{name}" not in self.cloud.repositories:
            return _not_found()
        if key in self.cloud.items:
            return web.json_response({"error": "the version already exists"}, status=409)
        strategy = "proxy" if self.cloud.transmission == "proxy" else None
        if self.cloud.transmission == "multipart":
            strategy = "presigned_url"
        self.cloud.items[key] = {
            **_resource(body["version"], kind),
            "description": body["description"],
            "version": body["version"],
            "image_build_status": "pending",
            "upload_status": "pending",
            "upload_finished_reason": "",
            "presigned_upload_url": "",
            "presigned_download_url": "",
            "manifest": body["manifest"],
            "transmission_strategy": strategy,
            "upload_id": None,
            "build_at": _TIME,
        }
        return web.json_response(self.cloud.items[key])

    async def item(self, request: web.Request) -> web.Response:
        return web.json_response(found) if (found := self.cloud.items.get(_key(request))) else _not_found()

    async def update_item(self, request: web.Request) -> web.Response:
        self.cloud.items[_key(request)]["manifest"] = (await self._body(request))["manifest"]
        return web.json_response(self.cloud.items[_key(request)])

    # -- uploads

    async def start(self, request: web.Request) -> web.Response:
        self.cloud.items[_key(request)]["upload_status"] = "uploading"
        return web.json_response(self.cloud.items[_key(request)])

    async def upload(self, request: web.Request) -> web.Response:
        self.cloud.contents[_key(request)] = await request.read()
        self._settle(_key(request), "success", "")
        return web.json_response({})

    async def presign(self, request: web.Request) -> web.Response:
        url = f"{self.cloud.url}/bucket/{_key(request)}?X-Amz-Signature={SIGNATURE}"
        return web.json_response({**self.cloud.items[_key(request)], "presigned_upload_url": url})

    async def put(self, request: web.Request) -> web.Response:
        self.cloud.contents[_key(request)] = await request.read()
        return web.Response(headers={"ETag": '"whole"'})

    async def start_parts(self, request: web.Request) -> web.Response:
        upload = f"upload-{len(self.cloud.uploads)}"
        self.cloud.uploads[upload] = {}
        return web.json_response({**self.cloud.items[_key(request)], "upload_id": upload})

    async def presign_part(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        part = f"{body['upload_id']}.{body['part_number']}"
        url = f"{self.cloud.url}/bucket/{_key(request)}/{part}?X-Amz-Signature={SIGNATURE}"
        return web.json_response({**self.cloud.items[_key(request)], "presigned_upload_url": url})

    async def put_part(self, request: web.Request) -> web.Response:
        upload, _, number = request.match_info["part"].rpartition(".")
        data = await request.read()
        self.cloud.uploads[upload][int(number)] = data
        return web.Response(headers={"ETag": _etag(data)})

    async def complete(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        parts = self.cloud.uploads[body["upload_id"]]
        named = {part["part_number"]: part["etag"] for part in body["parts"]}
        if named != {number: _etag(data) for number, data in parts.items()} or sorted(named) != list(
            range(1, len(named) + 1)
        ):
            return web.Response(status=400, text="InvalidPart")
        self.cloud.contents[_key(request)] = b"".join(parts[number] for number in sorted(parts))
        return web.json_response(self.cloud.items[_key(request)])

    async def finish(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        self._settle(_key(request), body["status"], body["reason"])
        return web.json_response(self.cloud.items[_key(request)])

    async def download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.cloud.contents[_key(request)])

    def _settle(self, key: str, status: str, reason: str) -> None:
        """An upload is over; a good one is a whole tar with what makes a Bento or a model one."""
        item = self.cloud.items[key]
        item["upload_status"], item["upload_finished_reason"] = status, reason
        if status == "success":
            with tarfile.open(fileobj=io.BytesIO(self.cloud.contents[key])) as archive:
                names = set(archive.getnames())
            wanted = "./bento.yaml" if key.startswith("bento/") else "./model.yaml"
            if wanted not in names:
                self.cloud.problems.append(f"{key} has no {wanted}")

    # -- deployments and secrets

    async def create_deployment(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        name = body.get("name") or "made-up-name"
        if name in self.cloud.deployments:
            return web.json_response({"error": f"deployment {name} already exists"}, status=409)
        return self._deploy(name, body)

    async def update_deployment(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return self._deploy(name, await self._body(request)) if name in self.cloud.deployments else _not_found()

    def _deploy(self, name: str, body: dict[str, Any]) -> web.Response:
        repository, _, version = body["bento"].partition(":")
        item = self.cloud.items.get(f"bento/{repository}/{version}")
        if item is None or item["upload_status"] != "success":
            return web.json_response({"error": f"bento {body['bento']} is not uploaded"}, status=400)
        config = {key: body.get(key) for key in ("access_authorization", "envs", "secrets", "services")}
        config["access_authorization"] = bool(config["access_authorization"])
        target = {
            **_resource("main", "deployment_revision"),
            "creator": _USER,
            "config": config,
            "bento": {**item, "name": version, "repository": _repository("bento", repository)},
        }
        self.cloud.deployments[name] = {
            **_resource(name, "deployment"),
            "status": self.cloud.statuses[0],
            "kube_namespace": "yatai",
            "creator": _USER,
            "cluster": {
                **_resource("default", "cluster"),
                "description": "",
                "organization_name": "team",
                "creator": _USER,
                "is_first": True,
            },
            "latest_revision": {
                **_resource("1", "deployment_revision"),
                "creator": _USER,
                "status": "active",
                "targets": [target],
            },
            "manifest": {"dev": False, "routing": None},
            "urls": [f"https://{name}.cloud.example"],
        }
        return web.json_response(self.cloud.deployments[name])

    async def deployment(self, request: web.Request) -> web.Response:
        found = self.cloud.deployments.get(request.match_info["name"])
        if found is None:
            return web.json_response({"error": "deployment not found"}, status=404)
        found["status"] = self.cloud.statuses[0]
        if len(self.cloud.statuses) > 1:
            self.cloud.statuses.pop(0)
        return web.json_response(found)

    async def secret(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.cloud.secrets:
            return web.json_response({"error": "record not found"}, status=404)
        cluster = {**_resource("default", "cluster"), "description": "", "organization_name": "team", "creator": _USER}
        items = [{"key": key, "value": value} for key, value in self.cloud.secrets[name].items()]
        content = {"type": "env", "items": items}
        document = {"description": "", "creator": _USER, "content": content, "cluster": cluster}
        return web.json_response({**_resource(name, "secret"), **document})

    async def tell_pods(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"type": "success", "message": "", "payload": self.cloud.pods})
        async for message in socket:
            if message.type in (WSMsgType.CLOSE, WSMsgType.ERROR):
                break
        return socket

    async def _body(self, request: web.Request) -> Any:
        body = json.loads(await request.read())
        self.cloud.bodies.append((f"{request.method} {request.path}", body))
        return body


def _key(request: web.Request) -> str:
    match = request.match_info
    return f"{match['kind']}/{match['name']}/{match['version']}"


def _etag(data: bytes) -> str:
    return '"' + hashlib.md5(data, usedforsecurity=False).hexdigest() + '"'


def _not_found() -> web.Response:
    return web.json_response({"error": "record not found"}, status=404)


def _resource(name: str, kind: str) -> dict[str, Any]:
    return {
        "uid": f"uid-of-{name}",
        "created_at": _TIME,
        "updated_at": _TIME,
        "deleted_at": None,
        "name": name,
        "resource_type": kind,
        "labels": [],
    }


def _repository(kind: str, name: str) -> dict[str, Any]:
    return {**_resource(name, f"{kind}_repository"), "description": "", f"latest_{kind}": None}
