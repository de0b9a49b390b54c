"""How to call a service: the same request for curl, Python and JavaScript, made of the workflow's own parameters.

Each is complete and runs as it is printed, on this machine: a file parameter is the file that the workflow shows.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["examples"]

_FILES = ("image", "file", "mask", "audio", "video")


def examples(url: str, parameters: Sequence[Mapping[str, Any]], *, inputs: Path, token: bool = False) -> dict[str, str]:
    """``curl``, ``python`` and ``javascript`` for ``POST /generate`` at *url*; *inputs* is ComfyUI's input folder."""
    files, values = {}, {}
    for parameter in parameters:
        name, default = str(parameter["name"]), parameter.get("default")
        if parameter.get("linked"):
            continue
        if parameter.get("type") in _FILES:
            if (shown := _shown(inputs, default)) is not None:
                files[name] = str(shown)
            elif parameter.get("required", default is None):
                files[name] = f"{name}.png" if parameter.get("type") in ("image", "mask") else name
        else:
            values[name] = _sample(parameter) if default is None else default
    target = f"{url}/generate"
    return {
        "curl": _curl(target, files, values, token=token),
        "python": _python(target, files, values, token=token),
        "javascript": _javascript(target, files, values, token=token),
    }


def _shown(inputs: Path, default: Any) -> Path | None:
    """The file of the input folder that a node shows; it may be named from ComfyUI's own folder, and annotated."""
    if not isinstance(default, str) or not default:
        return None
    place = inputs / default.removesuffix(" [input]").removeprefix("input/")
    return place if place.resolve().is_relative_to(inputs.resolve()) and place.is_file() else None


def _sample(parameter: Mapping[str, Any]) -> Any:
    """A value for a parameter that has none of its own."""
    if parameter.get("choices"):
        return parameter["choices"][0]
    kind = parameter.get("type")
    if kind in ("int", "float", "number"):
        return parameter.get("minimum") or 1
    return True if kind == "boolean" else "words"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _curl(target: str, files: Mapping[str, str], values: Mapping[str, Any], *, token: bool) -> str:
    words = ["curl --fail-with-body -OJ"]
    if token:
        words.append('-H "Authorization: Bearer $CPACK_TOKEN"')
    # within double quotes curl takes a name with any sign as it is
    words += [f"-F {shlex.quote(f'{name}=@{_quoted(path)}')}" for name, path in files.items()]
    words += [f"--form-string {shlex.quote(f'{name}={_text(value)}')}" for name, value in values.items()]
    if not files and not values:
        words.append("-X POST")
    return " \\\n  ".join([*words, shlex.quote(target)])


def _quoted(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _python(target: str, files: Mapping[str, str], values: Mapping[str, Any], *, token: bool) -> str:
    lines = ["import mimetypes", *(["import os"] if token else []), "", "import requests", ""]
    arguments = [repr(target)]
    if files:
        opened = ", ".join(f'{name!r}: open({path!r}, "rb")' for name, path in files.items())
        texts = {name: _text(value) for name, value in values.items()}
        arguments += [f"files={{{opened}}}", *([f"data={texts!r}"] if texts else [])]
    else:
        arguments.append(f"json={dict(values)!r}")
    if token:
        arguments.append('headers={"Authorization": f"Bearer {os.environ[\'CPACK_TOKEN\']}"}')
    lines += [
        f"answer = requests.post({', '.join(arguments)})",
        "answer.raise_for_status()",
        'kind = answer.headers["content-type"].partition(";")[0]',
        'with open(f"result{mimetypes.guess_extension(kind) or \'\'}", "wb") as file:',
        "    file.write(answer.content)",
    ]
    return "\n".join(lines)


def _javascript(target: str, files: Mapping[str, str], values: Mapping[str, Any], *, token: bool) -> str:
    lines = ['import { readFileSync, writeFileSync } from "node:fs";', "", "const form = new FormData();"]
    for name, path in files.items():
        quoted = json.dumps(path, ensure_ascii=False)
        file_name = json.dumps(Path(path).name, ensure_ascii=False)
        lines.append(f"form.append({json.dumps(name)}, new Blob([readFileSync({quoted})]), {file_name});")
    for name, value in values.items():
        lines.append(f"form.append({json.dumps(name)}, {json.dumps(_text(value), ensure_ascii=False)});")
    headers = ", headers: { Authorization: `Bearer ${process.env.CPACK_TOKEN}` }" if token else ""
    body = ", body: form" if files or values else ""
    lines += [
        f'const answer = await fetch({json.dumps(target)}, {{ method: "POST"{headers}{body} }});',
        "if (!answer.ok) throw new Error(await answer.text());",
        'const name = /filename="?([^";]+)/.exec(answer.headers.get("content-disposition"))?.[1] ?? "result";',
        "writeFileSync(name, Buffer.from(await answer.arrayBuffer()));",
    ]
    return "\n".join(lines)
