"""``deploy kubernetes`` writes manifests that Kubernetes takes, that hold to its strictest policy, and are the same
each time; what cannot work is refused with the reason."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpack_build.oci.reference import parse_reference
from cpack_build.oci.sources import open_source
from tests import need
from tests.cli.calling import Caller
from tests.deploy.conftest import HEX, Published, written
from tests.deploy.policy import check_policy, check_schemas, violations
from tests.restore.images import World

EVERYTHING = (
    *("--namespace", "pictures", "--replicas", "2", "--max-replicas", "6", "--token-secret", "upscale-token"),
    *("--pull-secret", "registry", "--host", "upscale.example.com", "--ingress-class", "nginx"),
    *("--tls-secret", "upscale-tls", "--allow-from", "ingress-nginx", "--allow-from", "monitoring"),
    *("--allow-to", "10.0.0.0/8", "--service-monitor-label", "release=prometheus"),
    *("--toleration", "spot=true:NoSchedule", "--toleration", "other", "--node-selector", "pool=gpu"),
    *("--env", "CPACK_TIMEOUT=600", "--env-secret", "AWS_SECRET_ACCESS_KEY=bucket:secret", "--no-surge"),
    *("--runtime-class", "nvidia", "--gpu-product", "NVIDIA-L4", "--gpu-memory", "20"),
)
KEDA = ("--namespace", "pictures", "--max-replicas", "6", "--autoscaler", "keda", "--prometheus", "http://prom:9090")


@pytest.fixture
def gpu_lock(world: World, tmp_path: Path) -> Path:
    """The same lock, as if its torch were for CUDA."""
    return written(world.lock, tmp_path / "gpu.lock", target="cuda12.8")


def pinned(name: str = "registry.example/team/up.scale") -> str:
    return f"{name}@sha256:{HEX}"


def documents_of(folder: Path) -> list[dict[str, Any]]:
    """What Kustomize would make of *folder*, as far as it only puts the files together."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*listed, "kustomization.yaml"])
    return [yaml.safe_load((folder / name).read_text()) for name in listed]


def by_kind(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        ((), set()),
        (EVERYTHING, {"Ingress", "ServiceMonitor", "HorizontalPodAutoscaler"}),
        (KEDA, {"ScaledObject"}),
        (("--host", "a.example", "--gateway", "infra/public"), {"HTTPRoute"}),
    ],
)
def test_what_is_asked_for_is_there_valid_and_hardened(
    call: Caller, gpu_lock: Path, tmp_path: Path, flags: tuple[str, ...], more: set[str]
) -> None:
    done = call("deploy", "kubernetes", pinned(), "--lock", gpu_lock, "-o", tmp_path / "k8s", *flags)
    assert done.code == 0, done.err
    documents = documents_of(tmp_path / "k8s")
    usual = {"Deployment", "Service", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"}
    assert {document["kind"] for document in documents} == usual | more
    check_schemas(documents)
    check_policy(documents)
    assert {document["metadata"]["name"] for document in documents} == {"up-scale"}


def test_the_policy_would_see_what_is_missing(call: Caller, lock: Path, tmp_path: Path) -> None:
    """The check above can fail: each hardening that is taken away is found."""
    assert call("deploy", "kubernetes", pinned(), "--lock", lock, "-o", tmp_path / "k8s").code == 0
    deployment = by_kind(documents_of(tmp_path / "k8s"))["Deployment"]
    text = json.dumps(deployment)
    for right, wrong in (
        ('"runAsNonRoot": true', '"runAsNonRoot": false'),
        ('"drop": ["ALL"]', '"drop": []'),
        ('"readOnlyRootFilesystem": true', '"readOnlyRootFilesystem": false'),
        ('"RuntimeDefault"', '"Unconfined"'),
        (f"@sha256:{HEX}", ":latest"),
        ('"memory": "', '"memories": "'),
        ('"sizeLimit"', '"medium"'),
        ('"enableServiceLinks": false', '"hostNetwork": true'),
        ('"automountServiceAccountToken": false', '"automountServiceAccountToken": true'),
    ):
        assert right in text
        assert list(violations(json.loads(text.replace(right, wrong)))), wrong


def test_a_second_run_writes_the_same_bytes_and_takes_away_what_is_no_longer_asked_for(
    call: Caller, lock: Path, tmp_path: Path
) -> None:
    base = ("deploy", "kubernetes", pinned(), "--lock", lock, "-o")
    assert call(*base, tmp_path / "a").code == 0
    assert call(*base, tmp_path / "b", "--host", "a.example").code == 0
    assert (tmp_path / "b/ingress.yaml").exists()
    (tmp_path / "b/notes.txt").write_text("mine")
    assert call(*base, tmp_path / "b").code == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    second = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert second.pop("notes.txt") == b"mine"
    assert first == second


def test_what_another_command_or_somebody_began_from_a_copy_stays(call: Caller, lock: Path, tmp_path: Path) -> None:
    kubernetes = ("deploy", "kubernetes", pinned(), "--lock", lock, "-o", tmp_path)
    compose = ("deploy", "compose", pinned(), "--lock", lock, "-o", tmp_path)
    assert call(*kubernetes).code == 0
    proxy = ("--host", "a.example", "--proxy-image", f"caddy@sha256:{HEX}")
    assert call(*compose, *proxy).code == 0
    (tmp_path / "compose.override.yaml").write_bytes((tmp_path / "compose.yaml").read_bytes())
    before = {path.name for path in tmp_path.iterdir()} - {lock.name}
    assert {"compose.override.yaml", "Caddyfile", "deployment.yaml"} <= before
    assert call(*kubernetes, "--host", "a.example").code == 0
    assert call(*compose).code == 0
    after = {path.name for path in tmp_path.iterdir()} - {lock.name}
    assert after == (before | {"ingress.yaml"}) - {"Caddyfile"}


def test_a_file_of_somebody_else_is_never_replaced(call: Caller, lock: Path, tmp_path: Path) -> None:
    (tmp_path / "k8s").mkdir()
    (tmp_path / "k8s/service.yaml").write_text("kind: Service\n")
    done = call("deploy", "kubernetes", pinned(), "--lock", lock, "-o", tmp_path / "k8s")
    assert (done.code, "service.yaml" in done.err) == (8, True)
    assert [path.name for path in (tmp_path / "k8s").iterdir()] == ["service.yaml"]


def test_kustomize_takes_the_folder(call: Caller, gpu_lock: Path, tmp_path: Path) -> None:
    kubectl = need.tool("kubectl")
    done = call("deploy", "kubernetes", pinned(), "--lock", gpu_lock, "-o", tmp_path / "k8s", *EVERYTHING)
    assert done.code == 0, done.err
    made = subprocess.run([kubectl, "kustomize", tmp_path / "k8s"], check=True, capture_output=True, text=True).stdout
    documents = list(yaml.safe_load_all(made))
    check_schemas(documents)
    check_policy(documents)
    assert by_kind(documents)["Deployment"] == by_kind(documents_of(tmp_path / "k8s"))["Deployment"]


def test_a_tag_becomes_the_digest_that_it_has_in_its_registry(
    call: Caller, published: Published, tmp_path: Path
) -> None:
    done = call("deploy", "kubernetes", published.tag, "-o", tmp_path / "k8s", "--json")
    assert done.code == 0, done.err
    assert done.document["image"] == published.reference
    files = [path.read_text() for path in (tmp_path / "k8s").iterdir()]
    assert not any(published.tag in text for text in files)
    pod = by_kind(documents_of(tmp_path / "k8s"))["Deployment"]["spec"]["template"]["spec"]
    assert [container["image"] for container in pod["containers"]] == [published.reference]
    arch = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert arch[0]["matchExpressions"][0]["values"] == [published.world.lock.platform.partition("/")[2]]


def test_models_can_come_as_image_volumes(call: Caller, published: Published, tmp_path: Path) -> None:
    done = call("deploy", "kubernetes", published.tag, "--models-from", published.models, "-o", tmp_path / "k8s")
    assert done.code == 0, done.err
    documents = documents_of(tmp_path / "k8s")
    check_schemas(documents)
    check_policy(documents)
    pod = by_kind(documents)["Deployment"]["spec"]["template"]["spec"]
    (model,) = published.world.lock.models
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert re.fullmatch(
        rf"{re.escape(published.models)}@sha256:[0-9a-f]{{64}}",
        volumes[f"model-{model.sha256[:12]}"]["image"]["reference"],
    )
    (linker,) = pod["initContainers"]
    # The very program, on folders made up here as the volumes would be: ComfyUI then finds the file by its own link.
    root = tmp_path / "root"
    volume = root / "volumes" / model.sha256[:12] / "models/sha256"
    volume.mkdir(parents=True)
    (volume / model.sha256).write_text("weights")
    (root / "links").mkdir()
    program = linker["command"][2].replace("'/volumes/'", f"'{root}/volumes/'").replace("'/links/'", f"'{root}/links/'")
    for _ in range(2):  # a pod's first containers may run twice
        subprocess.run(["python3", "-c", program, *linker["command"][3:]], check=True)
    assert (root / "links" / model.sha256).read_text() == "weights"
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["models"] == "/models/sha256"
    assert mounts[f"model-{model.sha256[:12]}"] == f"/volumes/{model.sha256[:12]}"


def test_an_image_can_be_pushed_without_its_models_and_then_needs_them_as_volumes(
    call: Caller, published: Published, tmp_path: Path
) -> None:
    thin = published.tag.replace(":v1", ":thin")
    layout = f"oci:{published.world.layout}"
    done = call("push", layout, thin, "--models", published.models, "--without-models", "--json")
    assert done.code == 0, done.err
    whole = open_source(parse_reference(published.tag)).as_image(published.world.lock.platform)
    image = open_source(parse_reference(thin)).as_image(published.world.lock.platform)
    assert image.digest == done.document["digest"] == done.document["pushed"][0]["reference"].partition("@")[2]
    digests = [layer.descriptor.digest for layer in image.layers]
    models = {model.layer_digest for model in published.world.lock.models}
    assert digests == [layer.descriptor.digest for layer in whole.layers if layer.descriptor.digest not in models]
    config = json.loads(image.config.data)
    assert len(config["history"]) == len(config["rootfs"]["diff_ids"]) == len(digests)
    assert not any("model " in line["created_by"] for line in config["history"])
    refused = call("deploy", "kubernetes", thin, "-o", tmp_path / "k8s")
    assert (refused.code, "--models-from" in refused.err) == (2, True), refused.err
    assert call("deploy", "compose", thin, "-o", tmp_path / "up").code == 2
    done = call("deploy", "kubernetes", thin, "--models-from", published.models, "-o", tmp_path / "k8s", "--json")
    assert done.code == 0, done.err
    assert done.document["image"].endswith(image.digest)


def test_a_model_that_was_not_pushed_is_named(call: Caller, published: Published, tmp_path: Path) -> None:
    elsewhere = published.models.replace("team/models", "team/none")
    done = call("deploy", "kubernetes", published.tag, "--models-from", elsewhere, "-o", tmp_path / "k8s")
    assert done.code in (4, 6), done.err
    assert "models/checkpoints/tiny.safetensors" in done.err
    assert f"--models {elsewhere}" in done.err


def test_it_asks_for_what_the_lock_needs(call: Caller, world: World, tmp_path: Path) -> None:
    model = world.lock.models[0].model_copy(update={"size": 8 << 30})
    lock = written(world.lock, tmp_path / "x.lock", target="rocm6.4", models=(model,))
    assert call("deploy", "kubernetes", pinned(), "--lock", lock, "-o", tmp_path / "k8s").code == 0
    pod = by_kind(documents_of(tmp_path / "k8s"))["Deployment"]["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    # 2 GiB and one and a quarter times 8 GiB
    assert resources["requests"]["memory"] == f"{12 * 1024}Mi"
    assert resources["limits"]["memory"] == f"{18 * 1024}Mi"
    assert resources["limits"]["amd.com/gpu"] == "1"
    assert {"key": "amd.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    environment = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert "NVIDIA_VISIBLE_DEVICES" not in environment


def test_a_pod_without_a_gpu_gets_none_by_the_way(call: Caller, lock: Path, tmp_path: Path) -> None:
    assert call("deploy", "kubernetes", pinned(), "--lock", lock, "-o", tmp_path / "k8s").code == 0
    container = by_kind(documents_of(tmp_path / "k8s"))["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert not any("gpu" in key for key in container["resources"]["limits"])


def test_an_autoscaler_alone_sets_the_number_of_replicas(call: Caller, lock: Path, tmp_path: Path) -> None:
    assert call("deploy", "kubernetes", pinned(), "--lock", lock, "-o", tmp_path / "k8s", *KEDA).code == 0
    found = by_kind(documents_of(tmp_path / "k8s"))
    assert "replicas" not in found["Deployment"]["spec"]
    queries = [trigger["metadata"]["query"] for trigger in found["ScaledObject"]["spec"]["triggers"]]
    assert queries == [
        'sum(cpack_running{namespace="pictures",service="up-scale"})',
        'sum(cpack_queue_depth{namespace="pictures",service="up-scale"})',
    ]


def test_the_metrics_that_scale_it_are_those_that_the_service_has() -> None:
    from cpack_build.deploy.kubernetes.autoscaling import autoscaler
    from cpack_build.deploy.kubernetes.options import Options, Resources
    from cpack_build.serve.metrics import Metrics

    scaler = autoscaler(Options("x", Resources("1", "1", "1Gi", "1Gi", "1Gi"), max_replicas=2))
    text = Metrics().text(waiting=0, running=0, losses=0, ready=1, devices=[])
    for metric in scaler["spec"]["metrics"]:
        assert f"# TYPE {metric['pods']['metric']['name']} gauge" in text


def test_what_was_asked_for_is_printed_and_nothing_written(
    call: Caller, lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("deploy", "kubernetes", pinned(), "--lock", lock, "--dry-run")
    assert done.code == 0, done.err
    check_policy(list(yaml.safe_load_all(done.out)))
    done = call("deploy", "kubernetes", pinned(), "--lock", lock, "--dry-run", "--json")
    assert done.document["manifests"]["service.yaml"]["kind"] == "Service"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".k8s"] == []


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--name", "Up_Scale"], 2, "'Up_Scale', which Kubernetes refuses"),
        (["--name", "1up"], 2, "beginning with a letter"),
        (["--name", "x" * 64], 2, "up to 63"),
        (["--namespace", "a.b"], 2, "--namespace"),
        (["--replicas", "0"], 2, "nobody to count"),
        (["--replicas", "3", "--max-replicas", "2"], 2, "less than --replicas"),
        (["--autoscaler", "keda"], 2, "--max-replicas"),
        (["--autoscaler", "keda", "--max-replicas", "2"], 2, "--prometheus"),
        ([*KEDA[:-1], "http://a:b@prom"], 2, "password"),
        (["--env", "MY_API_KEY=sk-1234"], 8, "--env-secret MY_API_KEY"),
        (["--env", "HTTP_PROXY=http://me:pass@proxy"], 8, "written into files"),
        (["--env", "a-b=c"], 2, "no name of an environment variable"),
        (["--env", "A"], 2, "has no value"),
        (["--memory", "8GB"], 2, "'8GB'"),
        (["--cpu", "4:2"], 2, "limited to 2"),
        (["--storage", "10Mi"], 2, "1Gi at least"),
        (["--gpus", "1"], 2, "is for cpu"),
        (["--gpu-product", "NVIDIA-L4"], 2, "--gpus 1"),
        (["--host", "10.0.0.1"], 2, "no host name"),
        (["--host", "a_b.example"], 2, "no host name"),
        (["--tls-secret", "x"], 2, "--host"),
        (["--host", "a.example", "--gateway", "g", "--tls-secret", "x"], 2, "instead of an Ingress"),
        (["--allow-to", "10.0.0.1/8"], 2, "no network"),
        (["--allow-from", "A"], 2, "--allow-from"),
        (["--toleration", "a:Never"], 2, "'Never'"),
        (["--node-selector", "a b=c"], 2, "no label"),
        (["--token-secret", "My Secret"], 2, "--token-secret"),
        (["--env-secret", "A=b:c/d"], 2, "no Secret can have"),
        (["--models-from", "registry.example/models:1"], 2, "a tag of its own"),
        (["--platform", "linux/arm64"], 4, "not for linux/arm64"),
        (["--wait", "3"], 2, "is for --apply"),
        (["--apply", "-o", "x"], 2, "Leave one of them out"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(
    call: Caller, lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], code: int, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("deploy", "kubernetes", pinned(), "--lock", lock, *flags)
    assert (done.code, told in done.err) == (code, True), done.err
    assert "sk-1234" not in done.err
    assert "me:pass" not in done.err
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".k8s"] == []


@pytest.mark.parametrize(
    ("image", "code", "told"),
    [
        ("oci:somewhere", 2, "cpack-build push oci:somewhere"),
        ("docker:upscale", 2, "where a cluster cannot pull it"),
        ("registry.example/team/___:1", 2, "no repository name"),
    ],
)
def test_what_a_cluster_cannot_pull_is_refused(call: Caller, image: str, code: int, told: str) -> None:
    done = call("deploy", "kubernetes", image)
    assert (done.code, told in done.err) == (code, True), done.err


def test_without_its_registry_a_tag_is_no_name(call: Caller, lock: Path, tmp_path: Path) -> None:
    """Port 9 of loopback is nobody's."""
    done = call("deploy", "kubernetes", "localhost:9/team/x:1", "--lock", lock, "-o", tmp_path / "k8s")
    assert (done.code, "by its digest" in done.err) == (2, True), done.err
    done = call("deploy", "kubernetes", f"localhost:9/team/x@sha256:{HEX}", "-o", tmp_path / "k8s")
    assert (done.code, "--lock" in done.err) == (2, True), done.err
    done = call("deploy", "kubernetes", f"localhost:9/team/x@sha256:{HEX}", "--lock", lock, "-o", tmp_path / "k8s")
    assert done.code == 0, done.err


def test_the_lock_of_another_image_is_refused(call: Caller, published: Published, tmp_path: Path) -> None:
    other = written(published.world.lock, tmp_path / "other.lock", source_date_epoch=1)
    done = call("deploy", "kubernetes", published.tag, "--lock", other, "-o", tmp_path / "k8s")
    assert (done.code, "was made of another one" in done.err) == (3, True), done.err


def test_an_image_of_somebody_else_is_refused(call: Caller, published: Published, tmp_path: Path) -> None:
    from cpack_build.oci.push import push
    from cpack_build.oci.reference import parse_reference
    from tests.oci.images import small_image

    name = published.tag.replace("up.scale", "foreign")
    push(small_image(), [parse_reference(name)])
    done = call("deploy", "kubernetes", name, "-o", tmp_path / "k8s")
    assert (done.code, "was not made by cpack-build" in done.err) == (3, True), done.err


def test_an_image_that_is_not_there_is_said_to_be(call: Caller, published: Published, tmp_path: Path) -> None:
    done = call("deploy", "kubernetes", published.tag.replace(":v1", ":v0"), "-o", tmp_path / "k8s")
    assert (done.code, "no image for" in done.err or "is for none" in done.err) == (4, False), done.err


def test_an_image_without_a_kubernetes_name_needs_one(call: Caller, lock: Path, tmp_path: Path) -> None:
    done = call("deploy", "kubernetes", pinned("registry.example/team/2x"), "--lock", lock, "-o", tmp_path / "k8s")
    assert (done.code, "--name" in done.err) == (2, True), done.err
