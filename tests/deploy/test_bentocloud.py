"""BentoCloud, by our command line and BentoML's real client, against a server that speaks its API and can fail."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cpack_build.fetch.store import Store
from tests.cli.calling import Caller, Outcome
from tests.deploy.bentohome import bento_home
from tests.deploy.cloudserver import SIGNATURE, TOKEN, Cloud, Fault, pod, running_cloud
from tests.deploy.conftest import Published
from tests.restore.images import World

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML uses what others call old
SECRET = "value-that-nobody-may-see"


@pytest.fixture(scope="module")
def bento(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A self-contained Bento with one model, in a BentoML of this module's own."""
    from tests.deploy.making import make

    with bento_home(tmp_path_factory.mktemp("bentoml")):
        yield make(f"oci:{world.layout}", store=Store(tmp_path_factory.mktemp("store")))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No login of this machine's, and no pause before another attempt."""
    for name in ("BENTO_CLOUD_API_KEY", "BENTO_CLOUD_API_ENDPOINT", "BENTOML_CLOUD_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("cpack_build.deploy.bentocloud._PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def cloud(_alone: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A BentoCloud with nothing in it, and its token in the environment."""
    with running_cloud() as running:
        monkeypatch.setenv("BENTO_CLOUD_API_KEY", TOKEN)
        monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", running.url)
        yield running


def said(outcome: Outcome) -> str:
    """All that a run said, in which no secret may be."""
    text = outcome.out + outcome.err
    assert TOKEN not in text
    assert SIGNATURE not in text
    assert SECRET not in text
    return text


def names_in(cloud: Cloud, kind: str) -> set[str]:
    (data,) = (data for key, data in cloud.contents.items() if key.startswith(kind))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return set(archive.getnames())


@pytest.mark.parametrize("transmission", ["proxy", "presigned", "multipart"])
def test_a_bento_is_pushed_deployed_and_waited_for(
    call: Caller, cloud: Cloud, bento: str, transmission: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.transmission = transmission
    monkeypatch.setenv("HF_ENDPOINT_KEY", SECRET)
    cloud.secrets["storage"] = {"AWS_ACCESS_KEY_ID": "x"}
    done = call(
        "deploy", "bentocloud", bento, "--name", "upscale", "--instance-type", "gpu.t4.1", "--scaling-min", "0",
        "--scaling-max", "3", "--env", "CPACK_TIMEOUT=60", "--env", "HF_ENDPOINT_KEY", "--secret", "storage", "--wait",
        "--json",
    )  # fmt: skip
    assert done.code == 0, said(done)
    said(done)
    assert done.document["deployment"] == "upscale"
    assert done.document["status"] == "running"
    assert done.document["created"]
    assert done.document["urls"] == ["https://upscale.cloud.example"]
    assert {"./bento.yaml", "./image/oci-layout", "./src/service.py"} <= names_in(cloud, "bento/")
    assert "./model.bin" in names_in(cloud, "model/")
    (body,) = (body for request, body in cloud.bodies if request == "POST /api/v2/deployments")
    assert body["bento"] == bento
    assert body["envs"] == [
        {"name": "CPACK_TIMEOUT", "value": "60"},
        {"name": "HF_ENDPOINT_KEY", "value": SECRET},
    ]
    assert body["secrets"] == ["storage"]
    (service,) = body["services"].values()
    assert service["instance_type"] == "gpu.t4.1"
    assert (service["scaling"]["min_replicas"], service["scaling"]["max_replicas"]) == (0, 3)
    kinds = {
        "proxy": r"PUT .*/upload$",
        "presigned": r"PUT /bucket/\w+/[^/]+/[^/]+$",
        "multipart": r"PUT /bucket/.*\.1$",
    }
    assert cloud.count(kinds[transmission]) == 2  # the model and the Bento


def test_what_is_there_is_not_sent_again_and_a_deployment_is_changed(call: Caller, cloud: Cloud, bento: str) -> None:
    cloud.secrets = {"storage": {"A": "x"}, "hub": {"B": "y"}}
    first = ("--instance-type", "cpu.2", "--env", "KEPT=1", "--env", "CHANGED=1", "--secret", "storage")
    assert call("deploy", "bentocloud", bento, "--name", "upscale", *first).code == 0
    uploads = cloud.count("^PUT .*/upload$")
    changes = ("--scaling-max", "5", "--env", "CHANGED=2", "--env", "NEW=3", "--secret", "hub")
    done = call("deploy", "bentocloud", bento, "--name", "upscale", *changes, "--json")
    assert done.code == 0, said(done)
    assert (done.document["pushed"], done.document["created"]) == (False, False)
    assert cloud.count("^PUT .*/upload$") == uploads
    (body,) = (body for request, body in cloud.bodies if request == "PUT /api/v2/deployments/upscale")
    (service,) = body["services"].values()
    assert service["instance_type"] == "cpu.2", "what is not named stays"
    assert service["scaling"]["max_replicas"] == 5
    assert {env["name"]: env["value"] for env in body["envs"]} == {"KEPT": "1", "CHANGED": "2", "NEW": "3"}
    assert body["secrets"] == ["storage", "hub"]


def test_a_dry_run_shows_the_very_requests_and_sends_none(call: Caller, cloud: Cloud, bento: str) -> None:
    flags = ("deploy", "bentocloud", bento, "--name", "upscale", "--env", f"KEY={SECRET}")
    dry = call(*flags, "--dry-run", "--json")
    assert dry.code == 0, said(dry)
    said(dry)
    assert [request for request in cloud.requests if not request.startswith("GET ")] == []
    assert cloud.contents == {}
    assert call(*flags).code == 0
    sent = [request for request in cloud.requests if not request.startswith("GET ") and "presign" not in request]
    told = [f"{step['method']} {step['path']}" for step in dry.document["requests"]]
    paths = [line.replace("(as BentoCloud answers)", "") for line in told]
    assert len(told) == len(sent)
    for line, request in zip(paths, sent, strict=True):
        assert request.startswith(line)
    again = call(*flags, "--dry-run", "--json").document["requests"]
    assert [step["method"] + " " + step["path"] for step in again] == ["PUT /api/v2/deployments/upscale"]


def test_push_makes_a_bento_of_an_image_and_tells_each_request(
    call: Caller, cloud: Cloud, bento: str, world: World
) -> None:
    done = call("push", f"oci:{world.layout}", "bentocloud:short", "--json")
    assert done.code == 0, said(done)
    assert done.document["bento"].startswith("short:")
    assert "bento/short" in cloud.repositories
    assert done.document["requests"] == [one for one in cloud.requests if "/bucket/" not in one]
    dry = call("push", f"oci:{world.layout}", "bentocloud:short", "--dry-run", "--json")
    assert dry.document["requests"] == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--sbom"], ["--provenance"], ["--without-models"], ["--also", "x/y:1"], ["--compression", "gzip"],
        ["--models", "x/y"], ["--jobs", "4"], ["--blob-limit", "0"], ["--layer-limit", "0"], ["--attach", "x.json"],
    ],
)  # fmt: skip
def test_what_only_a_registry_has_is_not_left_out_without_a_word(
    call: Caller, cloud: Cloud, world: World, flags: list[str]
) -> None:
    done = call("push", f"oci:{world.layout}", "bentocloud:short", *flags)
    assert done.code == 2
    assert f"{flags[0]}: for registries" in done.err
    assert cloud.requests == []


def test_a_large_model_goes_in_parts_and_a_part_that_failed_goes_again(
    call: Caller, cloud: Cloud, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import bentoml
    from bentoml._internal.cloud.base import FILE_CHUNK_SIZE

    with bento_home(tmp_path_factory.mktemp("bentoml")):
        with bentoml.models.create("large:1") as model, open(model.path_of("model.bin"), "wb") as file:
            file.truncate(FILE_CHUNK_SIZE + 1000)
        context = tmp_path / "context"
        context.mkdir()
        (context / "service.py").write_text("import bentoml\n\n@bentoml.service\nclass Own:\n    pass\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(context)
            built = bentoml.bentos.build(
                "service:Own", name="own", version="1", models=["large:1"], build_ctx=str(context),
                docker={"base_image": "scratch"}, python={"lock_packages": False},
            )  # fmt: skip
        cloud.transmission = "multipart"
        cloud.faults = [Fault(r"PUT /bucket/model/large/1/.*\.2", 503, "SlowDown")]
        done = call("deploy", "bentocloud", str(built.tag), "--json")
        assert done.code == 0, said(done)
    assert len(cloud.contents["model/large/1"]) > FILE_CHUNK_SIZE
    assert cloud.count(r"PUT /bucket/model/large/1/.*\.1") == 1
    assert cloud.count(r"PUT /bucket/model/large/1/.*\.2") == 2
    assert cloud.count("complete_multipart_upload") == 2


@pytest.mark.parametrize("transmission", ["proxy", "presigned"])
def test_a_cut_upload_is_tried_again_and_what_was_whole_is_not(
    call: Caller, cloud: Cloud, bento: str, transmission: Any
) -> None:
    cloud.transmission = transmission
    cloud.faults = [Fault(r"PUT (/api/v1/bento_.*/upload|/bucket/bento/)", cut=True)]
    done = call("push", f"bento:{bento}", "bentocloud:unused", "--json")
    assert done.code == 0, said(done)
    said(done)
    assert cloud.count(r"PUT (/api/v1/model_.*/upload|/bucket/model/)") == 1
    assert cloud.count(r"PUT (/api/v1/bento_.*/upload|/bucket/bento/)") == 2
    assert "tried again" in done.err


def test_an_upload_that_never_succeeds_says_why_and_goes_on_the_next_time(
    call: Caller, cloud: Cloud, bento: str
) -> None:
    cloud.transmission = "presigned"
    cloud.faults = [Fault("PUT /bucket/bento/", 403, "RequestTimeTooSkewed", times=99)]
    failed = call("deploy", "bentocloud", bento)
    assert failed.code == 6
    assert "RequestTimeTooSkewed" in said(failed)
    assert "POST /api/v2/deployments" not in cloud.requests
    cloud.faults = []
    assert call("deploy", "bentocloud", bento).code == 0
    assert cloud.count("PUT /bucket/model/") == 1


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault("GET /api/v1/auth/current", 401, '{"error": "the token is expired"}'), 6, "does not accept the token"),
        (Fault("POST /api/v2/deployments", 409, '{"error": "already exists"}'), 6, "Choose another --name"),
        (Fault("POST /api/v2/deployments", 403, '{"error": "quota exceeded: 1 GPU"}'), 6, "quota exceeded: 1 GPU"),
        (
            Fault("POST /api/v2/deployments", 400, '{"error": "no instance type gpu.h900"}'),
            6,
            "no instance type gpu.h900",
        ),
        (Fault("POST /api/v2/deployments", 500, "oops"), 6, "failed at BentoCloud (500)"),
        (Fault("GET /api/v1/auth/current", 200, "<html>"), 6, "is no answer of BentoCloud's"),
        (Fault("GET /api/v1/auth/current", cut=True), 6, "could not be reached"),
    ],
)
def test_refusals_say_what_to_do(call: Caller, cloud: Cloud, bento: str, fault: Fault, code: int, words: str) -> None:
    fault.times = 99
    cloud.faults = [fault]
    done = call("deploy", "bentocloud", bento, "--name", "upscale")
    assert done.code == code, said(done)
    assert words in " ".join(said(done).split())


def test_a_server_error_while_pushing_passes(call: Caller, cloud: Cloud, bento: str) -> None:
    cloud.faults = [Fault("POST /api/v1/bento_repositories$", 502, "bad gateway", times=2)]
    done = call("deploy", "bentocloud", bento)
    assert done.code == 0, said(done)
    assert cloud.count("POST /api/v1/bento_repositories$") == 3
    assert cloud.count("PUT /api/v1/model_repositories/.*/upload") == 1


@pytest.mark.parametrize("status", ["failed", "image-build-failed", "unhealthy"])
def test_a_deployment_that_never_gets_ready_gives_the_reason(
    call: Caller, cloud: Cloud, bento: str, status: str
) -> None:
    cloud.statuses = ["deploying", "image-building", status]
    cloud.pods = [pod("upscale-1", "Failed", "CrashLoopBackOff: exit 1"), pod("upscale-2", "Running", "", ready=True)]
    done = call("deploy", "bentocloud", bento, "--name", "upscale", "--wait", "--timeout", "60")
    assert done.code == 7
    assert f"it is {status}" in said(done)
    assert "upscale-1: Failed, CrashLoopBackOff: exit 1" in said(done)
    assert "upscale-2" not in said(done)
    assert f"{cloud.url}/deployments/upscale" in done.err


def test_waiting_ends(call: Caller, cloud: Cloud, bento: str) -> None:
    cloud.statuses = ["deploying"]
    cloud.pods = [pod("upscale-1", "Pending", "Insufficient nvidia.com/gpu")]
    done = call("deploy", "bentocloud", bento, "--name", "upscale", "--wait", "--timeout", "1")
    assert done.code == 7
    assert "not ready after 1 s: it is deploying" in said(done)
    assert "Insufficient nvidia.com/gpu" in done.err


def test_an_image_that_bentocloud_cannot_reach_is_refused_unless_it_is_carried(
    call: Caller, cloud: Cloud, bento: str, published: Published
) -> None:
    done = call("deploy", "bentocloud", published.tag)
    assert done.code == 2
    assert "--self-contained" in said(done)
    assert cloud.count("^(POST|PUT|PATCH)") == 0
    done = call("deploy", "bentocloud", published.tag, "--self-contained", "--bento-name", "carried", "--json")
    assert done.code == 0, said(done)
    assert "./image/oci-layout" in names_in(cloud, "bento/carried")


def test_a_secret_that_is_not_there_is_told_before_the_deployment(call: Caller, cloud: Cloud, bento: str) -> None:
    done = call("deploy", "bentocloud", bento, "--secret", "nope")
    assert done.code == 4
    assert "has no secret 'nope'" in said(done)
    assert cloud.count("POST /api/v2/deployments") == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--name", "Up_scale"), "cannot be the name of a deployment"),
        (("--name", "a" * 64), "cannot be the name of a deployment"),
        (("--scaling-min", "3", "--scaling-max", "2"), "is more than"),
        (("--env", "1X=2"), "no variable's name"),
        (("--env", "NOT_SET_ANYWHERE"), "no such variable here"),
        (("--bento-name", "Ö"), "cannot be the name of a Bento"),
    ],
)
def test_bad_flags_are_told_before_anything_is_sent(
    call: Caller, cloud: Cloud, world: World, bento: str, flags: tuple[str, ...], words: str
) -> None:
    done = call("deploy", "bentocloud", f"oci:{world.layout}", *flags)
    assert done.code == 2
    assert words in said(done)
    assert cloud.count("^(POST|PUT|PATCH)") == 0


def test_progress_is_told_in_bytes(call: Caller, cloud: Cloud, bento: str) -> None:
    done = call("deploy", "bentocloud", bento, "--progress", "json")
    assert done.code == 0, said(done)
    events = [json.loads(line) for line in done.err.splitlines()]
    for kind, content in (("Pushing Bento", "bento/"), ("Pushing model", "model/")):
        (size,) = (len(data) for key, data in cloud.contents.items() if key.startswith(content))
        (task,) = (event["task"] for event in events if kind in event.get("title", ""))
        assert [event["done"] for event in events if event["event"] == "end" and event["task"] == task] == [size]


@pytest.mark.parametrize(
    "endpoint", ["http://[", "cloud.example", "ftp://cloud.example", "https://u:" + SECRET + "@cloud.example"]
)
def test_an_endpoint_that_is_none_is_refused(call: Caller, cloud: Cloud, bento: str, endpoint: str) -> None:
    done = call("deploy", "bentocloud", bento, "--endpoint", endpoint)
    assert done.code == 2
    assert "is no endpoint of BentoCloud" in said(done)


def test_no_login_is_an_error_that_names_both_ways(call: Caller, bento: str) -> None:
    done = call("deploy", "bentocloud", bento)
    assert done.code == 2
    assert "bentoml cloud login" in done.err
    assert "BENTO_CLOUD_API_KEY" in done.err


def test_the_contexts_of_bentoml_are_logins(
    call: Caller, cloud: Cloud, bento: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bentoml._internal.cloud.config import CloudClientContext

    monkeypatch.delenv("BENTO_CLOUD_API_KEY")
    CloudClientContext("team", cloud.url, TOKEN).save()
    assert call("deploy", "bentocloud", bento).code == 2, "no context is the current one"
    done = call("deploy", "bentocloud", bento, "--context", "team")
    assert done.code == 0, said(done)


def test_a_token_goes_only_where_it_belongs(
    call: Caller, cloud: Cloud, bento: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bentoml._internal.cloud.config import CloudClientContext

    plain = call("deploy", "bentocloud", bento, "--endpoint", "http://cloud.example")
    assert plain.code == 8
    assert "in the clear" in said(plain)
    monkeypatch.delenv("BENTO_CLOUD_API_KEY")
    CloudClientContext("default", "https://cloud.example", TOKEN).save()
    other = call("deploy", "bentocloud", bento, "--endpoint", cloud.url)
    assert other.code == 8
    assert "belongs to https://cloud.example" in said(other)
    named = call("deploy", "bentocloud", bento, "--context", "default", "--endpoint", cloud.url)
    assert named.code == 8
    assert "belongs to https://cloud.example" in said(named)
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", TOKEN)
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", "https://cloud.example")
    keyed = call("deploy", "bentocloud", bento, "--endpoint", cloud.url)
    assert keyed.code == 8
    assert "belongs to https://cloud.example" in said(keyed)
    assert cloud.requests == []
    monkeypatch.delenv("BENTO_CLOUD_API_ENDPOINT")  # the key alone is for whatever --endpoint names
    alone = call("deploy", "bentocloud", bento, "--endpoint", cloud.url)
    assert alone.code == 0, said(alone)


def test_two_logins_are_one_too_many(call: Caller, cloud: Cloud, bento: str) -> None:
    from bentoml._internal.cloud.config import CloudClientContext

    CloudClientContext("team", cloud.url, TOKEN).save()
    done = call("deploy", "bentocloud", bento, "--context", "team")
    assert done.code == 2
    assert "name two logins" in said(done)
    assert cloud.requests == []


@pytest.mark.parametrize("context", [["--context", "team"], []])
def test_a_bento_comes_back_with_its_models(
    call: Caller, cloud: Cloud, bento: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch, context: list[str],
) -> None:  # fmt: skip
    from bentoml._internal.cloud.config import CloudClientContext

    assert call("deploy", "bentocloud", bento).code == 0
    with bento_home(tmp_path_factory.mktemp("elsewhere")):
        CloudClientContext("team", cloud.url, TOKEN).save()
        if context:
            monkeypatch.delenv("BENTO_CLOUD_API_KEY")
        done = call("unpack-bento", bento, "-w", tmp_path / "workspace", *context, "--json")
    assert done.code == 0, said(done)
    lock = json.loads((tmp_path / "workspace" / ".cpack" / "cpack.lock").read_bytes())
    for model in lock["models"]:
        assert (tmp_path / "workspace" / model["path"]).stat().st_size == model["size"]
