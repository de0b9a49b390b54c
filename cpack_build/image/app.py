"""The top layer: the links from ComfyUI's model folders to the models, the documents, the writable volume, the cache of
the dynamic loader.

It is the one layer that changes with every change, so it holds only small things.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping

from cpack_build.image.config import APP, COMFYUI, DATA
from cpack_build.image.debs import account_lines
from cpack_build.image.layer import Recipe, arrange, directory, key_of, symlink, text
from cpack_build.lock.schema import Model
from cpack_build.oci import tar
from cpack_build.oci.modellayer import model_path

__all__ = ["app_layer", "model_link"]


def app_layer(
    models: Iterable[Model],
    documents: Mapping[str, bytes],
    *,
    base_accounts: tuple[bytes, bytes] | None,
    loader_cache: bytes | None = None,
) -> Recipe:
    """*documents* go below ``/app/cpack``; *base_accounts* are a base image's ``passwd`` and ``group``, to which the
    service's account is added (without a base, the system packages' layer has them); *loader_cache* is the dynamic
    loader's, over all layers."""
    every: list[tar.Entry] = [model_link(model) for model in models]
    every += [text(f"{APP}/{name}", data) for name, data in documents.items()]
    every.append(directory(DATA, 0o1777))
    if base_accounts is not None:
        passwd, group = account_lines(*base_accounts)
        every += [text("etc/passwd", passwd), text("etc/group", group)]
    if loader_cache is not None:
        every.append(text("etc/ld.so.cache", loader_cache))
    arranged = arrange(every)

    def entries() -> Iterator[tar.Entry]:
        return iter(arranged)

    content = [[entry.path, entry.kind, entry.mode, entry.target, _sha256(entry)] for entry in arranged]
    return Recipe("app", "links and config", key_of("app", content), entries)


def model_link(model: Model) -> tar.Entry:
    """The relative symlink at the path where ComfyUI looks for *model*."""
    path = f"{COMFYUI}/{model.path}"
    return symlink(path, posixpath.relpath(model_path(model.sha256), posixpath.dirname(path)))


def _sha256(entry: tar.Entry) -> str:
    return hashlib.sha256(b"".join(entry.content.chunks() if entry.content is not None else ())).hexdigest()
