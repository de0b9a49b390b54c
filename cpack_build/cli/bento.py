"""``cpack-build bento SOURCE``: a pack or an image becomes a Bento; comfy-pack calls that ``build-bento``, and the way
back ``unpack-bento``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.downloads import Downloads, download_options
from cpack_build.cli.options import Chosen, documents_of, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.deploy.bento import Bento, Contents
    from cpack_build.fetch.http import Sources
    from cpack_build.fetch.store import Store
    from cpack_build.oci.types import Image

__all__ = ["bento", "build_bento", "contents_of", "made_of", "unpack_bento"]


@click.command(epilog="Example: cpack-build bento upscale.cpack.zip --name upscale    (exit codes: docs/exit-codes.md)")
@click.argument("source")
@click.option("--name", metavar="NAME", help="By default that of SOURCE.")
@click.option("--version", metavar="VERSION", help="By default made of what is in it.")
@click.option(
    "--thin/--self-contained",
    "thin",
    default=None,
    help="Whether it names the image in its registry, or carries its layers; by default as SOURCE is.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Also export it to this file (.bento)."
)
@click.option("--trust", is_flag=True, help="Run here what others wrote, where the build of the image needs that.")
@settings_options
@download_options
@terminal_options
def bento(
    source: str,
    name: str | None,
    version: str | None,
    thin: bool | None,
    output: Path | None,
    trust: bool,
    chosen: Chosen,
    downloads: Downloads,
    terminal: Terminal,
) -> None:
    """Make a Bento of SOURCE in BentoML's store (BENTOML_HOME): a NAME.cpack.zip, or an image (oci:DIR,
    oci-archive:FILE, docker-archive:FILE, docker:NAME, podman:NAME or a registry's reference).

    Of an image in a registry it is thin: it names that image by its digest. Else it carries the image's layers, and its
    models are BentoML models that share the files at hand. `bentoml serve`, `bentoml containerize` and `bentoml export`
    work with either.
    """
    with contents_of(source, chosen, downloads, thin=thin, trust=trust, terminal=terminal) as (contents, own_name):
        made = made_of(contents, name or own_name, version, terminal)
    _export(made, output)
    _tell(made, terminal, output)


@click.command(
    name="build-bento",
    epilog="Example: cpack-build build-bento upscale.cpack.zip --name upscale    (exit codes: docs/exit-codes.md)",
)
@click.argument("source")
@click.option("--name", metavar="NAME", help="By default that of SOURCE.")
@click.option("--version", metavar="VERSION", help="By default made of what is in it.")
@click.option("--trust", is_flag=True, help="Run here what others wrote, where the build of the image needs that.")
@settings_options
@download_options
@terminal_options
def build_bento(
    source: str,
    name: str | None,
    version: str | None,
    trust: bool,
    chosen: Chosen,
    downloads: Downloads,
    terminal: Terminal,
) -> None:
    """Make a Bento of SOURCE, with the flags of comfy-pack's build-bento: a NAME.cpack.zip, or the tag of a Bento that
    comfy-pack made, which becomes one that needs nothing but itself."""
    from cpack_build.cli.comfypack import pack_of

    with pack_of(source, terminal=terminal) as pack:
        place = str(pack) if pack is not None else source
        with contents_of(place, chosen, downloads, thin=None, trust=trust, terminal=terminal) as (contents, own_name):
            made = made_of(contents, name or own_name, version, terminal)
    _tell(made, terminal, None)


@click.command(
    name="unpack-bento",
    epilog="Example: cpack-build unpack-bento upscale:latest -w ComfyUI    (exit codes: docs/exit-codes.md)",
)
@click.argument("bento")
@click.option(
    "-w", "--workspace", type=click.Path(path_type=Path), default="workspace", show_default=True, help="Where to."
)
@click.option("--context", metavar="NAME", help="The BentoCloud context to pull it with, where it is not here.")
@click.option("--trust", is_flag=True, help="Run what others wrote without asking.")
@settings_options
@terminal_options
def unpack_bento(
    bento: str, workspace: Path, context: str | None, trust: bool, chosen: Chosen, terminal: Terminal
) -> None:
    """Restore the workspace of BENTO, one of comfy-pack's or of ours, as `restore` does; with comfy-pack's flags."""
    from cpack_build.cli.comfypack import source_of
    from cpack_build.cli.restore import restored_to

    with source_of(bento, context=context, terminal=terminal) as source:
        restored_to(source, workspace, chosen, trust=trust, terminal=terminal)


def made_of(contents: Contents, name: str, version: str | None, terminal: Terminal) -> Bento:
    """The Bento *name* of *contents*, in BentoML's store."""
    from cpack_build.deploy.bento import make_bento
    from cpack_build.fetch.store import Store

    store = Store()
    return make_bento(
        contents,
        name,
        version=version,
        sha256_of=lambda path: store.adopt(path).sha256,
        progress=terminal.progress,
    )


def _export(made: Bento, output: Path | None) -> None:
    if output is None:
        return
    from cpack_build.deploy.bento import require_bentoml
    from cpack_build.errors import writing

    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        require_bentoml().bentos.export_bento(made.tag, str(output))


def _tell(made: Bento, terminal: Terminal, output: Path | None) -> None:
    """Say what became of it."""
    terminal.result(
        {
            "tag": made.tag,
            "path": str(made.path),
            "thin": made.thin,
            "models": list(made.models),
            "existed": made.existed,
            "written": made.written,
            "shared": made.shared,
            **({"exported": str(output)} if output is not None else {}),
        }
    )
    kind = "thin" if made.thin else "self-contained"
    if made.existed:
        terminal.say(f"{made.tag} is in BentoML's store already ({kind}).")
    else:
        shared = f", {amount(made.shared, None, 'B')} shared" if made.shared else ""
        terminal.say(f"{made.tag}  {kind}, {amount(made.written, None, 'B')} written{shared}")
    if output is not None:
        terminal.say(f"exported to {output}")
    tag = shlex.quote(made.tag)
    terminal.say(f"  bentoml serve {tag}\n  TMPDIR=$PWD bentoml containerize {tag}")


# -- what a Bento is made of -------------------------------------------------------------------------------------------


@contextmanager
def contents_of(
    source: str, chosen: Chosen, downloads: Downloads, *, thin: bool | None, trust: bool, terminal: Terminal
) -> Iterator[tuple[Contents, str]]:
    """What the Bento of *source* is made of, for as long as the context lasts, and how it is called by default.

    Raises what the build of a pack's image raises, or the source of an image.
    """
    from cpack_build.cli.export import name_of
    from cpack_build.cli.sources import opened_at
    from cpack_build.deploy.bento import bento_name, require_bentoml
    from cpack_build.errors import UsageError
    from cpack_build.fetch.store import Store
    from cpack_build.oci.reference import Reference, parse_image_name
    from cpack_build.restore.naming import pack_path

    require_bentoml()
    store = Store()
    sources = chosen.sources(chosen.alone(), offline=downloads.offline)

    def contents(image: Image, reference: Reference | None) -> Contents:
        return _contents(image, source, store=store, reference=reference, sources=sources, terminal=terminal)

    if (path := pack_path(source)) is not None:
        if thin:
            raise UsageError(
                f"{source} is a pack, and a thin Bento names an image in a registry.",
                hint="Push it first: cpack-build image PACK --push REF; then cpack-build bento REF.",
            )
        with _built(path, chosen, downloads, trust=trust, terminal=terminal) as (image, own_name):
            yield contents(image, None), bento_name(own_name)
        return
    name = parse_image_name(source)
    if thin and not isinstance(name, Reference):
        raise UsageError(
            f"{source} is no image in a registry, and a thin Bento names one.",
            hint="Push it first with `cpack-build push`, or leave --thin out.",
        )
    with opened_at(source, chosen, store=store, offline=downloads.offline, terminal=terminal) as found:
        if isinstance(found, Path):  # a pack that was pushed
            with _built(found, chosen, downloads, trust=trust, terminal=terminal) as (image, own_name):
                yield contents(image, None), bento_name(own_name)
            return
        is_thin = isinstance(name, Reference) and thin is not False
        reference = Reference(name.registry, name.repository, None, found.digest) if is_thin else None  # type: ignore[union-attr]
        yield contents(found, reference), bento_name(name_of(source))


@contextmanager
def _built(
    path: Path, chosen: Chosen, downloads: Downloads, *, trust: bool, terminal: Terminal
) -> Iterator[tuple[Image, str]]:
    """The image of the pack at *path*, which is locked first where there is no lock."""
    from cpack_build.backends.embedded import Embedded
    from cpack_build.backends.protocol import Request
    from cpack_build.cli.image import find_locks
    from cpack_build.cli.lock import make_locks
    from cpack_build.cli.lockfile import lock_file
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import UsageError
    from cpack_build.fetch.store import Store
    from cpack_build.oci.types import ImageIndex

    read = read_pack(path)
    read.served()
    settings = chosen.settings(read)
    store = Store()
    file = lock_file(read)
    bundle = downloads.opened(store, progress=terminal.progress)
    sources = downloads.sources(settings, chosen)
    locks = find_locks(read, settings, file, must=False)
    if locks is None:
        locks = make_locks(read, settings, store=store, sources=sources, trust=trust, terminal=terminal)
        file.write(locks)
    request = Request(
        locks,
        documents=documents_of(read, locks),
        pack=read,
        places={lock.platform: downloads.places(settings, bundle, lock) for lock in locks},
        store=store,
        sources=sources,
        siblings=locks,
        trust=trust,
        progress=terminal.progress,
    )
    with Embedded().built(request) as image:
        if isinstance(image, ImageIndex):
            raise UsageError("A Bento is for one platform.", hint="Name one with --platform.")
        yield image, read.name


def _contents(
    image: Image, source: str, *, store: Store, reference: Any, sources: Sources, terminal: Terminal
) -> Contents:
    from cpack_build.deploy.bento import Contents
    from cpack_build.deploy.bentomodels import ModelSource
    from cpack_build.fetch.http import Offline, Sources
    from cpack_build.fetch.mirrors import Mirrors
    from cpack_build.image.base import require_quiet_base
    from cpack_build.lock.schema import BaseImage
    from cpack_build.oci.compressed import compressed_image, parse_compression
    from cpack_build.oci.reference import Reference, parse_image_name
    from cpack_build.restore.artifact import read_artifact
    from cpack_build.restore.models import bring_model

    if reference is None:  # a Dockerfile's ADD unpacks no zstd
        image = compressed_image(image, parse_compression("none"), store=store, progress=terminal.progress)
    artifact = read_artifact(image, name=source)
    models = []
    wanted = {model.sha256: model for model in artifact.lock.models} if reference is None else {}
    for model in wanted.values():
        file = bring_model(
            model,
            artifact=artifact,
            folders=(),
            store=store,
            sources=Sources(Mirrors({}), Offline()),
            progress=terminal.progress,
        )
        models.append(ModelSource(file.path, model.sha256, model.size, file.path == store.blob_path(model.sha256)))
    base = None
    if isinstance(artifact.lock.base, BaseImage) and artifact.lock.base.reference != "layout":
        named = parse_image_name(artifact.lock.base.reference)
        if isinstance(named, Reference):
            if reference is None:  # its Dockerfile begins from the base itself
                require_quiet_base(
                    artifact.lock.base, platform=image.platform, name=artifact.lock.base.reference, store=store,
                    sources=sources,
                )  # fmt: skip
            base = Reference(named.registry, named.repository, None, artifact.lock.base.digest)
    return Contents(
        image,
        tuple((layer.kind, layer.blob) for layer in artifact.layers),
        artifact.documents,
        tuple(models),
        gpu=artifact.lock.target != "cpu",
        reference=reference,
        base=base,
    )
