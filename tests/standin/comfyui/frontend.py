"""What the browser side of ComfyUI asks of its server beyond prompts: itself, settings, user data, extensions, words.

The files are those of ``--front-end-root`` (an unpacked ``comfyui-frontend-package``); without it there is no page.
"""

from __future__ import annotations

import glob
import json
import os
import urllib.parse
from typing import Any

import folder_paths
import nodes
from aiohttp import web
from comfy.cli_args import args

USER = "default"
SERVER_FEATURES = {"supports_preview_metadata": False, "max_upload_size": round(args.max_upload_size * 1024 * 1024)}


def _user_path(*parts: str) -> str | None:
    """A path below the user's folder; None if it would leave it."""
    root = os.path.join(folder_paths.get_user_directory(), USER)
    path = os.path.abspath(os.path.join(root, *(urllib.parse.unquote(part) for part in parts)))
    return path if os.path.commonpath((root, path)) == root else None


def _file_info(path: str, root: str) -> dict[str, Any]:
    stat = os.stat(path)
    name = os.path.relpath(path, root)
    return {"path": name, "size": stat.st_size, "modified": stat.st_mtime, "created": stat.st_ctime}


def _settings() -> dict[str, Any]:
    try:
        with open(_user_path("comfy.settings.json"), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def _save_settings(settings: dict[str, Any]) -> None:
    path = _user_path("comfy.settings.json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(settings, file)


async def users(request: web.Request) -> web.StreamResponse:
    return web.json_response({"storage": "server", "migrated": os.path.exists(_user_path())})


async def get_settings(request: web.Request) -> web.StreamResponse:
    return web.json_response(_settings())


async def get_setting(request: web.Request) -> web.StreamResponse:
    return web.json_response(_settings().get(request.match_info["id"]))


async def post_settings(request: web.Request) -> web.StreamResponse:
    _save_settings({**_settings(), **await request.json()})
    return web.Response()


async def post_setting(request: web.Request) -> web.StreamResponse:
    _save_settings({**_settings(), request.match_info["id"]: await request.json()})
    return web.Response()


async def list_userdata(request: web.Request) -> web.StreamResponse:
    folder = _user_path(request.query.get("dir", ""))
    if folder is None:
        return web.Response(status=403, text="Invalid directory")
    if not os.path.exists(folder):
        return web.Response(status=404, text="Directory not found")
    deep = request.query.get("recurse", "").lower() == "true"
    pattern = os.path.join(glob.escape(folder), *(["**"] if deep else []), "*")
    paths = [path for path in sorted(glob.glob(pattern, recursive=deep)) if os.path.isfile(path)]
    if request.query.get("full_info", "").lower() == "true":
        return web.json_response([_file_info(path, folder) for path in paths])
    names = [os.path.relpath(path, folder) for path in paths]
    if request.query.get("split", "").lower() == "true":
        return web.json_response([[name, *name.split("/")] for name in names])
    return web.json_response(names)


async def get_userdata(request: web.Request) -> web.StreamResponse:
    path = _user_path(request.match_info["file"])
    if path is None:
        return web.Response(status=403)
    return web.FileResponse(path) if os.path.exists(path) else web.Response(status=404)


async def post_userdata(request: web.Request) -> web.StreamResponse:
    path = _user_path(request.match_info["file"])
    if path is None:
        return web.Response(status=403)
    if request.query.get("overwrite") == "false" and os.path.exists(path):
        return web.Response(status=409, text="File already exists")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(await request.read())
    if request.query.get("full_info", "").lower() == "true":
        return web.json_response(_file_info(path, _user_path()))
    return web.json_response(os.path.relpath(path, _user_path()))


async def delete_userdata(request: web.Request) -> web.StreamResponse:
    path = _user_path(request.match_info["file"])
    if path is None or not os.path.isfile(path):
        return web.Response(status=404 if path else 403)
    os.remove(path)
    return web.Response(status=204)


async def move_userdata(request: web.Request) -> web.StreamResponse:
    source, target = (_user_path(request.match_info[name]) for name in ("file", "dest"))
    if source is None or target is None or not os.path.isfile(source):
        return web.Response(status=404)
    if request.query.get("overwrite") == "false" and os.path.exists(target):
        return web.Response(status=409, text="File already exists")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.replace(source, target)
    return web.json_response(_file_info(target, _user_path()))


async def extensions(request: web.Request) -> web.StreamResponse:
    root = args.front_end_root or "/nowhere"
    found = glob.glob(os.path.join(glob.escape(root), "extensions", "**", "*.js"), recursive=True)
    listed = ["/" + os.path.relpath(path, root) for path in found]
    for name, folder in nodes.EXTENSION_WEB_DIRS.items():
        for path in glob.glob(os.path.join(glob.escape(folder), "**", "*.js"), recursive=True):
            listed.append(f"/extensions/{urllib.parse.quote(name)}/{os.path.relpath(path, folder)}")
    return web.json_response(listed)


def _merge(one: dict, other: dict) -> dict:
    for key, value in other.items():
        one[key] = _merge(one.get(key, {}), value) if isinstance(value, dict) else value
    return one


async def words(request: web.Request) -> web.StreamResponse:
    """The translations of the custom nodes' ``locales/LANGUAGE/{main,nodeDefs,commands,settings}.json``."""
    found: dict[str, Any] = {}
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        for path in sorted(glob.glob(os.path.join(folder, "*/locales/*/*.json"))):
            language, name = path.split("/")[-2:]
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            _merge(found.setdefault(language, {}), content if name == "main.json" else {name[:-5]: content})
    return web.json_response(found)


async def nothing(request: web.Request) -> web.StreamResponse:
    return web.json_response({})


async def empty(request: web.Request) -> web.StreamResponse:
    return web.json_response([])


async def model_folders(request: web.Request) -> web.StreamResponse:
    names = [name for name in folder_paths.folder_names_and_paths if name not in ("configs", "custom_nodes")]
    return web.json_response([{"name": name, "folders": folder_paths.get_folder_paths(name)} for name in names])


async def logs(request: web.Request) -> web.StreamResponse:
    return web.json_response({"entries": [], "size": {"cols": 80, "rows": 24}})


async def page(request: web.Request) -> web.StreamResponse:
    if args.front_end_root is None:
        return web.Response(text="The stand-in for ComfyUI; there is no page here.")
    index = os.path.join(args.front_end_root, "index.html")
    return web.FileResponse(index, headers={"Cache-Control": "no-cache"})


ROUTES = (
    ("GET", "/", page),
    ("GET", "/users", users),
    ("GET", "/settings", get_settings),
    ("GET", "/settings/{id}", get_setting),
    ("POST", "/settings", post_settings),
    ("POST", "/settings/{id}", post_setting),
    ("GET", "/userdata", list_userdata),
    ("GET", "/userdata/{file}", get_userdata),
    ("POST", "/userdata/{file}", post_userdata),
    ("DELETE", "/userdata/{file}", delete_userdata),
    ("POST", "/userdata/{file}/move/{dest}", move_userdata),
    ("GET", "/extensions", extensions),
    ("GET", "/i18n", words),
    ("GET", "/workflow_templates", nothing),
    ("GET", "/global_subgraphs", nothing),
    ("GET", "/experiment/models", model_folders),
    ("GET", "/internal/folder_paths", nothing),
    ("GET", "/internal/logs/raw", logs),
    ("GET", "/internal/files/{kind}", empty),
)


def add_static_routes(app: web.Application) -> None:
    """The files of extensions and, last because it takes every path, the page's."""
    for name, folder in nodes.EXTENSION_WEB_DIRS.items():
        app.add_routes([web.static(f"/extensions/{name}", folder)])
    if args.front_end_root is not None:
        app.add_routes([web.static("/", args.front_end_root)])
