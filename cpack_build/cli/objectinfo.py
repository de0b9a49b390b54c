"""``--object-info FILE|URL``: what a ComfyUI says of its node classes, from a file or from that ComfyUI itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

__all__ = ["object_info_option", "read_object_info"]

_LIMIT = 256 << 20

object_info_option = click.option(
    "--object-info",
    metavar="FILE|URL",
    help="ComfyUI's answer to /object_info, or where it runs (http://127.0.0.1:8188): to convert a workflow as the "
    "editor saves it, and to know the loaders of custom nodes.",
)


def read_object_info(where: str | None) -> dict[str, Any] | None:
    """The answer to ``GET /object_info`` that *where* names; ``None`` without it.

    Raises :class:`~cpack_build.errors.BadInput`, :class:`~cpack_build.errors.NetworkError`.
    """
    from cpack_build.cpack.documents import parse_json
    from cpack_build.cpack.workflowfile import read_json_file
    from cpack_build.errors import BadInput, NetworkError
    from cpack_build.fetch.http import RequestsTransport

    if where is None:
        return None
    if not where.startswith(("http://", "https://")):
        return read_json_file(Path(where), what="/object_info")
    url = where if urlsplit(where).path.strip("/") else where.rstrip("/") + "/object_info"
    data = bytearray()
    try:
        with RequestsTransport(timeouts=(5.0, 60.0)).get(url, headers={"Accept": "application/json"}) as answer:
            if answer.status != 200:
                raise NetworkError(f"{url} answered HTTP {answer.status}.", hint="Name the address of a ComfyUI.")
            for chunk in answer.chunks:
                data += chunk
                if len(data) > _LIMIT:
                    raise BadInput(f"{url} answers with more than {_LIMIT >> 20} MiB.", hint="Name a ComfyUI.")
    except (ConnectionError, TimeoutError) as error:
        raise NetworkError(f"{url} does not answer: {error}.", hint="Start that ComfyUI, or name a file.") from error
    document = parse_json(bytes(data), name=url)
    if not isinstance(document, dict):
        raise BadInput(f"{url} is no ComfyUI's /object_info.", hint="Name the address of a ComfyUI.")
    return document
