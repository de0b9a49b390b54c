"""``cpack-build deploy kubernetes IMAGE``: manifests for Kustomize, or the objects themselves in a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.deploying.subject import pairs, registry_subject, subject_options
from cpack_build.cli.options import access_options, terminal_options
from cpack_build.cli.push import access_for
from cpack_build.cli.terminal import Terminal

if TYPE_CHECKING:
    from cpack_build.deploy.kubernetes.options import Options
    from cpack_build.deploy.subject import ModelVolume, Subject
    from cpack_build.oci.reference import Reference
    from cpack_build.oci.transport import Access

__all__ = ["kubernetes"]

_GPU_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
_SECONDS = click.IntRange(1, 24 * 3600)


@click.command(
    epilog="Example: cpack-build deploy kubernetes registry.example/team/upscale:1 -o k8s --namespace pictures "
    "--token-secret upscale-token    (exit codes: docs/exit-codes.md)"
)
@click.argument("image")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="By default NAME.k8s/ here.")
@click.option("--apply", "is_applied", is_flag=True, help="Give them to a cluster instead, and wait until it serves.")
@click.option(
    "--dry-run", is_flag=True, help="Print them; with --apply have the cluster check them, and change nothing."
)
@click.option("--name", metavar="NAME", help="Of every object; by default the image's.")
@click.option("--namespace", metavar="NAME", help="By default left to Kustomize, and with --apply to the context.")
@click.option("--replicas", type=click.IntRange(0, 10_000), default=1, show_default=True)
@click.option("--max-replicas", type=click.IntRange(0, 10_000), metavar="COUNT", help="Scale up to so many.")
@click.option("--autoscaler", type=click.Choice(["hpa", "keda"]), default="hpa", show_default=True)
@click.option("--prometheus", metavar="URL", help="Where KEDA asks.")
@click.option("--gpus", type=click.IntRange(0, 64), help="Of each replica; by default 1 if the image computes on one.")
@click.option("--gpu-resource", metavar="NAME", help="By default nvidia.com/gpu or amd.com/gpu; or nvidia.com/mig-…")
@click.option("--gpu-product", metavar="NAME", help="As NVIDIA's feature discovery labels nodes: NVIDIA-L4.")
@click.option("--gpu-memory", type=click.FloatRange(0.1), metavar="GIB", help="That a GPU has at least.")
@click.option("--runtime-class", metavar="NAME", help="Such as nvidia, where that is not the default.")
@click.option("--node-selector", multiple=True, metavar="KEY=VALUE", help="A label that nodes must have.")
@click.option("--toleration", multiple=True, metavar="KEY[=VALUE][:EFFECT]", help="A taint that does not matter.")
@click.option("--cpu", metavar="REQUEST[:LIMIT]", default="2:4", show_default=True)
@click.option("--memory", metavar="REQUEST[:LIMIT]", help="By default 2Gi and what the models of the lock need.")
@click.option("--storage", metavar="SIZE", default="8Gi", show_default=True, help="For uploads, outputs and results.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable of docs/serving.md.")
@click.option("--env-secret", multiple=True, metavar="NAME=SECRET:KEY", help="The same, out of a Secret.")
@click.option("--token-secret", metavar="SECRET[:KEY]", help="With the token that callers need; the key is token.")
@click.option("--pull-secret", "pull_secrets", multiple=True, metavar="SECRET", help="To pull the image with.")
@click.option("--host", metavar="NAME", help="Make it reachable under this name by an Ingress.")
@click.option("--ingress-class", metavar="NAME", help="Such as nginx.")
@click.option("--ingress-annotation", multiple=True, metavar="KEY=VALUE")
@click.option("--tls-secret", metavar="SECRET", help="With the certificate of --host.")
@click.option("--gateway", metavar="[NAMESPACE/]NAME", help="An HTTPRoute of this Gateway instead of an Ingress.")
@click.option("--allow-from", multiple=True, metavar="NAMESPACE", help="Who may reach it besides its own namespace.")
@click.option("--allow-to", multiple=True, metavar="NETWORK", help="What it may reach besides DNS: 0.0.0.0/0 for all.")
@click.option("--service-monitor", is_flag=True, help="For Prometheus' operator.")
@click.option("--service-monitor-label", multiple=True, metavar="KEY=VALUE", help="By which a Prometheus finds it.")
@click.option("--models-from", metavar="REF", help="The repository of `push --models`: mount them as image volumes.")
@click.option("--warm-up/--no-warm-up", default=None, help="Run it once before it is ready: by default if it can be.")
@click.option("--no-surge", is_flag=True, help="Update in place, where no GPU is spare for a new pod beside the old.")
@click.option("--ready-seconds", type=_SECONDS, default=1800, show_default=True, help="A start may take, models too.")
@click.option("--drain-seconds", type=_SECONDS, default=120, show_default=True, help="What runs may take to its end.")
@click.option("--kubeconfig", type=click.Path(path_type=Path), metavar="FILE", help="With --apply.")
@click.option("--context", metavar="NAME", help="Of the kubeconfig; by default its current one.")
@click.option("--wait", type=click.IntRange(0), metavar="SECONDS", help="By default as long as a start may take.")
@click.option("--force-conflicts", is_flag=True, help="Take over fields that another program set.")
@click.option("--any-node", is_flag=True, help="Also when no node that is there now can run it.")
@subject_options
@access_options
@terminal_options
def kubernetes(
    image: str,
    output: Path | None,
    is_applied: bool,
    dry_run: bool,
    models_from: str | None,
    lock_file: Path | None,
    platform: str | None,
    kubeconfig: Path | None,
    context: str | None,
    wait: int | None,
    force_conflicts: bool,
    any_node: bool,
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
    **asked: Any,
) -> None:
    """Run IMAGE, a registry's, in Kubernetes: write the manifests into a folder that `kubectl apply -k` takes, or give
    them to the cluster with --apply.

    Its name becomes its digest: a tag is looked up in the registry. Secrets are named, never written.
    """
    from cpack_build.deploy.kubernetes.manifests import manifests
    from cpack_build.errors import UsageError
    from cpack_build.oci.reference import Reference, parse_image_name

    if is_applied and output is not None:
        raise UsageError("-o writes manifests, --apply gives them to a cluster.", hint="Leave one of them out.")
    given = {"--kubeconfig": kubeconfig, "--context": context, "--wait": wait}
    if not is_applied and (unused := [name for name, value in given.items() if value is not None]):
        raise UsageError(f"{unused[0]} is for --apply.", hint="Add --apply, or leave it out.")
    reference = parse_image_name(image)
    if not isinstance(reference, Reference):
        raise UsageError(
            f"{image} is on this machine, where a cluster cannot pull it.",
            hint=f"Push it first: cpack-build push {image} registry.example/team/name:1",
        )
    places = [reference, *([_repository(models_from)] if models_from is not None else [])]
    access = access_for(places, insecure=insecure, ca=ca)
    subject = registry_subject(reference, lock_file=lock_file, platform=platform, access=access, terminal=terminal)
    options = _options(subject, asked)
    volumes = _volumes(subject, _repository(models_from), access) if models_from is not None else ()
    documents = manifests(subject, options, volumes)
    for note in _notes(options):
        terminal.progress.note(note)
    if not is_applied:
        _write(subject, options, documents, output or Path(f"{options.name}.k8s"), dry_run=dry_run, terminal=terminal)
        return
    from cpack_build.deploy.kubernetes.apply import apply
    from cpack_build.deploy.kubernetes.cluster import Cluster

    with Cluster.of(kubeconfig, context) as cluster:
        done = apply(
            cluster,
            documents,
            namespace=options.namespace,
            architectures=() if any_node else subject.architectures,
            gpu=options.gpu_resource if options.gpus and not any_node else None,
            wait=options.ready_seconds if wait is None else wait,
            dry_run=dry_run,
            force=force_conflicts,
            progress=terminal.progress,
        )
    terminal.result({"image": subject.reference, "name": options.name, **done.document()})
    for line in done.lines():
        terminal.say(line)


def _write(
    subject: Subject,
    options: Options,
    documents: Sequence[dict[str, Any]],
    folder: Path,
    *,
    dry_run: bool,
    terminal: Terminal,
) -> None:
    import shlex

    from cpack_build.deploy.folder import as_yaml, write_folder
    from cpack_build.deploy.kubernetes.manifests import FILES, as_files

    files = as_files(documents)
    told = {
        "image": subject.reference,
        "name": options.name,
        "namespace": options.namespace,
        "folder": None if dry_run else str(folder),
        "manifests": files,
        **({"dry_run": True} if dry_run else {}),
    }
    terminal.result(told)
    texts = {name: as_yaml(document, hint="Change it in an overlay.") for name, document in files.items()}
    if dry_run:
        terminal.say("---\n".join(text for name, text in texts.items() if name != "kustomization.yaml").rstrip())
        return
    write_folder(folder, texts, possible=FILES)
    terminal.say(f"{folder}: {', '.join(sorted(files))}")
    terminal.say(f"Next:\n  kubectl apply -k {shlex.quote(str(folder))}")


def _options(subject: Subject, asked: dict[str, Any]) -> Options:
    from cpack_build.deploy.kubernetes.grammar import service_name
    from cpack_build.deploy.kubernetes.options import Key, Options, Resources, Toleration

    gpus = asked["gpus"] if asked["gpus"] is not None else int(subject.vendor is not None)
    memory = asked["memory"] or f"{subject.memory_mib}Mi:{subject.memory_mib * 3 // 2}Mi"
    cpu, _, cpu_limit = asked["cpu"].partition(":")
    memory, _, memory_limit = memory.partition(":")
    token = asked["token_secret"]
    is_warmed = asked["warm_up"] if asked["warm_up"] is not None else subject.required == ()
    labels = pairs(asked["service_monitor_label"], "--service-monitor-label")
    return Options(
        name=asked["name"] if asked["name"] is not None else service_name(subject.name),
        resources=Resources(cpu, cpu_limit or cpu, memory, memory_limit or memory, asked["storage"]),
        namespace=asked["namespace"],
        min_replicas=asked["replicas"],
        max_replicas=asked["max_replicas"] if asked["max_replicas"] is not None else asked["replicas"],
        autoscaler=asked["autoscaler"],
        prometheus=asked["prometheus"],
        gpus=gpus,
        gpu_resource=asked["gpu_resource"] or _GPU_RESOURCES[subject.vendor or "nvidia"],
        gpu_product=asked["gpu_product"],
        gpu_memory_mib=round(asked["gpu_memory"] * 1024) if asked["gpu_memory"] else None,
        runtime_class=asked["runtime_class"],
        node_selector=pairs(asked["node_selector"], "--node-selector"),
        tolerations=tuple(map(Toleration.parse, asked["toleration"])),
        environment=pairs(asked["env"], "--env"),
        secret_environment=tuple(
            (name, Key.parse(text, what="--env-secret")) for name, text in pairs(asked["env_secret"], "--env-secret")
        ),
        token=Key.parse(token, what="--token-secret", default="token") if token is not None else None,
        pull_secrets=asked["pull_secrets"],
        host=asked["host"],
        ingress_class=asked["ingress_class"],
        ingress_annotations=pairs(asked["ingress_annotation"], "--ingress-annotation"),
        tls_secret=asked["tls_secret"],
        gateway=asked["gateway"],
        allow_from=asked["allow_from"],
        allow_to=asked["allow_to"],
        service_monitor=labels if asked["service_monitor"] or labels else None,
        warm_up=is_warmed,
        surge=not asked["no_surge"],
        ready_seconds=asked["ready_seconds"],
        drain_seconds=asked["drain_seconds"],
    )


def _notes(options: Options) -> list[str]:
    notes = []
    if options.host is not None and options.token is None:
        notes.append(f"Everybody who can reach {options.host} may use it: --token-secret asks callers for a token.")
    if options.host is not None and options.tls_secret is None and options.gateway is None:
        notes.append("The Ingress has no certificate: --tls-secret, or an annotation that makes one.")
    if options.host is not None and not options.allow_from:
        notes.append("Only its own namespace may reach it: name that of the Ingress or Gateway with --allow-from.")
    return notes


def _repository(text: str) -> Reference:
    from cpack_build.errors import UsageError
    from cpack_build.oci.reference import parse_reference

    reference = parse_reference(text)
    if reference.tag or reference.digest:
        raise UsageError(f"{text}: each model has a tag of its own there.", hint=f"Write {reference.name}.")
    return reference


def _volumes(subject: Subject, place: Reference, access: Access) -> tuple[ModelVolume, ...]:
    """The models of *subject* as images of *place*, by the digests that their tags have now.

    Raises :class:`Unresolvable` when it has none, or *place* lacks one.
    """
    from dataclasses import replace

    from cpack_build.deploy.subject import ModelVolume
    from cpack_build.errors import NetworkError, Unresolvable
    from cpack_build.oci.modelimage import model_tag
    from cpack_build.oci.sources import open_source

    found: dict[str, ModelVolume] = {}
    for model in subject.models:
        tagged = replace(place, tag=model_tag(model.path, model.sha256))
        try:
            digest = open_source(tagged, access=access).digest
        except (NetworkError, Unresolvable) as error:
            raise type(error)(
                f"The model {model.path} cannot be found as {tagged}. {error.message}",
                hint=f"Push it there: cpack-build push IMAGE --models {place.name}",
            ) from error
        found[model.sha256] = ModelVolume(model.sha256, f"{place.name}@{digest}")
    if not found:
        raise Unresolvable(f"{subject.reference} has no models.", hint="Leave --models-from out.")
    return tuple(found.values())
