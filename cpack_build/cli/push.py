"""``cpack-build push OBJECT REF``: an image that lies in a folder, a file or a registry, or a pack, goes to a registry.

Also what ``image --push`` shares with it: the options of a push, and how the result is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cpack_build.cli.options import access_of, access_options, compression_option, registry_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.fetch.store import Store
    from cpack_build.oci.compressed import Compression
    from cpack_build.oci.modelimage import ModelImage
    from cpack_build.oci.push import Pushed
    from cpack_build.oci.reference import Reference
    from cpack_build.oci.transport import Access
    from cpack_build.oci.types import Image, ImageIndex
    from cpack_build.progress import Progress

__all__ = [
    "Done",
    "PushOptions",
    "access_for",
    "compressed",
    "image_document",
    "own_platform",
    "push",
    "tell_of_zstd",
]

F = TypeVar("F", bound=Callable[..., Any])


@click.command(
    epilog="Example: cpack-build push oci:upscale.oci registry.example/team/upscale:1    "
    "(exit codes: docs/exit-codes.md)"
)
@click.argument("image", metavar="OBJECT")
@click.argument("reference", metavar="REF", required=False)
@click.option("--also", multiple=True, metavar="REF", help="One more name for it; may be given several times.")
@click.option(
    "--platform",
    type=click.Choice(["linux/amd64", "linux/arm64"]),
    help="Which of OBJECT's images; by default all of them.",
)
@click.option(
    "--models",
    "models_to",
    metavar="REF",
    help="A repository where each model of the image gets an image of its own, made of the same layer.",
)
@click.option(
    "--without-models", is_flag=True, help="Leave the models out of REF: for who mounts those that --models pushed."
)
@compression_option
@click.option("--dry-run", is_flag=True, help="Ask what the registry has, and send nothing.")
@registry_options
@access_options
@terminal_options
def push(
    image: str,
    reference: str | None,
    also: tuple[str, ...],
    platform: str | None,
    without_models: bool,
    compression: str | None,
    dry_run: bool,
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
    **flags: Any,
) -> None:
    """Push OBJECT to the registry as REF: an image (oci:DIR, oci-archive:FILE, docker-archive:FILE or a registry's), or
    a pack (NAME.cpack.zip), which `cpack-build pull` gives back. With --models alone only an image's models are pushed.

    REF may be bentocloud:NAME as well: the image or pack becomes the Bento NAME and is pushed to BentoCloud.

    An image's layers go as they are, and its digest stays, unless --compression says otherwise; models are never
    compressed. Logins are those of docker and podman and of `cpack-build login`, or CPACK_REGISTRY_USER and
    CPACK_REGISTRY_PASSWORD.
    """
    from cpack_build.oci.compressed import parse_compression
    from cpack_build.oci.reference import Reference, parse_image_name, parse_reference
    from cpack_build.oci.sources import open_source

    if reference is not None and reference.startswith("bentocloud:"):
        from cpack_build.cli.deploying.bentocloud import push_to
        from cpack_build.cli.options import Chosen

        context = click.get_current_context()
        given = [
            option.opts[0]
            for option in context.command.params
            if option.name in ("also", "compression", "without_models", *flags)
            and context.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            raise click.UsageError(f"{', '.join(given)}: for registries, not for BentoCloud.")
        chosen = Chosen(None, {"platform": platform} if platform else {}, insecure, ca)
        push_to(image, reference.removeprefix("bentocloud:"), dry_run=dry_run, chosen=chosen, terminal=terminal)
        return
    found: Image | ImageIndex
    options = PushOptions(**flags)
    if Path(image).is_file() and (options.sbom or options.provenance):
        raise click.UsageError("--sbom and --provenance are about an image, not a pack.")
    if reference is None and (also or not options.models_to):
        raise click.UsageError("Missing argument 'REF': where to push it.")
    targets = [parse_reference(text) for text in (*([reference] if reference else ()), *also)]
    access = access_for([*targets, *options.places], insecure=insecure, ca=ca)
    how = parse_compression(compression) if compression is not None else None
    if Path(image).is_file():
        if without_models:
            raise click.UsageError("--without-models is for images.")
        found, mounts = _pack(Path(image)), []
    else:
        name = parse_image_name(image)
        source = open_source(name, access=access)
        index = source.index() if platform is None else None
        found = index or source.as_image(platform or own_platform())
        if how is not None:
            found = compressed(found, how, progress=terminal.progress)
        tell_of_zstd(found, terminal)
        mounts = [name] if isinstance(name, Reference) else []
    whole = found
    if without_models:
        found = _without_models(found)
    done = options.push(
        found, targets, access=access, mount_from=mounts, models_of=whole, dry_run=dry_run, terminal=terminal
    )
    is_pack = Path(image).is_file()
    terminal.result(
        {
            **({"digest": found.digest, "size": found.size} if is_pack else image_document(found)),
            **done.document(),
            **({"dry_run": True} if dry_run else {}),
        }
    )
    done.say(terminal, dry_run=dry_run)


@dataclass(frozen=True)
class PushOptions:
    """What :func:`~cpack_build.cli.options.registry_options` asks for."""

    jobs: int
    blob_limit: int | None
    layer_limit: int | None
    attach: tuple[Path, ...] = ()
    models_to: str | None = None
    sbom: bool = False
    provenance: bool = False

    @property
    def places(self) -> list[Reference]:
        """Where models go, besides the image. Raises :class:`UsageError`."""
        from cpack_build.oci.modelimage import check_models
        from cpack_build.oci.reference import parse_reference

        places = [parse_reference(self.models_to)] if self.models_to else []
        for place in places:
            check_models((), place)
        return places

    @property
    def limit(self) -> int | None:
        """Bytes of the largest blob, if it is set by hand."""
        return None if self.blob_limit is None else self.blob_limit << 20

    def __post_init__(self) -> None:
        """What cannot be attached is better known before the push, or the build, than after it."""
        if self.attach:
            from cpack_build.oci.artifact import PACK, kind_of

            for path in self.attach:
                if kind_of(path) == PACK:
                    _pack(path)

    def push(
        self,
        image: Image | ImageIndex,
        targets: Sequence[Reference],
        *,
        access: Access,
        mount_from: Sequence[Reference] = (),
        models_of: Image | ImageIndex | None = None,
        built_here: bool = False,
        dry_run: bool = False,
        terminal: Terminal,
    ) -> Done:
        """Push *image* to *targets*, and attach to it in each repository what is to be attached. The models that get
        images of their own are those of *models_of*, where *image* has none any more. Its provenance names us as the
        builder if it was *built_here*, by this run."""
        from cpack_build.fetch.store import Store
        from cpack_build.oci.modelimage import check_models
        from cpack_build.oci.push import push as push_image
        from cpack_build.oci.push import push_index
        from cpack_build.oci.types import ImageIndex

        memo = Store()
        models = _models_for(models_of or image, self.places, dry_run=dry_run, progress=terminal.progress)
        for place in self.places:
            check_models(models, place, blob_limit=self.limit)  # Before the image has gone.
        given: dict[str, Any] = {
            "jobs": self.jobs,
            "blob_limit": self.limit,
            "layer_limit": self.layer_limit,
            "access": access,
            "mount_from": mount_from,
            "memo": memo,
            "dry_run": dry_run,
            "progress": terminal.progress,
        }
        if isinstance(image, ImageIndex):
            pushed = push_index(image, targets, **given)
        else:
            pushed = push_image(image, targets, **given)
        places = {target.name: target for target in targets}.values() if not dry_run else ()
        attached = [one for place in places for one in self._attach(image, place, access, memo, terminal, built_here)]
        sources = [*targets, *mount_from]
        made = [one for place in self.places for one in self._models(models, place, sources, access, memo, terminal)]
        return Done(tuple(pushed), tuple(attached), tuple(made))

    def _attach(
        self, image: Image | ImageIndex, place: Reference, access: Access, memo: Store, terminal: Terminal,
        built_here: bool,
    ) -> tuple[Pushed, ...]:  # fmt: skip
        papers = tuple(kind for kind, wanted in (("sbom", self.sbom), ("provenance", self.provenance)) if wanted)
        if not (self.attach or papers):
            return ()
        from tempfile import TemporaryDirectory

        from cpack_build.oci.artifact import attach
        from cpack_build.oci.types import ImageIndex

        given: dict[str, Any] = {"access": access, "memo": memo, "jobs": self.jobs, "progress": terminal.progress}
        done = attach(self.attach, image.manifest.descriptor, place, **given) if self.attach else ()
        if papers:
            from cpack_build.cli.sbom import papers_of

            # Each platform has a lock of its own.
            for one in image.images if isinstance(image, ImageIndex) else (image,):
                with TemporaryDirectory() as folder:
                    files = papers_of(one, papers, Path(folder), name=place.name, built_here=built_here)
                    done += attach(files, one.manifest.descriptor, place, **given)
        return done

    def _models(
        self,
        models: Sequence[ModelImage],
        place: Reference,
        sources: Sequence[Reference],
        access: Access,
        memo: Store,
        terminal: Terminal,
    ) -> tuple[Pushed, ...]:
        from cpack_build.oci.modelimage import push_models

        return push_models(
            models,
            place,
            access=access,
            mount_from=sources,
            memo=memo,
            jobs=self.jobs,
            blob_limit=self.limit,
            progress=terminal.progress,
        )


@dataclass(frozen=True)
class Done:
    """What a push did."""

    pushed: tuple[Pushed, ...]
    attached: tuple[Pushed, ...] = ()
    models: tuple[Pushed, ...] = ()

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        told = {"pushed": self.pushed, "attached": self.attached, "models": self.models}
        return {key: [push_document(one) for one in pushed] for key, pushed in told.items() if pushed}

    def say(self, terminal: Terminal, *, dry_run: bool = False) -> None:
        """For people."""
        for one in self.pushed:
            terminal.say(push_line(one, dry_run=dry_run))
        for one in self.attached:
            terminal.say(f"  with {push_line(one)}")
        for one in self.models:
            terminal.say(f"  model {push_line(one)}")


def _without_models(image: Image | ImageIndex) -> Image | ImageIndex:
    from cpack_build.oci.modelimage import without_models
    from cpack_build.oci.types import ImageIndex

    if isinstance(image, ImageIndex):
        return ImageIndex(tuple(map(without_models, image.images)))
    return without_models(image)


def _models_for(
    image: Image | ImageIndex, places: list[Reference], *, dry_run: bool, progress: Progress
) -> tuple[ModelImage, ...]:
    """The models of *image*, if they are to go anywhere, and a word on those that have no layer of their own.

    Raises :class:`UsageError` when it has none.
    """
    if not places or dry_run:
        return ()
    from cpack_build.errors import UsageError
    from cpack_build.oci.modelimage import model_images
    from cpack_build.oci.types import ImageIndex

    one = image.images[0] if isinstance(image, ImageIndex) else image  # the same on each platform
    models = model_images(one)
    shared = [layer.descriptor.annotations.get("io.cpack.models.sha256", "") for layer in one.layers]
    if count := sum(len(listed.split(",")) for listed in shared if listed):
        progress.note(f"{count} small models share layers in this image, and get no image of their own.")
    if not models:
        raise UsageError("The image has no model that could be pushed.", hint="Leave --models out.")
    return models


def compressed(found: Image | ImageIndex, how: Compression, *, progress: Progress) -> Image | ImageIndex:
    """*found*, or each image of it, with its layers compressed *how*."""
    from cpack_build.fetch.store import Store
    from cpack_build.oci.compressed import compressed_image
    from cpack_build.oci.types import ImageIndex

    store = Store()
    if not isinstance(found, ImageIndex):
        return compressed_image(found, how, store=store, progress=progress)
    return ImageIndex(tuple(compressed_image(image, how, store=store, progress=progress) for image in found.images))


def image_document(found: Image | ImageIndex) -> dict[str, Any]:
    """An image for ``--json``; of an index, each of its images below ``images``."""
    from cpack_build.oci.types import ImageIndex

    if isinstance(found, ImageIndex):
        return {
            "digest": found.digest, "size": found.size, "images": [image_document(image) for image in found.images],
        }  # fmt: skip
    return {
        "image_id": found.id,
        "digest": found.digest,
        "platform": found.platform,
        "size": found.size,
        "layers": len(found.layers),
    }


def _pack(path: Path) -> Image:
    """The pack at *path* as an artifact, if it is one that may be shown to others."""
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import UnsafeInput
    from cpack_build.fetch.urls import without_secrets
    from cpack_build.oci.artifact import PACK, file_artifact

    for name, data in read_pack(path).documents().items():
        if without_secrets(data) != data:
            raise UnsafeInput(
                f"{path} has a token in an address in its {name}, which everybody who may pull it would see.",
                hint="Remove it there, or make the pack again.",
            )
    return file_artifact(path, PACK)


def access_for(targets: Sequence[Reference], *, insecure: Sequence[str], ca: Path | None) -> Access:
    """How *targets* are reached. Raises :class:`UsageError` when it is not clear whose the password in the environment
    is."""
    import os

    from cpack_build.errors import UsageError

    registries = sorted({target.registry for target in targets})
    if os.environ.get("CPACK_REGISTRY_USER") and not os.environ.get("CPACK_REGISTRY") and len(registries) > 1:
        raise UsageError(
            f"CPACK_REGISTRY_USER is set, and {' and '.join(registries)} are pushed to.",
            hint="Name the one that it is for in CPACK_REGISTRY.",
        )
    return access_of(insecure, ca, own=registries[0] if len(registries) == 1 else None)


def tell_of_zstd(image: Image | ImageIndex, terminal: Terminal) -> None:
    """Say who cannot pull *image*."""
    from cpack_build.oci.compressed import takes_zstd
    from cpack_build.oci.types import ImageIndex

    if any(map(takes_zstd, image.images if isinstance(image, ImageIndex) else [image])):
        terminal.progress.note("Docker before 23.0 cannot pull zstd layers; for it, push with --compression gzip.")


def push_document(pushed: Pushed) -> dict[str, Any]:
    """What a push did, for ``--json``; sizes in bytes."""
    reference = pushed.reference
    return {
        "reference": f"{reference.name}@{reference.digest}",
        "tag": reference.tag,
        "changed": pushed.changed,
        "sent": pushed.sent,
        "mounted": pushed.mounted,
        "present": pushed.present,
        "requests": pushed.requests,
    }


def push_line(pushed: Pushed, *, dry_run: bool = False) -> str:
    """The same for people."""
    if not pushed.changed:
        return f"{pushed.reference}  unchanged"
    parts = [
        f"{amount(count, None, 'B')} {word}"
        for count, word in (
            (pushed.sent, "would be sent" if dry_run else "sent"),
            (pushed.mounted, "mounted"),
            (pushed.present, "already there"),
        )
        if count
    ]
    return f"{pushed.reference}  {', '.join(parts)}"


def own_platform() -> str:
    import platform

    machine = platform.machine().lower()
    return "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
