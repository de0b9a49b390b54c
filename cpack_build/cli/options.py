"""The options that several verbs share, and what they become: a :class:`Terminal`, and :class:`Chosen` settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from cpack_build.cli.terminal import ProgressMode, Terminal
from cpack_build.filesystem import expanded

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.fetch.http import Sources
    from cpack_build.image.gather import Places
    from cpack_build.lock.schema import Lock
    from cpack_build.oci.transport import Access

__all__ = [
    "Chosen",
    "access_of",
    "access_options",
    "compression_option",
    "documents_of",
    "form_options",
    "in_settings",
    "pack_argument",
    "places_of",
    "registry_options",
    "settings_options",
    "terminal_options",
]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Chosen:
    """The settings flags of one run. *overrides* is nested as ``cpack.yaml`` is."""

    config: Path | None
    overrides: dict[str, Any]
    insecure: tuple[str, ...] = ()
    """Registries that may lack TLS or a proper certificate."""
    ca: Path | None = None

    def settings(self, pack: Pack) -> Settings:
        """The settings for *pack*: its ``cpack.yaml``, the one beside it or ``--config``, then these flags."""
        from cpack_build.cpack.settings import settings_for

        return settings_for(pack.path, inside=pack.settings_text, config=self.config, overrides=self.overrides)

    def alone(self) -> Settings:
        """The settings where there is no pack: those of ``--config``, then these flags."""
        from cpack_build.cpack.settings import load_settings, parse_settings

        if self.config is not None:
            return load_settings(self.config, overrides=self.overrides)
        return parse_settings("", name="the flags", overrides=self.overrides)

    def sources(self, settings: Settings, *, offline: bool = False) -> Sources:
        """Where bytes come from: the mirrors of *settings*, and registries as the flags let them be reached."""
        from cpack_build.fetch.http import Offline, RequestsTransport, Sources
        from cpack_build.fetch.mirrors import Mirrors

        transport = Offline() if offline else RequestsTransport()
        return Sources(Mirrors(settings.mirrors, offline), transport, registries=access_of(self.insecure, self.ca))


def access_of(insecure: Sequence[str], ca: Path | None, *, own: str | None = None) -> Access:
    """How registries are reached. Raises :class:`UsageError`."""
    from cpack_build.errors import UsageError
    from cpack_build.oci.transport import Access

    for host in insecure:
        if "/" in host or not host:
            raise UsageError(f"--insecure-registry {host!r} is no host.", hint="Write HOST or HOST:PORT.")
    return Access(frozenset(insecure), ca, own)


def access_options(function: F) -> F:
    """The options *insecure* and *ca*: how registries are reached."""
    options = (
        click.option(
            "--insecure-registry",
            "insecure",
            multiple=True,
            metavar="HOST[:PORT]",
            help="A registry that may lack TLS or a proper certificate.",
        ),
        click.option(
            "--ca",
            type=click.Path(path_type=Path),
            envvar="CPACK_REGISTRY_CA",
            metavar="FILE",
            help="Certificates (PEM) that registries may have besides the usual; or CPACK_REGISTRY_CA.",
        ),
    )
    return cast("F", _decorated(function, options))


def documents_of(pack: Pack, locks: Sequence[Lock] = ()) -> dict[str, bytes]:
    """What the image of *locks* carries of *pack*; a token in a URL of its snapshot stays out, and settings that have
    one. Of local nodes whose ``install.py`` ran it carries what the pack has: the layers have what came of it."""
    from cpack_build.fetch.urls import has_credentials, without_secrets
    from cpack_build.lock.captured import members_of

    documents = pack.documents()
    if "snapshot.json" in documents:
        documents["snapshot.json"] = without_secrets(documents["snapshot.json"])
    if pack.settings_text is not None and has_credentials(pack.settings_text):
        del documents["cpack.yaml"]
    for name in sorted({pin.name for lock in locks for pin in lock.local_nodes if pin.installed is not None}):
        documents |= {member: pack.open_member(member) for member in members_of(name, "folder", pack).values()}
    return documents


def places_of(settings: Settings) -> Places:
    """Where on this machine the things that a lock names may lie."""
    from cpack_build.image.gather import Places

    python = settings.python
    return Places(
        base=settings.base,
        models=settings.models,
        find_links=python.find_links,
        index_urls=tuple(url for url in (python.index_url, *python.extra_index_urls) if url),
        index_url=python.index_url,
    )


def compression_option(function: F) -> F:
    """``--compression``, passed as *compression*."""
    option = click.option(
        "--compression",
        metavar="HOW",
        help="Of the layers in a registry: zstd[:LEVEL], gzip[:LEVEL] or none. Docker before 23.0 needs gzip.",
    )
    return option(function)


def form_options(function: F) -> F:
    """``--compression`` and ``--format-revision``, passed as *compression* and *format_revision*."""
    option = click.option("--format-revision", type=int, metavar="N", help="Of the image format; the only one is 1.")
    return compression_option(option(function))


def in_settings(settings: Settings, *, compression: str | None, format_revision: int | None) -> Settings:
    """*settings* with the compression that a flag names. Raises :class:`UsageError` for what is not known."""
    from cpack_build.lock.form import require_revision
    from cpack_build.oci.compressed import parse_compression

    if format_revision is not None:
        require_revision(format_revision)
    if compression is None:
        return settings
    return settings.model_copy(update={"compression": str(parse_compression(compression))})


def pack_argument(function: F) -> F:
    """The argument ``PACK``, passed as *pack*."""
    return click.argument("pack", type=click.Path(path_type=Path))(function)


def terminal_options(function: F) -> F:
    """``--json``, ``--progress``, ``-q`` and ``-v``, passed as *terminal*."""

    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, progress: ProgressMode, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        return function(*args, terminal=Terminal(as_json, quiet, verbose, progress), **kwargs)

    options = (
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
        click.option(
            "--progress",
            type=click.Choice(["auto", "plain", "json", "none"]),
            default="auto",
            show_default=True,
            help="How progress is shown on stderr; auto is bars on a terminal.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Only the result and errors."),
        click.option("-v", "--verbose", is_flag=True, help="With an error, also where in the program it arose."),
    )
    return cast("F", _decorated(wrapped, options))


def registry_options(function: F) -> F:
    """The options of :class:`~cpack_build.cli.push.PushOptions`: *jobs*, *blob_limit* (MiB), *attach* and so on."""
    options = (
        click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, help="Blobs to send at once."),
        click.option(
            "--blob-limit",
            type=click.IntRange(0),
            metavar="MIB",
            help="The largest blob that the registry takes; by default what is known of it, 0 for none.",
        ),
        click.option(
            "--layer-limit",
            type=click.IntRange(0),
            metavar="COUNT",
            help="The most layers that the registry takes; by default what is known of it, 0 for none.",
        ),
        click.option(
            "--attach",
            type=click.Path(path_type=Path),
            multiple=True,
            metavar="FILE",
            help="A pack, lock, SBOM or provenance that is to refer to it in the registry; may be given several times.",
        ),
        click.option("--sbom", is_flag=True, help="Attach its SBOM (CycloneDX), made of the lock that it carries."),
        click.option(
            "--provenance", is_flag=True, help="Attach its SLSA provenance, made of the lock that it carries."
        ),
    )
    return cast("F", _decorated(function, options))


def settings_options(function: F) -> F:
    """The flags that override ``cpack.yaml``, passed as *chosen*."""

    @functools.wraps(function)
    def wrapped(
        *args: Any,
        config: Path | None,
        mirror: tuple[str, ...],
        models: tuple[Path, ...],
        find_links: tuple[str, ...],
        index_url: str | None,
        extra_index_url: tuple[str, ...],
        base: str | None,
        platform: str | None,
        target: str | None,
        python_package: tuple[str, ...],
        exclude_python_package: tuple[str, ...],
        exclude_node: tuple[str, ...],
        no_pickle: bool,
        insecure: tuple[str, ...],
        ca: Path | None,
        **kwargs: Any,
    ) -> Any:
        from cpack_build.fetch.mirrors import Mirrors

        mirrors = Mirrors.parse(mirror).prefixes
        python = {
            "packages": list(python_package),
            "exclude": list(exclude_python_package),
            "index_url": index_url,
            "extra_index_urls": list(extra_index_url),
            "find_links": [absolute(place) for place in find_links],
        }
        overrides = {
            "base": base,
            "platform": platform,
            "target": target,
            "python": {key: value for key, value in python.items() if value},
            "nodes": {"exclude": list(exclude_node)} if exclude_node else {},
            "mirrors": dict(mirrors),
            "models": [str(expanded(folder).absolute()) for folder in models],
            "pickles": "refuse" if no_pickle else None,
        }
        chosen = Chosen(config, {key: value for key, value in overrides.items() if value}, insecure, ca)
        return function(*args, chosen=chosen, **kwargs)

    options = (
        click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings, as cpack.yaml."),
        click.option(
            "--mirror", metavar="PREFIX=PREFIX", help="Take what begins with the first from the second.", multiple=True
        ),
        click.option(
            "--models", type=click.Path(path_type=Path), metavar="DIR", help="A folder with model files.", multiple=True
        ),
        click.option("--find-links", metavar="DIR|URL", help="Python packages lie here, too.", multiple=True),
        click.option("--index-url", metavar="URL", help="The index of Python packages."),
        click.option("--extra-index-url", metavar="URL", help="One more index of Python packages.", multiple=True),
        click.option(
            "--base",
            metavar="IMAGE",
            help="The image to build upon: scratch, oci:DIR, a reference, or cuda for the one of NVIDIA's that fits.",
        ),
        click.option(
            "--platform",
            metavar="NAME[,NAME]",
            callback=_platforms,
            help="linux/amd64, linux/arm64 or both; by default those of the lock that is there, else this machine's.",
        ),
        click.option(
            "--target", metavar="NAME", help="cpu, cuda12.8, rocm6.4, …: by default what the pack's torch is for."
        ),
        click.option("--python-package", metavar="SPEC", help="Add or replace a Python package.", multiple=True),
        click.option("--exclude-python-package", metavar="NAME", help="Leave a Python package out.", multiple=True),
        click.option("--exclude-node", metavar="NAME", help="Leave a custom node out.", multiple=True),
        click.option("--no-pickle", is_flag=True, help="Refuse models in pickled formats (.ckpt, .pt, .pth, .bin)."),
    )
    return cast("F", _decorated(access_options(wrapped), options))


def _platforms(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    for name in value.split(",") if value is not None else ():
        if name.strip() not in ("linux/amd64", "linux/arm64"):
            raise click.BadParameter(f"{name!r} is not one of linux/amd64, linux/arm64.", context, parameter)
    return value


def absolute(place: str) -> str:
    """*place* as it is when it is a URL, else as an absolute path."""
    return place if "://" in place else str(expanded(place).absolute())


def _decorated(function: Any, options: tuple[Callable[[Any], Any], ...]) -> Any:
    for option in reversed(options):
        function = option(function)
    return function
