"""Bentos that comfy-pack made, and ours, as something that can be restored or built again.

Of comfy-pack's only its pack is read (``snapshot.json``, the workflows, ``input/``) and its models, which are BentoML
models that the snapshot names; the code in it is never run.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpack_build.cli.terminal import Terminal
from cpack_build.errors import BadField, BadInput, HashMismatch, Unresolvable, UnsafeInput

__all__ = ["pack_of", "source_of"]


@contextmanager
def pack_of(source: str, *, terminal: Terminal) -> Iterator[Path | None]:
    """The pack of the Bento *source*, for as long as the context lasts; ``None`` if that names a pack or an image.

    Raises :class:`BadInput` for a Bento of ours, whose pack would be built to the same Bento again.
    """
    from cpack_build.restore.naming import pack_path

    if pack_path(source) is not None or "/" in source or source.startswith(("oci:", "docker:", "podman:")):
        yield None
        return
    bento = _bento(source, context=None, pulls=False)
    if Path(bento.path_of("src/cpack.json")).is_file():
        raise BadInput(f"{bento.tag} is made by cpack-build already.", hint="Name the pack or image that it is of.")
    with _packed(bento, terminal) as pack:
        yield pack


@contextmanager
def source_of(source: str, *, context: str | None, terminal: Terminal) -> Iterator[str]:
    """What `restore` is to be given for the Bento *source*, for as long as the context lasts."""
    bento = _bento(source, context=context, pulls=context is not None or "BENTO_CLOUD_API_KEY" in os.environ)
    about = Path(bento.path_of("src/cpack.json"))
    if not about.is_file():
        with _packed(bento, terminal) as pack:
            yield str(pack)
        return
    from cpack_build.fetch.store import Store
    from cpack_build.oci.reference import parse_reference

    store = Store()
    document = _document(bento, "src/cpack.json")
    models, image = document.get("models"), document.get("image")
    if not isinstance(models, dict) or not isinstance(image, str):
        raise BadField(f"{bento.tag}: {about.name}", "models, image", "are not what cpack-build writes")
    for sha256, tag in models.items():
        _known(str(tag), sha256, store, name=f"{bento.tag}: {tag}")
    layout = _within(bento, "image")
    yield f"oci:{layout}" if layout.is_dir() else str(parse_reference(image))


def _bento(tag: str, *, context: str | None, pulls: bool) -> Any:
    """The Bento *tag* of BentoML's store, or, if it *pulls*, from BentoCloud where it is not there."""
    from cpack_build.deploy.bento import require_bentoml

    bentoml = require_bentoml()
    try:
        return bentoml.bentos.get(tag)
    except (bentoml.exceptions.BentoMLException, ValueError) as error:
        if not pulls:
            raise Unresolvable(
                f"There is no Bento {tag} in BentoML's store: {error}",
                hint="`bentoml list` shows what is there; `unpack-bento --context NAME` pulls it from BentoCloud.",
            ) from None
    from cpack_build.deploy.bentocloud import pull_bento

    return pull_bento(tag, context=context)


@contextmanager
def _packed(bento: Any, terminal: Terminal) -> Iterator[Path]:
    """The pack in a Bento of comfy-pack's, written apart, with its models known to the store."""
    from cpack_build.cpack.writer import write_pack

    inputs_at = Path(bento.path_of("src/input"))
    snapshot = _document(bento, "src/snapshot.json")
    _adopt_models(snapshot, bento.tag, terminal)
    inputs = {
        path.relative_to(inputs_at).as_posix(): path
        for path in sorted(inputs_at.rglob("*"))
        if _within(bento, f"src/input/{path.relative_to(inputs_at)}").is_file()
    }
    drawing = _within(bento, "src/workflow.json")
    with tempfile.TemporaryDirectory(prefix="cpack-bento-") as folder:
        pack = Path(folder) / f"{bento.tag.name}.cpack.zip"
        write_pack(
            pack,
            snapshot_document=snapshot,
            workflow_api=_document(bento, "src/workflow_api.json"),
            workflow=_document(bento, "src/workflow.json") if drawing.is_file() else {},
            inputs=inputs,
        )
        yield pack


def _within(holder: Any, name: str) -> Path:
    """Where *holder*, a Bento or a model of BentoML's, has *name*.

    Raises :class:`UnsafeInput` for a link that leads out of it: a stranger's would make a pack of this machine's files.
    """
    path = Path(holder.path_of(name))
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(holder.path)):  # `resolve` fails at a loop
        raise UnsafeInput(f"{holder.tag}: {name} leads out of it.", hint="Get it anew from whoever made it.")
    return path


def _document(bento: Any, name: str) -> dict[str, Any]:
    tag, path = bento.tag, _within(bento, name)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{tag} has no usable {path.name}: {error}.", hint="It is no Bento of comfy-pack's.") from None
    if not isinstance(document, dict):
        raise BadInput(f"{tag}: {path.name} is no object.", hint="Make the Bento again with comfy-pack.")
    return document


def _adopt_models(snapshot: dict[str, Any], tag: object, terminal: Terminal) -> None:
    """Let the store know the files of the models that *snapshot* has in BentoML's store, and it their hashes."""
    from cpack_build.fetch.store import Store

    store = Store()
    models = snapshot.get("models")
    listed = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    for number, model in enumerate(listed):
        model_tag = model.get("model_tag")
        if model_tag is None or model.get("disabled"):
            continue
        if not isinstance(model_tag, str):
            raise BadField(f"{tag}: snapshot.json", f"models[{number}].model_tag", "is no text")
        name = f"{tag}: {model_tag}"
        with terminal.progress.task(str(model.get("filename"))):
            model["sha256"] = _known(model_tag, model.get("sha256"), store, name=name)


def _known(tag: str, sha256: object, store: Any, *, name: str) -> str:
    """The sha256 of the file of the BentoML model *tag*, which *store* knows from now on.

    Raises :class:`Unresolvable` when it is not there, :class:`HashMismatch` when it is another.
    """
    from cpack_build.deploy.bento import require_bentoml

    bentoml = require_bentoml()
    try:
        path = _within(bentoml.models.get(tag), "model.bin")
    except (bentoml.exceptions.BentoMLException, ValueError) as error:
        raise Unresolvable(
            f"{name} is not in BentoML's model store: {error}",
            hint="Get it with `bentoml models pull`, or import the Bento's export, which has it.",
        ) from None
    if not path.is_file():
        raise Unresolvable(f"{name} has no {path.name}.", hint="Get it again with `bentoml models pull`.")
    actual = str(store.adopt(path).sha256)
    if sha256 and actual != sha256:
        raise HashMismatch(name, expected=str(sha256), actual=actual)
    return actual
