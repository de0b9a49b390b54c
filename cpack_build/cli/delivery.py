"""Where an image goes: what ``--output`` and ``-t`` mean, and the line that runs the image from there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpack_build.errors import UsageError
from cpack_build.oci.reference import (
    ArchiveName,
    EngineName,
    ImageName,
    LayoutName,
    Reference,
    parse_image_name,
    parse_reference,
)
from cpack_build.progress import Progress

if TYPE_CHECKING:
    from cpack_build.fetch.http import Sources
    from cpack_build.lock.schema import Lock
    from cpack_build.oci.types import Image, ImageIndex

__all__ = ["Destination", "choose", "default_reference", "deliver", "named", "own_image", "places_of_base"]

_PUBLISH = "-p 3000:3000"


@dataclass(frozen=True)
class Destination:
    """One place for the image, and the *reference* under which it goes there."""

    place: ImageName
    reference: Reference

    @property
    def shown(self) -> str:
        """As it would be written after ``--output``."""
        if isinstance(self.place, EngineName):
            return f"{self.place.engine}:{self.reference.familiar}"
        return str(self.place)

    @property
    def run_line(self) -> str:
        """The command that runs the image from here."""
        name = shlex.quote(self.reference.familiar)
        if isinstance(self.place, EngineName):
            return f"{self.place.engine} run --rm {_PUBLISH} {name}"
        if isinstance(self.place, LayoutName):
            tagged = f"oci:{self.place.path}:{self.place.tag or self.reference.tag or 'latest'}"
            return f"podman run --rm {_PUBLISH} {shlex.quote(tagged)}"
        if isinstance(self.place, Reference):
            return f"docker run --rm {_PUBLISH} {name}"
        assert isinstance(self.place, ArchiveName)
        return f"docker load -i {shlex.quote(str(self.place.path))} && docker run --rm {_PUBLISH} {name}"


def default_reference(pack: Path) -> Reference:
    """What an image is called when nobody says: the pack's name in the letters that a repository may have."""
    name = pack.name.removesuffix(".zip").removesuffix(".cpack").lower()
    name = re.sub(r"[^a-z0-9]+", "-", name).strip("-")[:128].strip("-")
    return parse_reference(f"{name or 'workflow'}:latest")


def named(tag: str) -> Reference:
    """What ``-t`` calls an image. Raises :class:`UsageError` for a digest, which it cannot have yet."""
    reference = parse_reference(tag)
    if reference.digest:
        raise UsageError(f"-t {tag!r}: an image that is being built has no digest yet.", hint="Leave the @… out.")
    return reference if reference.tag else Reference(reference.registry, reference.repository, "latest")


def choose(
    outputs: Sequence[str], *, tag: str | None, pack: Path, pushes: Sequence[str] = ()
) -> tuple[Destination, ...]:
    """The places that ``--output``, ``--push`` and ``-t`` ask for; without the first two Docker if it answers, else
    podman, else ``NAME.oci/`` beside the pack.

    Raises :class:`UsageError` for a name that is none or a place named twice.
    """
    reference = named(tag) if tag else default_reference(pack)
    if not outputs and not pushes:
        return (_default(reference, pack),)
    chosen = tuple(_destination(text, reference) for text in outputs) + tuple(_pushed(text) for text in pushes)
    for index, destination in enumerate(chosen):
        if destination.shown in (other.shown for other in chosen[:index]):
            raise UsageError(f"{destination.shown} is given twice.")
    return chosen


def deliver(image: Image | ImageIndex, destination: Destination, *, progress: Progress) -> None:
    """Put *image* where *destination* says, which is not a registry: those are pushed to together.

    An engine gets the image for this machine. Raises what the engine, layout or archive raises, and
    :class:`UsageError` where an index has no image for this machine.
    """
    place = destination.place
    if isinstance(place, LayoutName):
        from cpack_build.oci.layout import write_layout

        write_layout(image, place.path, tag=place.tag, name=destination.reference, progress=progress)
    elif isinstance(place, ArchiveName):
        from cpack_build.oci.archive import write_archive

        write_archive(image, place.path, name=destination.reference, progress=progress)
    else:
        from cpack_build.oci.engines import open_engine

        assert isinstance(place, EngineName)
        open_engine(place).load(own_image(image), destination.reference, progress=progress)


def places_of_base(lock: Lock, sources: Sources) -> list[Reference]:
    """Where the base's blobs lie, as the base has them: a push to the same registry has them mounted from there."""
    from cpack_build.lock.schema import BaseImage
    from cpack_build.oci.sources import open_source

    if not isinstance(lock.base, BaseImage) or lock.base.reference == "layout":
        return []
    name = parse_image_name(lock.base.reference)
    if not isinstance(name, Reference):
        return []
    mirrored = open_source(name, mirrors=sources.mirrors, access=sources.registries).reference
    return [name, *([mirrored] if mirrored not in (None, name) else [])]


def own_image(image: Image | ImageIndex) -> Image:
    """The image for this machine. Raises :class:`UsageError` where an index has none."""
    from cpack_build.oci.types import Image

    if isinstance(image, Image):
        return image
    from cpack_build.lock.machine import this_platform  # Which brings all that reads packs.

    found = image.image_for(this_platform())
    if found is None:
        have = " and ".join(one.platform for one in image.images)
        raise UsageError(
            f"No engine here runs any of the images: they are for {have}.", hint="Write them to oci:DIR, or push them."
        )
    return found


def _destination(text: str, reference: Reference) -> Destination:
    place = parse_image_name(text)
    if isinstance(place, Reference):
        if "/" not in text:
            raise UsageError(
                f"--output {text!r} names no place.",
                hint=f"Write docker, podman, oci:DIR, oci-archive:FILE or docker-archive:FILE; or --push {text}.",
            )
        return _pushed(text)
    if isinstance(place, LayoutName) and place.digest:
        raise UsageError(f"--output {text!r}: the image has no digest yet.", hint="Leave the @… out.")
    if isinstance(place, EngineName) and place.reference is not None:
        return Destination(place, place.reference)
    return Destination(place, reference)


def _pushed(text: str) -> Destination:
    reference = parse_reference(text)
    if reference.digest:
        raise UsageError(f"--push {text!r}: the image has no digest yet.", hint="Leave the @… out.")
    reference = Reference(reference.registry, reference.repository, reference.tag or "latest")
    return Destination(reference, reference)


def _default(reference: Reference, pack: Path) -> Destination:
    from cpack_build.oci.engines import DockerEngine, find_engine

    engine = find_engine()
    if engine is None:
        name = pack.name.removesuffix(".zip").removesuffix(".cpack")
        return Destination(LayoutName(pack.with_name(f"{name}.oci")), reference)
    return Destination(EngineName("docker" if isinstance(engine, DockerEngine) else "podman"), reference)
