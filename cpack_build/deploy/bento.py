"""Making a Bento of an image: what BentoML serves, puts into containers, moves about and deploys.

A *thin* Bento names the image by its digest, for builders that can pull it. A self-contained one has the image's layers
as an OCI layout under ``image/``, so it needs nothing from anywhere, and its models as BentoML models tagged by their
hash: the same model is one model for every Bento, shared with the file that was at hand where the disk can share.
BentoML's own functions write Bento and models; ours are added before the Bento gets its place in the store, so it is
there whole or not at all. Its version is a function of all that is in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cpack_build
from cpack_build.deploy.bentomodels import MODEL_FILE, ModelSource, add_models, make_readable, model_tag
from cpack_build.deploy.dockerfile import BENTO_PATH, ENTRYPOINT, template
from cpack_build.errors import BadInput, Occupied, ToolMissing, UsageError, writing
from cpack_build.oci import tar
from cpack_build.oci.filesystem import stream_members
from cpack_build.oci.layout import write_layout
from cpack_build.oci.modellayer import model_path
from cpack_build.oci.reference import Reference
from cpack_build.oci.storage import whole_file
from cpack_build.oci.types import Blob, Image, canonical_json
from cpack_build.progress import SILENT, Progress

__all__ = ["Bento", "Contents", "bento_name", "make_bento", "require_bentoml"]

_TAG_LIMIT = 63
"""Characters of a name or a version (bentoml ``tag.py``)."""
_TAG = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_SERVICE = '''"""Made by cpack-build. What it serves lies beside it."""

from pathlib import Path

from cpack_build.serve.bento import bento_service

svc = bento_service(Path(__file__).parent)
'''


@dataclass(frozen=True)
class Contents:
    """What a Bento is made of. *layers* are the image's with their kinds, *documents* the pack's.

    *reference* is where the image lies, for a thin Bento; else *base* is where the lowest layers (of kind ``base``) lie
    under *base_digest*, if they lie in a registry.
    """

    image: Image
    layers: tuple[tuple[str, Blob], ...]
    documents: Mapping[str, bytes]
    models: tuple[ModelSource, ...]
    """None for a thin Bento: they are in the image."""
    gpu: bool
    reference: Reference | None = None
    base: Reference | None = None


@dataclass(frozen=True)
class Bento:
    """A Bento in BentoML's store. Bytes *written* for it, and *shared* with files that were there."""

    name: str
    version: str
    path: Path
    thin: bool
    models: tuple[str, ...]
    existed: bool = False
    written: int = 0
    shared: int = 0

    @property
    def tag(self) -> str:
        return f"{self.name}:{self.version}"


def require_bentoml() -> Any:
    """BentoML, which tells nobody of its use. Raises :class:`ToolMissing`."""
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    try:
        import bentoml
    except ImportError as error:
        raise ToolMissing(f"BentoML is not installed ({error.name}).", hint="Install cpack-build[serve].") from None
    logging.getLogger("bentoml").setLevel(logging.ERROR)  # it warns that a template of ours is no Bento of version 2
    return bentoml


def bento_name(text: str) -> str:
    """*text* as a Bento can be called: lowercase, at most 63 characters."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:_TAG_LIMIT].strip("._-") or "workflow"


def make_bento(
    contents: Contents,
    name: str,
    *,
    version: str | None = None,
    sha256_of: Callable[[Path], str],
    progress: Progress = SILENT,
) -> Bento:
    """The Bento of *contents* in BentoML's store; what is there already, and the same, stays.

    *sha256_of* hashes a file, or knows its hash: what lies in BentoML's store under a model's tag is not believed.

    Raises :class:`UsageError` for a name or version that BentoML has not, :class:`Occupied` where another Bento has
    them, :class:`BadInput`, :class:`HashMismatch`, :class:`StorageError`, :class:`ToolMissing`.
    """
    for what, text in (("name", name), ("version", version or "x")):
        if len(text) > _TAG_LIMIT or not _TAG.fullmatch(text):
            raise UsageError(
                f"{text!r} cannot be the {what} of a Bento.",
                hint="It is lowercase letters and digits with '.', '_' or '-' between them, at most 63.",
            )
    require_bentoml()
    _require_fit(contents)
    key = _key(contents, name)
    version = version or key[:16]
    with _bentoml_errors():
        from bentoml._internal.configuration.containers import BentoMLContainer

        store = BentoMLContainer.bento_store.get()
        models, linked = add_models(contents.models, sha256_of, progress)
        place = Path(BentoMLContainer.bento_store_dir.get()) / name / version
        if (place / "bento.yaml").is_file():
            if store.get(f"{name}:{version}").info.labels.get("cpack-content") != key:
                raise Occupied(place.parent, [f"{version}, which is another Bento; choose another --version"])
            return Bento(name, version, place, contents.reference is not None, tuple(models.values()), existed=True)
        temporary = BentoMLContainer.tmp_bento_store_dir.get()
        with (
            writing(temporary),
            tempfile.TemporaryDirectory(prefix="cpack-") as context,
            tempfile.TemporaryDirectory(prefix="cpack-", dir=temporary) as folder,
        ):
            tag = f"{name}:{version}"
            built, count = _build(contents, tag, Path(context), Path(folder), models=models, key=key, progress=progress)
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()  # left by a program that was killed just here
            with store.register(f"{name}:{version}") as path:
                built.rename(path)
    return Bento(
        name, version, place, contents.reference is not None, tuple(models.values()),
        written=count + linked.written, shared=linked.shared,
    )  # fmt: skip


def _require_fit(contents: Contents) -> None:
    """See that a Dockerfile can make the image again, and that it serves a workflow."""
    if "workflow_api.json" not in contents.documents:
        raise BadInput("The image carries no workflow.", hint="Build it again with `cpack-build image`.")
    if contents.reference is not None:
        return
    for blob in (blob for kind, blob in contents.layers if kind == "base" and contents.base is None):
        for member, _ in stream_members(blob):
            if posixpath.basename(member.name).startswith(".wh."):  # image-spec layer.md, "Whiteouts"
                raise BadInput(
                    f"{blob.descriptor.shown}, of the base, removes {member.name}, which no Dockerfile's ADD can do.",
                    hint="Push the image and make a thin Bento of it, or lock with a base that is named in a registry.",
                )


def _key(contents: Contents, name: str) -> str:
    """A hash of all that the Bento is made of; of 40 digits, for BentoCloud's labels have at most 63 characters."""
    parts = {
        "name": name,
        "image": contents.image.id,
        "layers": [blob.descriptor.digest for _, blob in contents.layers],
        "reference": str(contents.reference or ""),
        "service": _SERVICE,
        "entrypoint": ENTRYPOINT,
        "dockerfile": _dockerfile(contents),
    }
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:40]


# -- the Bento ---------------------------------------------------------------------------------------------------------


def _build(
    contents: Contents, tag: str, context: Path, folder: Path, *,
    models: Mapping[str, str], key: str, progress: Progress,
) -> tuple[Path, int]:  # fmt: skip
    """Build it from *context* in a store of its own at *folder*: where it lies there, and the bytes written."""
    import bentoml
    from bentoml._internal.bento import BentoStore

    name, _, version = tag.partition(":")
    files = {
        "service.py": _SERVICE.encode(),
        "cpack.json": canonical_json(
            {
                "format": 1, "name": name, "version": version, "gpu": contents.gpu, "models": dict(models),
                "image": str(contents.reference or contents.image.id),
            }
        ),
        **{
            f"app/{path}": data
            for path, data in contents.documents.items()
            if path in ("workflow_api.json", "workflow.json") or path.startswith("input/")
        },
    }  # fmt: skip
    for path, data in {**files, "Dockerfile.template": _dockerfile(contents).encode()}.items():
        target = context / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    with _from(context), progress.task(f"Building {tag}", unit="steps"):
        built = bentoml.bentos.build(
            "service:svc",
            name=name,
            version=version,
            description=_readme(contents, tag),
            labels={
                "cpack-build-version": cpack_build.__version__,
                "cpack-content": key,
                "cpack-image": contents.image.id.removeprefix("sha256:")[:_TAG_LIMIT],
            },
            include=sorted(files),
            docker={
                "base_image": _pinned(contents) or "scratch",
                "dockerfile_template": "Dockerfile.template",  # relative: BentoML takes no other
            },
            python={"lock_packages": False},
            models=list(models.values()),
            build_ctx=str(context),
            _bento_store=BentoStore(folder),
        )
    root = Path(built.path)
    make_readable(root)
    entrypoint = root / "env" / "docker" / "entrypoint.sh"
    entrypoint.write_text(ENTRYPOINT)
    entrypoint.chmod(0o755)
    count = sum(map(len, files.values()))
    if contents.reference is None:
        written = write_layout(_without_models(contents), root / "image", progress=progress)
        count += written.written
        with whole_file(root / "image" / "models.tar") as file:
            for chunk in tar.stream(_links(contents)):
                file.write(chunk)
    return root, count


@contextmanager
def _from(context: Path) -> Iterator[None]:
    """In the folder *context*, for BentoML takes no template from elsewhere; and with no ``service`` imported, for it
    imports the one there to see that it can be, and another Bento's must not be taken for it."""
    from pydantic.json_schema import PydanticJsonSchemaWarning

    before, place = sys.modules.pop("service", None), Path.cwd()
    try:
        os.chdir(context)
        with warnings.catch_warnings():
            # of a file that need not be given, whose default BentoML's schema cannot say
            warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
            yield
    finally:
        os.chdir(place)
        sys.modules.pop("service", None)
        if before is not None:
            sys.modules["service"] = before


def _pinned(contents: Contents) -> str | None:
    """The image that the Dockerfile begins from, by its digest."""
    origin = contents.reference or contents.base
    return None if origin is None else f"{origin.name}@{origin.digest}"


def _dockerfile(contents: Contents) -> str:
    config = json.loads(contents.image.config.data).get("config") or {}
    archives: list[str] = []
    if contents.reference is None:
        digests = [blob.descriptor.digest.removeprefix("sha256:") for blob in _added(contents)]
        archives = [f"image/blobs/sha256/{hexes}" for hexes in dict.fromkeys(digests)]
        archives += ["image/models.tar"] if contents.models else []
    return template(
        config,
        origin=_pinned(contents),
        archives=archives,
        has_models=bool(contents.models),
        whole=contents.reference is not None,
    )


def _added(contents: Contents) -> Sequence[Blob]:
    """The layers that the Dockerfile adds, from the bottom."""
    left_out = {"model", "models"} | ({"base"} if contents.base is not None else set())
    return [blob for kind, blob in contents.layers if kind not in left_out]


class _Partial(Image):
    """An image whose layout lacks what lies elsewhere; its manifest is whole."""

    left_out: frozenset[str] = frozenset()

    def blobs(self) -> Iterator[Blob]:
        return (blob for blob in super().blobs() if blob.descriptor.digest not in self.left_out)

    @property
    def size(self) -> int:
        return sum(blob.descriptor.size for blob in self.blobs())


def _without_models(contents: Contents) -> Image:
    kept = {blob.descriptor.digest for blob in _added(contents)}
    partial = _Partial(contents.image.manifest, contents.image.config, contents.image.layers)
    left_out = frozenset(blob.descriptor.digest for _, blob in contents.layers) - kept
    object.__setattr__(partial, "left_out", left_out)
    return partial


def _links(contents: Contents) -> Iterator[tar.Entry]:
    """From where the image has its models to where BentoML puts them."""
    for path in ("models", "models/sha256"):
        yield tar.Entry(path, "directory", 0o755)
    for sha256 in sorted(model.sha256 for model in contents.models):
        place = model_tag(sha256).replace(":", "/")
        target = f"{BENTO_PATH}/models/{place}/{MODEL_FILE}"
        yield tar.Entry(model_path(sha256), "symlink", 0o777, target=target)


def _readme(contents: Contents, tag: str) -> str:
    how = f"the image {contents.reference}" if contents.reference is not None else "its layers, which it carries"
    return (
        f"# {tag}\n\nA ComfyUI workflow as a service, made by cpack-build {cpack_build.__version__} of {how}.\n\n"
        f"    bentoml serve {tag}\n    bentoml containerize {tag}\n\n"
        "`POST /generate` takes the workflow's parameters and answers with its files; `/interface.json` lists them.\n"
    )


@contextmanager
def _bentoml_errors() -> Iterator[None]:
    """What BentoML raises, as errors of ours."""
    from bentoml.exceptions import BentoMLException

    try:
        yield
    except ValueError as error:
        # BentoML takes nothing from below a hidden folder (``utils/filesystem.py``, ``resolve_user_filepath``).
        raise BadInput(
            f"BentoML cannot make the Bento: {error}.", hint="Set TMPDIR to a folder that is not hidden."
        ) from error
    except BentoMLException as error:
        raise BadInput(f"BentoML cannot make the Bento: {error}.", hint="Run it with -v to see where.") from error
