"""Asking a service, and ComfyUI itself, for a picture: the two answers that must agree."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from typing import Any

from PIL import Image

__all__ = ["ask_comfyui", "ask_service", "pixels", "png", "until_ready"]

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def png(width: int = 48, height: int = 32) -> bytes:
    """A picture in which every pixel differs from its neighbours."""
    picture = Image.new("RGB", (width, height))
    picture.putdata([(x * 5 % 256, y * 7 % 256, (x * y) % 256) for y in range(height) for x in range(width)])
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def pixels(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Size and RGB bytes of an encoded picture."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return picture.size, picture.tobytes()


def until_ready(url: str, *, seconds: float = 60) -> None:
    """Wait until *url* answers 200; fails with its last answer after *seconds*."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with _OPENER.open(url, timeout=5) as answer:
                if answer.status == 200:
                    return
                last: object = answer.status
        except urllib.error.HTTPError as error:
            with error:
                last = error.code
        except OSError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{url} never answered 200; the last answer was {last}")
        time.sleep(0.2)


def _multipart(fields: Mapping[str, object]) -> tuple[bytes, str]:
    """A ``multipart/form-data`` body as curl's ``-F`` makes it; bytes become a file."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, value in fields.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, bytes):
            body += f'{head}; filename="{name}.png"\r\nContent-Type: image/png\r\n\r\n'.encode() + value
        else:
            body += f"{head}\r\n\r\n{value}".encode()
        body += b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _send(url: str, body: bytes, content_type: str, *, accept: str = "*/*") -> tuple[bytes, str]:
    headers = {"Content-Type": content_type, "Accept": accept}
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with _OPENER.open(request, timeout=120) as answer:
            return answer.read(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{url} gave {error.code}: {error.read().decode(errors='replace')}") from None


def ask_service(url: str, *, accept: str = "*/*", **fields: object) -> tuple[bytes, str]:
    """``curl -F name=value … URL/generate``: the body and its media type."""
    body, content_type = _multipart(fields)
    return _send(f"{url}/generate", body, content_type, accept=accept)


def ask_comfyui(url: str, prompt: dict[str, Any], output: str, *, picture: bytes, into: str) -> bytes:
    """What ComfyUI at *url* makes at the node *output* when the node *into* loads *picture*.

    Our output node is replaced by ComfyUI's own SaveImage, which reports what it saved.
    """
    name, content_type = _multipart({"image": picture})
    uploaded = json.loads(_send(f"{url}/upload/image", name, content_type)[0])
    prompt = json.loads(json.dumps(prompt))
    prompt[into]["inputs"]["image"] = uploaded["name"]
    prompt[output] = {
        "class_type": "SaveImage",
        "inputs": {"images": prompt[output]["inputs"]["images"], "filename_prefix": "direct"},
    }
    answer = _send(f"{url}/prompt", json.dumps({"prompt": prompt}).encode(), "application/json")[0]
    prompt_id = json.loads(answer)["prompt_id"]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with _OPENER.open(f"{url}/history/{prompt_id}", timeout=10) as history:
            done = json.loads(history.read()).get(prompt_id)
        if done is not None:
            (image,) = done["outputs"][output]["images"]
            query = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
            with _OPENER.open(f"{url}/view?{query}", timeout=10) as view:
                data: bytes = view.read()
                return data
        time.sleep(0.05)
    raise AssertionError(f"ComfyUI at {url} did not finish {prompt_id}")
