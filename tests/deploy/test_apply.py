"""``deploy kubernetes --apply`` gives a cluster all objects or none, waits until they serve, and says why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cpack_build.deploy.kubernetes import apply as applying
from tests.cli.calling import Caller
from tests.deploy.apiserver import SERVICE_MONITOR, TOKEN, ApiServer, kubeconfig, running
from tests.deploy.conftest import HEX, written
from tests.fetch.servers import Answer, serving
from tests.oci.images import machine
from tests.restore.images import World

IMAGE = f"registry.example/team/up.scale@sha256:{HEX}"
KINDS = ["ServiceAccount", "NetworkPolicy", "Service", "Deployment", "PodDisruptionBudget"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A cluster with one node that fits; the environment leads to it."""
    monkeypatch.setattr(applying, "_POLL", 0.01)
    with running(tmp_path) as (server, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        server.node("one", machine())
        yield server


def serves(server: ApiServer, times: int) -> None:
    """What a cluster in which all goes well shows, look by look."""
    if times < 3:
        server.pod("up-scale-1", containerStatuses=[{"name": "service", "restartCount": 0, "ready": False,
                   "state": {"waiting": {"reason": "ContainerCreating"}}}])  # fmt: skip
        server.deployment(namespace="default", replicas=1, updatedReplicas=1)
    else:
        server.deployment(namespace="default", replicas=1, updatedReplicas=1, availableReplicas=1)


def test_everything_is_checked_first_then_applied_and_waited_for(call: Caller, cluster: ApiServer, lock: Path) -> None:
    cluster.look = serves
    done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--json")
    assert done.code == 0, done.err
    assert cluster.applied == [(kind, True) for kind in KINDS] + [(kind, False) for kind in KINDS]
    assert done.document["objects"] == [f"{kind}/up-scale" for kind in KINDS]
    assert (done.document["ready"], done.document["namespace"]) == (1, "default")
    container = cluster.objects["/apis/apps/v1/namespaces/default/deployments/up-scale"]
    assert container["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE
    assert TOKEN not in done.out + done.err


def test_applying_again_changes_nothing(call: Caller, cluster: ApiServer, lock: Path) -> None:
    cluster.look = serves
    for _ in range(2):
        done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply")
        assert done.code == 0, done.err
    deployment = cluster.objects["/apis/apps/v1/namespaces/default/deployments/up-scale"]
    assert deployment["metadata"]["generation"] == 1
    assert "up-scale.default.svc" in done.out


def test_a_dry_run_changes_nothing(call: Caller, cluster: ApiServer, lock: Path) -> None:
    before = dict(cluster.objects)
    done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--dry-run")
    assert done.code == 0, done.err
    assert cluster.applied == [(kind, True) for kind in KINDS]
    assert cluster.objects == before
    assert "would be applied" in done.out


def test_the_namespace_is_the_one_that_is_named_else_the_context_s(
    call: Caller, cluster: ApiServer, lock: Path, tmp_path: Path
) -> None:
    config = kubeconfig(tmp_path / "other", cluster.url, namespace="pictures")
    base = ("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--wait", "0", "--json")
    assert call(*base, "--kubeconfig", config).document["namespace"] == "pictures"
    assert call(*base).document["namespace"] == "default"
    done = call(*base, "--namespace", "nowhere")
    assert done.code == 4
    assert "kubectl create namespace nowhere" in done.out


def test_what_an_operator_must_bring_is_missed_before_anything_is_applied(
    call: Caller, cluster: ApiServer, lock: Path
) -> None:
    base = ("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--wait", "0")
    done = call(*base, "--service-monitor")
    assert (done.code, "install Prometheus' operator" in done.err.replace("Install", "install")) == (4, True), done.err
    assert cluster.applied == []
    cluster.kinds |= SERVICE_MONITOR
    assert call(*base, "--service-monitor").code == 0


def test_a_field_of_somebody_else_is_taken_only_when_told_to(call: Caller, cluster: ApiServer, lock: Path) -> None:
    path = "/apis/apps/v1/namespaces/default/deployments/up-scale"
    cluster.owners[path, ".spec.replicas"] = "kubectl-scale"
    base = ("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--wait", "0")
    done = call(*base)
    assert (done.code, "kubectl-scale" in done.err, "--force-conflicts" in done.err) == (3, True, True), done.err
    assert not any(dry is False for _, dry in cluster.applied)
    assert call(*base, "--force-conflicts").code == 0


def test_a_cluster_whose_nodes_cannot_run_it_is_told_before(
    call: Caller, cluster: ApiServer, world: World, lock: Path, tmp_path: Path
) -> None:
    base = ("deploy", "kubernetes", IMAGE, "--apply", "--wait", "0", "--lock")
    del cluster.objects["/api/v1/nodes/one"]
    cluster.node("riscv", "riscv64")
    done = call(*base, lock)
    assert (done.code, "nodes are riscv64" in done.err) == (4, True), done.err
    gpu = written(world.lock, tmp_path / "gpu.lock", target="cuda12.8")
    cluster.node("plain", machine())
    done = call(*base, gpu)
    assert (done.code, "offers nvidia.com/gpu" in done.err) == (4, True), done.err
    assert cluster.applied == []
    assert call(*base, gpu, "--any-node").code == 0
    cluster.node("gpu", machine(), **{"nvidia.com/gpu": "1"})
    assert call(*base, gpu).code == 0


def test_who_may_not_look_at_nodes_may_still_deploy(call: Caller, cluster: ApiServer, lock: Path) -> None:
    cluster.forbidden = "/nodes$"
    done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--wait", "0")
    assert done.code == 0, done.err
    assert "may not be asked" in done.err


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "service", "restartCount": 0, "state": state, **more}]}


@pytest.mark.parametrize(
    ("pod", "status", "told"),
    [
        (waiting("InvalidImageName", "bad reference"), {}, "InvalidImageName: bad reference"),
        (
            waiting("CrashLoopBackOff", "back-off", restartCount=3,
                    lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}}),
            {},
            "it ended (OOMKilled, exit code 137) and said last: CPACK_APP is not set.",
        ),
        (
            waiting("ImagePullBackOff", "unauthorized"),
            {"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]},
            "the cluster gave it up.\n- up-scale-1: ImagePullBackOff: unauthorized",
        ),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                             "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}]},
            {},
            "not within 1 seconds.\n- up-scale-1 has no node: 0/3 nodes are available",
        ),
        (None, {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}]},
         "No pod can be made: exceeded quota: gpus"),
        (None, {}, "Its pods tell no reason."),
    ],
)  # fmt: skip
def test_what_never_gets_ready_says_why(
    call: Caller, cluster: ApiServer, lock: Path, pod: dict[str, Any] | None, status: dict[str, Any], told: str
) -> None:
    def look(server: ApiServer, times: int) -> None:
        if pod is not None:
            server.pod("up-scale-1", **pod)
        server.deployment(replicas=1, updatedReplicas=1, **status)

    cluster.look = look
    cluster.logs["up-scale-1"] = "starting\nCPACK_APP is not set.\n"
    done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--wait", "1")
    assert (done.code, told in done.err) == (7, True), done.err
    assert "kubectl -n default describe" in done.err


def test_an_old_generation_that_serves_is_not_the_new_one(call: Caller, cluster: ApiServer, lock: Path) -> None:
    def look(server: ApiServer, times: int) -> None:
        server.deployment(replicas=2, updatedReplicas=1, availableReplicas=1)
        server.objects["/apis/apps/v1/namespaces/default/deployments/up-scale"]["status"]["observedGeneration"] = 0

    cluster.look = look
    assert call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--wait", "1").code == 7


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        (None, 7, "There is no kubeconfig"),
        ("{", 3, "no usable kubeconfig"),
        ("secret-token-in-a-list: [", 3, "no usable kubeconfig"),
        ("[]", 3, "no usable kubeconfig"),
        ("contexts: []\ncurrent-context: x\n", 3, "no usable kubeconfig"),
    ],
)
def test_without_a_usable_kubeconfig_nothing_is_tried(
    call: Caller, lock: Path, tmp_path: Path, text: str | None, code: int, told: str
) -> None:
    config = tmp_path / "config"
    if text is not None:
        config.write_text(text)
    done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--kubeconfig", config)
    assert (done.code, told in done.err) == (code, True), done.err
    assert "secret-token" not in done.err


def test_a_context_that_is_not_there_is_named(call: Caller, cluster: ApiServer, lock: Path) -> None:
    done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--context", "prod")
    assert (done.code, "'prod'" in done.err, "It has test." in done.err) == (3, True, True), done.err


def test_a_login_that_ended_is_said_without_its_token(
    call: Caller, cluster: ApiServer, lock: Path, tmp_path: Path
) -> None:
    config = kubeconfig(tmp_path / "old", cluster.url, token="old-token-of-mine")
    done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--kubeconfig", config, "-v")
    assert (done.code, "Unauthorized" in done.err, "log in again" in done.err) == (6, True, True), done.err
    assert "old-token-of-mine" not in done.err + done.out


def test_a_right_that_is_missing_is_named(call: Caller, cluster: ApiServer, lock: Path) -> None:
    cluster.forbidden = "/deployments/"
    done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply")
    assert (done.code, "Deployment up-scale" in done.err) == (6, True), done.err
    assert not any(dry is False for _, dry in cluster.applied)


def test_a_cluster_that_does_not_answer_is_told_at_once(call: Caller, lock: Path, tmp_path: Path) -> None:
    config = kubeconfig(tmp_path / "gone", "http://127.0.0.1:9")
    done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--kubeconfig", config)
    assert (done.code, "does not answer" in done.err) == (6, True), done.err


@pytest.mark.parametrize("answer", [Answer(500, b"boom"), Answer(200, b"<html>"), Answer(200, b"[1]")])
def test_what_is_no_cluster_is_told(call: Caller, lock: Path, tmp_path: Path, answer: Answer) -> None:
    with serving(lambda request: answer) as server:
        config = kubeconfig(tmp_path / "odd", server.url)
        done = call("deploy", "kubernetes", IMAGE, "--lock", lock, "--apply", "--kubeconfig", config)
    assert done.code == 6, done.err
