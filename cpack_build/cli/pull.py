"""``cpack-build pull REF``: what lies in a registry comes here: an image, or a pack that was pushed as one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.options import access_of, access_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cli.delivery import Destination
    from cpack_build.oci.artifact import Artifact
    from cpack_build.oci.reference import Reference
    from cpack_build.oci.sources import ImageSource
    from cpack_build.oci.transport import Access
    from cpack_build.oci.types import ImageIndex

__all__ = ["pull"]


@click.command(
    epilog="Example: cpack-build pull registry.example/team/upscale:1 -o oci:upscale.oci    "
    "(exit codes: docs/exit-codes.md)"
)
@click.argument("reference", metavar="REF")
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="WHERE",
    help="docker, podman, oci:DIR, oci-archive:FILE or docker-archive:FILE, and may be given several times; "
    "for a pack FILE or DIR.",
)
@click.option(
    "--platform",
    type=click.Choice(["linux/amd64", "linux/arm64"]),
    help="Which of REF's images; by default this machine's for an engine, and all of them for a folder or file.",
)
@click.option(
    "--attached",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Only what is attached to it (pack, lock, SBOM, provenance), into this folder.",
)
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, help="Blobs to receive at once.")
@click.option(
    "--mirror", metavar="PREFIX=PREFIX", help="Take what begins with the first from the second.", multiple=True
)
@click.option("--dry-run", is_flag=True, help="Say what would come, and fetch no layer.")
@access_options
@terminal_options
def pull(
    reference: str,
    outputs: tuple[str, ...],
    platform: str | None,
    attached: Path | None,
    jobs: int,
    mirror: tuple[str, ...],
    dry_run: bool,
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
) -> None:
    """Pull REF, with every byte proved, and give the image to Docker, podman, a folder or a file.

    Without -o it goes to Docker if it answers, else to podman, else to NAME.oci/ here; a pack is written under its own
    name here. Blobs and models that are here already are not asked for; a pull that was cut goes on where it was.
    Logins are those of docker and podman, and of `cpack-build login`.
    """
    from cpack_build.cli.push import own_platform
    from cpack_build.fetch.mirrors import Mirrors
    from cpack_build.fetch.store import Store
    from cpack_build.oci.artifact import read_artifact
    from cpack_build.oci.sources import open_source

    name = _registry_name(reference)
    _check_outputs(outputs, name)
    access = access_of(insecure, ca, own=name.registry)
    source = open_source(name, mirrors=Mirrors.parse(mirror), store=Store(), access=access)
    if platform is None and attached is None and _takes_all(outputs, name) and (index := source.index()) is not None:
        _pull_image(source, index, name, outputs, jobs=jobs, dry_run=dry_run, terminal=terminal)
        return
    platform = platform or own_platform()
    descriptor, manifest = source.manifest(platform)
    if attached is not None:
        # to the image of this platform, or to all of them: an index is what was pushed with them
        digests = tuple(dict.fromkeys((source.digest, descriptor.digest)))
        _pull_attached(source, digests, attached, access=access, dry_run=dry_run, terminal=terminal)
    elif (artifact := read_artifact(str(name), manifest)) is not None:
        _pull_file(source, artifact, descriptor.digest, outputs, dry_run=dry_run, terminal=terminal)
    else:
        _pull_image(source, platform, name, outputs, jobs=jobs, dry_run=dry_run, terminal=terminal)


def _takes_all(outputs: tuple[str, ...], name: Reference) -> bool:
    """Whether images for all platforms may go there: an engine has use for its own alone."""
    from cpack_build.oci.reference import ArchiveName, LayoutName

    if not outputs or not all(text.startswith(("docker", "podman", "oci")) for text in outputs):
        return False
    return all(isinstance(item.place, LayoutName | ArchiveName) for item in _destinations(outputs, name))


def _pull_image(
    source: ImageSource,
    which: str | ImageIndex,
    name: Reference,
    outputs: tuple[str, ...],
    *,
    jobs: int,
    dry_run: bool,
    terminal: Terminal,
) -> None:
    from cpack_build.cli.delivery import deliver
    from cpack_build.cli.push import image_document
    from cpack_build.oci.pull import Pulled, PulledIndex, pull_index
    from cpack_build.oci.pull import pull as pull_image

    destinations = _destinations(outputs, name)
    pulled: Pulled | PulledIndex
    if isinstance(which, str):
        pulled = pull_image(source, which, jobs=jobs, dry_run=dry_run, progress=terminal.progress)
    else:
        pulled = pull_index(source, which, jobs=jobs, dry_run=dry_run, progress=terminal.progress)
    image = pulled.image
    if not dry_run:
        for destination in destinations:
            deliver(image, destination, progress=terminal.progress)
    terminal.result(
        {
            "reference": f"{name.name}@{image.digest}",
            "tag": name.tag,
            **image_document(image),
            "received": pulled.received,
            "present": pulled.present,
            "outputs": [{"name": item.shown, "run": item.run_line} for item in destinations],
            **({"dry_run": True} if dry_run else {}),
        }
    )
    came = "would come" if dry_run else "came"
    parts = [f"{amount(pulled.received, None, 'B')} {came}"] if pulled.received else []
    parts += [f"{amount(pulled.present, None, 'B')} here already"] if pulled.present else []
    terminal.say(f"{name.name}@{image.digest}  {', '.join(parts)}")
    for destination in destinations:
        terminal.say(f"{destination.shown}\n  {destination.run_line}")


def _pull_file(
    source: ImageSource, artifact: Artifact, digest: str, outputs: tuple[str, ...], *, dry_run: bool, terminal: Terminal
) -> None:
    """A pack, or another file that was pushed alone."""
    _registry_of(source)
    paths = [_below(Path(text), artifact) if Path(text).is_dir() else Path(text) for text in outputs]
    paths = paths or [_below(Path(), artifact)]
    if not dry_run:
        _write(source, artifact, paths, terminal)
    _tell_files(source, digest, [(artifact, path) for path in paths], dry_run=dry_run, terminal=terminal)


def _pull_attached(
    source: ImageSource, digests: tuple[str, ...], folder: Path, *, access: Access, dry_run: bool, terminal: Terminal
) -> None:
    """Everything that is attached to *digests*, each under its own name; of two with one name the second by its
    digest."""
    from cpack_build.errors import Unresolvable
    from cpack_build.oci.artifact import attached

    registry = _registry_of(source)
    every = (one for digest in digests for one in attached(registry, digest, access=access))
    found = {(one.blob.digest, one.name): one for one in every}.values()
    if not found:
        raise Unresolvable(
            f"Nothing is attached to {source.name} ({' or '.join(digests)}).", hint="Push with --attach FILE."
        )
    written: list[tuple[Artifact, Path]] = []
    for artifact in found:
        path = folder / artifact.name
        if path in (other for _, other in written):
            path = folder / artifact.blob.digest.replace(":", "-")
        _below(folder, artifact, path.name)
        if not dry_run:
            _write(source, artifact, [path], terminal)
        written.append((artifact, path))
    _tell_files(source, digests[0], written, dry_run=dry_run, terminal=terminal)


def _write(source: ImageSource, artifact: Artifact, paths: list[Path], terminal: Terminal) -> None:
    """The file of *artifact* at each of *paths*, proved; a pack is one that can be read, too."""
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import BadInput, writing
    from cpack_build.oci.artifact import PACK
    from cpack_build.oci.pull import pull_blob
    from cpack_build.oci.storage import whole_file

    blob = pull_blob(source, artifact.blob, progress=terminal.progress)
    if artifact.kind == PACK:
        try:
            read_pack(blob.path)
        except BadInput as error:
            raise BadInput(
                f"What {source.name} holds is no pack: {error.message}", hint="Nothing was written."
            ) from error
    for path in paths:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file, writing(path):
            for chunk in blob.chunks():
                file.write(chunk)


def _tell_files(
    source: ImageSource, digest: str, written: list[tuple[Artifact, Path]], *, dry_run: bool, terminal: Terminal
) -> None:
    terminal.result(
        {
            "reference": f"{_registry_of(source).name}@{digest}",
            "files": [
                {"type": item.kind, "sha256": item.blob.digest[7:], "size": item.blob.size, "path": str(path)}
                for item, path in written
            ],
            **({"dry_run": True} if dry_run else {}),
        }
    )
    for item, path in written:
        shown = amount(item.blob.size, None, "B")
        terminal.say(f"{path}  {shown}, {item.blob.digest}" + ("  would be written" if dry_run else ""))


def _below(folder: Path, artifact: Artifact, name: str = "") -> Path:
    """Where *artifact* goes in *folder* under the name that it gives itself: over nothing that is something else."""
    from cpack_build.errors import UnsafeInput
    from cpack_build.fetch.store import Store

    path = folder / (name or artifact.name)
    if os.path.lexists(path) and not (path.is_file() and Store().adopt(path).sha256 == artifact.blob.digest[7:]):
        raise UnsafeInput(
            f"It calls itself {path.name}, and there is another {path} already.",
            hint="Name a file with -o FILE, or another folder.",
        )
    return path


def _registry_of(source: ImageSource) -> Reference:
    from cpack_build.errors import UsageError

    if source.reference is None:
        raise UsageError(f"{source.name} is mapped to a folder or file, from which only images are read.")
    return source.reference


def _registry_name(text: str) -> Reference:
    from cpack_build.errors import UsageError
    from cpack_build.oci.reference import Reference, parse_image_name

    name = parse_image_name(text)
    if not isinstance(name, Reference):
        raise UsageError(f"{text} is here and in no registry.", hint="Write a reference: registry.example/name:tag.")
    return name


def _check_outputs(outputs: tuple[str, ...], name: Reference) -> None:
    """What can be said before anything is asked: whether REF is an image is not known yet."""
    from cpack_build.oci.engines import open_engine
    from cpack_build.oci.reference import EngineName

    if any(text.startswith(("docker", "podman", "oci")) for text in outputs):
        for destination in _destinations(outputs, name):
            if isinstance(destination.place, EngineName):
                open_engine(destination.place).require()  # Better known now than after the download.


def _destinations(outputs: tuple[str, ...], name: Reference) -> tuple[Destination, ...]:
    """Where an image goes. By a digest alone it is called after that: ``latest`` may be another image."""
    from cpack_build.cli.delivery import choose
    from cpack_build.errors import UsageError
    from cpack_build.oci.reference import Reference

    tag = name.tag or (name.digest or "")[7:19] or "latest"
    chosen = choose(outputs, tag=f"{name.name}:{tag}", pack=Path(name.repository.rpartition("/")[2]))
    for destination in chosen:
        if isinstance(destination.place, Reference):
            raise UsageError(
                f"--output {destination.shown} is a registry's.",
                hint=f"Copy it there with `cpack-build push {name} {destination.shown}`.",
            )
    return chosen
