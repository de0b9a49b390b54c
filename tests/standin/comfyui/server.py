"""ComfyUI's HTTP and WebSocket protocol, every route also under ``/api``."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import mimetypes
import os
import struct
import sys
import threading
import uuid
from typing import Any

import comfy.model_management as model_management
import comfy.utils
import comfyui_version
import execution
import folder_paths
import frontend
import nodes
from aiohttp import WSMsgType, web
from comfy.cli_args import args
from PIL import Image

PREVIEW_IMAGE = 1  # ComfyUI's BinaryEventTypes


class PromptServer:
    """The server; custom nodes find it as ``PromptServer.instance``."""

    instance: PromptServer

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        PromptServer.instance = self
        self.loop = loop
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.messages: asyncio.Queue[tuple[Any, Any, str | None]] = asyncio.Queue()
        self.prompt_queue = execution.PromptQueue(self.queue_updated)
        self.executor = execution.PromptExecutor(self.send_sync)
        self.number = 0
        self.prompt_id: str | None = None
        self.app = web.Application(client_max_size=round(args.max_upload_size * 1024 * 1024))
        self.routes = web.RouteTableDef()
        comfy.utils.set_progress_bar_global_hook(self.progress)
        for method, path, function in (
            ("GET", "/ws", self.websocket),
            ("GET", "/prompt", self.get_prompt),
            ("POST", "/prompt", self.post_prompt),
            ("GET", "/queue", self.get_queue),
            ("POST", "/queue", self.post_queue),
            ("POST", "/interrupt", self.post_interrupt),
            ("POST", "/free", self.post_free),
            ("GET", "/history", self.get_history),
            ("GET", "/history/{prompt_id}", self.get_history),
            ("POST", "/history", self.post_history),
            ("GET", "/view", self.view),
            ("POST", "/upload/image", self.upload_image),
            ("GET", "/object_info", self.object_info),
            ("GET", "/object_info/{node_class}", self.object_info),
            ("GET", "/system_stats", self.system_stats),
            ("GET", "/features", self.features),
            ("GET", "/models", self.models),
            ("GET", "/models/{folder}", self.models),
            ("GET", "/embeddings", self.embeddings),
            *frontend.ROUTES,
        ):
            self.routes.route(method, path)(function)

    async def run(self, address: str, port: int) -> None:
        """Serve until cancelled."""
        doubled = web.RouteTableDef()
        for route in self.routes:
            doubled.route(route.method, "/api" + route.path)(route.handler)
        self.app.add_routes(doubled)
        self.app.add_routes(self.routes)
        frontend.add_static_routes(self.app)
        runner = web.AppRunner(self.app, access_log=None)
        await runner.setup()
        threading.Thread(target=self.work, daemon=True).start()
        logging.info("Starting server\n")
        for host in address.split(","):
            await web.TCPSite(runner, host, port).start()
            logging.info("To see the GUI go to: http://%s:%s", host, port)
        while True:
            event, data, client_id = await self.messages.get()
            await self.send(event, data, client_id)

    def work(self) -> None:
        """The thread that runs prompts."""
        while True:
            item = self.prompt_queue.get()
            _, self.prompt_id, prompt, extra_data, outputs = item
            begun = self.loop.time()
            result = self.executor.execute(prompt, self.prompt_id, extra_data, outputs)
            self.prompt_queue.task_done(item, result)
            if self.executor.client_id is not None:
                data = {"node": None, "prompt_id": self.prompt_id}
                self.send_sync("executing", data, self.executor.client_id)
            logging.info("Prompt executed in %.2f seconds", self.loop.time() - begun)

    # -- events

    def queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": self.prompt_queue.remaining()}}

    def queue_updated(self) -> None:
        self.send_sync("status", {"status": self.queue_info()})

    def send_sync(self, event: Any, data: Any, client_id: str | None = None) -> None:
        """Have *event* sent from any thread; to all clients if *client_id* is None."""
        self.loop.call_soon_threadsafe(self.messages.put_nowait, (event, data, client_id))

    async def send(self, event: Any, data: Any, client_id: str | None) -> None:
        receivers = list(self.sockets.values()) if client_id is None else [self.sockets.get(client_id)]
        for socket in receivers:
            if socket is not None and not socket.closed:
                try:
                    if isinstance(data, bytes):
                        await socket.send_bytes(struct.pack(">I", event) + data)
                    else:
                        await socket.send_json({"type": event, "data": data})
                except (ConnectionError, RuntimeError) as error:
                    logging.warning("send error: %s", error)

    def progress(self, value: int, total: int, preview: Any) -> None:
        data = {"value": value, "max": total, "prompt_id": self.prompt_id, "node": self.executor.node_id}
        self.send_sync("progress", data, self.executor.client_id)
        if args.preview_method != "none":
            picture = io.BytesIO()
            Image.new("RGB", (16, 16), (255 * value // max(1, total), 0, 0)).save(picture, format="JPEG")
            self.send_sync(PREVIEW_IMAGE, struct.pack(">I", 1) + picture.getvalue(), self.executor.client_id)

    # -- routes

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        self.sockets[client_id] = socket
        try:
            await socket.send_json({"type": "status", "data": {"status": self.queue_info(), "sid": client_id}})
            if self.executor.client_id == client_id and self.executor.node_id is not None:
                await socket.send_json({"type": "executing", "data": {"node": self.executor.node_id}})
            async for message in socket:
                if message.type == WSMsgType.ERROR:
                    logging.warning("ws connection closed with exception %s", socket.exception())
                elif message.type == WSMsgType.TEXT and json.loads(message.data).get("type") == "feature_flags":
                    await socket.send_json({"type": "feature_flags", "data": frontend.SERVER_FEATURES})
        finally:
            if self.sockets.get(client_id) is socket:
                del self.sockets[client_id]
        return socket

    async def get_prompt(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self.queue_info())

    async def post_prompt(self, request: web.Request) -> web.StreamResponse:
        logging.info("got prompt")
        body = await request.json()
        if "prompt" not in body:
            error = {"type": "no_prompt", "message": "No prompt provided", "details": "No prompt provided"}
            return web.json_response({"error": {**error, "extra_info": {}}, "node_errors": {}}, status=400)
        if "number" in body:
            number = float(body["number"])
        else:
            number = -self.number if body.get("front") else self.number
            self.number += 1
        prompt, prompt_id = body["prompt"], str(body.get("prompt_id", uuid.uuid4()))
        error, outputs, node_errors = execution.validate_prompt(prompt)
        if error is not None:
            logging.warning("invalid prompt: %s", error)
            return web.json_response({"error": error, "node_errors": node_errors}, status=400)
        extra_data = dict(body.get("extra_data", {}))
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        self.prompt_queue.put((number, prompt_id, prompt, extra_data, outputs))
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": node_errors})

    async def get_queue(self, request: web.Request) -> web.StreamResponse:
        running, waiting = self.prompt_queue.current()
        return web.json_response({"queue_running": running, "queue_pending": waiting})

    async def post_queue(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("clear"):
            self.prompt_queue.delete(None)
        for prompt_id in body.get("delete", []):
            self.prompt_queue.delete(prompt_id)
        return web.Response()

    async def post_interrupt(self, request: web.Request) -> web.StreamResponse:
        try:
            prompt_id = (await request.json()).get("prompt_id")
        except json.JSONDecodeError:
            prompt_id = None
        running, _ = self.prompt_queue.current()
        if prompt_id is None or any(item[1] == prompt_id for item in running):
            model_management.interrupt_current_processing()
        return web.Response()

    async def post_free(self, request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def get_history(self, request: web.Request) -> web.StreamResponse:
        most = request.query.get("max_items")
        entries = self.prompt_queue.get_history(request.match_info.get("prompt_id"), int(most) if most else None)
        return web.json_response(entries, dumps=lambda value: json.dumps(value, default=repr))

    async def post_history(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("clear"):
            self.prompt_queue.forget(None)
        for prompt_id in body.get("delete", []):
            self.prompt_queue.forget(prompt_id)
        return web.Response()

    async def view(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("filename", "")
        name, folder = folder_paths.annotated_filepath(name)
        if not name or name[0] == "/" or ".." in name:
            return web.Response(status=400)
        folder = folder or folder_paths.get_directory_by_type(request.query.get("type", "output"))
        if folder is None:
            return web.Response(status=400)
        within = os.path.abspath(os.path.join(folder, request.query.get("subfolder", "")))
        if os.path.commonpath((within, folder)) != folder:
            return web.Response(status=403)
        path = os.path.join(within, os.path.basename(name))
        if not os.path.isfile(path):
            return web.Response(status=404)
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return web.FileResponse(path, headers={"Content-Type": kind, "Content-Disposition": f'filename="{name}"'})

    async def upload_image(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        image, kind, subfolder = form.get("image"), str(form.get("type", "input")), str(form.get("subfolder", ""))
        root = folder_paths.get_directory_by_type(kind)
        if not isinstance(image, web.FileField) or not image.filename or root is None:
            return web.Response(status=400)
        folder = os.path.join(root, os.path.normpath(subfolder))
        path = os.path.abspath(os.path.join(folder, image.filename))
        if os.path.commonpath((root, path)) != root:
            return web.Response(status=400)
        os.makedirs(folder, exist_ok=True)
        data, name = image.file.read(), image.filename
        stem, suffix = os.path.splitext(name)
        number = 1
        while form.get("overwrite") not in ("true", "1") and os.path.exists(path):
            with open(path, "rb") as present:
                if present.read() == data:
                    break
            name = f"{stem} ({number}){suffix}"
            path, number = os.path.join(folder, name), number + 1
        with open(path, "wb") as file:
            file.write(data)
        return web.json_response({"name": name, "subfolder": subfolder, "type": kind})

    async def object_info(self, request: web.Request) -> web.StreamResponse:
        wanted = request.match_info.get("node_class")
        names = [name for name in nodes.NODE_CLASS_MAPPINGS if wanted in (None, name)]
        return web.json_response({name: node_info(name) for name in names})

    async def system_stats(self, request: web.Request) -> web.StreamResponse:
        system = {
            "os": os.name,
            "comfyui_version": comfyui_version.__version__,
            "python_version": sys.version,
            "pytorch_version": "none",
            "embedded_python": False,
            "argv": sys.argv,
        }
        device = {"name": "cpu", "type": "cpu", "index": None, "vram_total": 0, "vram_free": 0}
        return web.json_response({"system": system, "devices": [device]})

    async def features(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(frontend.SERVER_FEATURES)

    async def models(self, request: web.Request) -> web.StreamResponse:
        folder = request.match_info.get("folder")
        if folder is None:
            return web.json_response(sorted(folder_paths.folder_names_and_paths))
        if folder not in folder_paths.folder_names_and_paths:
            return web.Response(status=404)
        return web.json_response(folder_paths.get_filename_list(folder))

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        return web.json_response([])


def node_info(name: str) -> dict[str, Any]:
    """What ``/object_info`` says of the node class *name*."""
    node_class = nodes.NODE_CLASS_MAPPINGS[name]
    inputs = node_class.INPUT_TYPES()
    extra = {key: True for key in ("deprecated", "experimental") if getattr(node_class, key.upper(), False)}
    if tooltips := getattr(node_class, "OUTPUT_TOOLTIPS", None):
        extra["output_tooltips"] = tooltips
    return {
        **extra,
        "input": inputs,
        "input_order": {category: list(entries) for category, entries in inputs.items()},
        "output": node_class.RETURN_TYPES,
        "output_is_list": getattr(node_class, "OUTPUT_IS_LIST", [False] * len(node_class.RETURN_TYPES)),
        "output_name": getattr(node_class, "RETURN_NAMES", node_class.RETURN_TYPES),
        "name": name,
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(name, name),
        "description": getattr(node_class, "DESCRIPTION", ""),
        "python_module": getattr(node_class, "RELATIVE_PYTHON_MODULE", "nodes"),
        "category": node_class.CATEGORY,
        "output_node": bool(getattr(node_class, "OUTPUT_NODE", False)),
    }
