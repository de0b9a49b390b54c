"""How many replicas, and what a start costs: the model is right where it can be computed otherwise, near the simulation
elsewhere, and the tables of the docs are what the simulation prints."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

from cpack_build.deploy.capacity import (
    Work,
    backlog,
    cold_starts,
    erlang_c,
    mean_wait,
    read_metrics,
    replicas_for,
    wait_quantile,
)
from cpack_build.errors import BadInput
from cpack_build.fetch.store import Store
from cpack_build.image.build import build
from cpack_build.serve.metrics import Metrics
from tests.cli.calling import Caller
from tests.fetch.servers import Answer, Request, serving, serving_files
from tests.image.golden.building import INPUTS, LOCK, golden_lock, materials_from

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "examples/scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_docs_are_what_the_simulation_prints(scaling: ModuleType) -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    assert scaling.with_tables(text) == text, "run python examples/scaling.py --write"


def test_the_model_is_near_the_simulation(scaling: ModuleType) -> None:
    for dispatch, replicas, busy, variation, model, simulated, late, simulated_late in scaling.model_rows():
        what = (dispatch, replicas, busy, variation)
        assert model == pytest.approx(simulated, rel=scaling.TOLERANCE, abs=0.5), what
        assert late >= 0.85 * simulated_late, f"{what}: the model must not promise what the simulation does not keep"


def test_one_replica_with_exponential_times_is_mm1() -> None:
    """M/M/1: the wait is ρ/(μ−λ), and P(W>t) = ρ e^(−(μ−λ)t)."""
    work = Work(0.05, 10, 1.0)
    assert mean_wait(work, 1, "blind") == pytest.approx(0.5 / (0.1 - 0.05))
    assert mean_wait(work, 1, "least-busy") == mean_wait(work, 1, "blind")
    late = wait_quantile(work, 1, "blind")
    assert 0.5 * math.exp(-(0.1 - 0.05) * late) == pytest.approx(0.05)


@pytest.mark.parametrize(("replicas", "offered"), [(1, 0.5), (2, 1.5), (10, 8.0), (300, 290.0)])
def test_erlang_c_is_its_own_definition(replicas: int, offered: float) -> None:
    """Σ a^n/n! and its last term, by logarithms."""
    logs = [number * math.log(offered) - math.lgamma(number + 1) for number in range(replicas)]
    last = replicas * math.log(offered) - math.lgamma(replicas + 1) - math.log(1 - offered / replicas)
    top = max(*logs, last)
    expected = math.exp(last - top) / (sum(math.exp(one - top) for one in logs) + math.exp(last - top))
    assert erlang_c(replicas, offered) == pytest.approx(expected)


def test_the_fewest_replicas_that_do_are_found() -> None:
    work = Work(0.5, 10, 0.5)
    for dispatch in ("blind", "least-busy"):
        plan = replicas_for(work, dispatch, late=10)  # type: ignore[arg-type]
        assert plan.late <= 10 < wait_quantile(work, plan.replicas - 1, plan.dispatch)
        assert plan.busy == pytest.approx(5 / plan.replicas)
    assert mean_wait(work, 5, "blind") == math.inf
    with pytest.raises(BadInput):
        replicas_for(Work(1e6, 10), "blind", late=1)


def test_what_waits_during_a_start_and_how_long_it_takes_to_go() -> None:
    assert backlog(Work(0.2, 10), Work(0.4, 10), replicas=3, added=3, seconds=100) == (
        pytest.approx(10),
        pytest.approx(50),
    )
    assert backlog(Work(0.2, 10), Work(0.8, 10), replicas=3, added=3, seconds=100)[1] == math.inf
    assert backlog(Work(0.1, 10), Work(0.2, 10), replicas=3, added=3, seconds=100) == (0, 0)


def test_a_start_costs_what_the_node_lacks() -> None:
    layers = [("system", 100), ("service", 50), ("wheel", 1000), ("model", 5000), ("comfyui", 30), ("app", 1)]
    by = {cold.present: (cold.pulled, cold.shared, cold.seconds) for cold in cold_starts(layers, rate=128, start=8)}
    assert by == {
        "nothing": (6181, 0, 8 + 6181 / 128),
        "another image of this Python and these heavy wheels": (5031, 1150, 8 + 5031 / 128),
        "its models, by another image or image volumes": (1181, 5000, 8 + 1181 / 128),
        "both": (31, 6150, 8 + 31 / 128),
        "the image": (0, 6181, 8),
    }
    assert [cold.seconds for cold in cold_starts(layers, start=7)] == [None] * 4 + [7]


def metrics(times: list[float], *, start: float | None = 12.5) -> str:
    counted = Metrics()
    for seconds in times:
        counted.observe("run", seconds)
        counted.observe("queue", 100 * seconds)
    return counted.text(waiting=0, running=0, losses=0, ready=1, devices=[], start=start)


def test_what_a_service_measured_is_read_from_its_own_metrics() -> None:
    found = read_metrics(metrics([2.0] * 30 + [20.0] * 10), name="x")
    assert (found.count, found.seconds, found.start) == (40, pytest.approx(6.5), 12.5)
    assert found.variation == pytest.approx(1.2, abs=0.15)  # 7.8/6.5, but for the buckets
    assert read_metrics(metrics([2.0] * 10, start=None), name="x").variation == 0
    together = read_metrics(metrics([1.0]) + metrics([3.0]), name="two replicas")
    assert (together.count, together.seconds) == (2, 2.0)
    # as Prometheus writes it, with its own labels and times
    assert read_metrics(
        'cpack_phase_seconds_sum{pod="a",phase="run"} 1.2e+01 1700000000000\n'
        'cpack_phase_seconds_count{pod="a",phase="run"} 4 1700000000000\n', name="x"
    ).seconds == 3  # fmt: skip


@pytest.mark.parametrize("text", ["", "<html>", 'cpack_phase_seconds_count{phase="run"} NaN\n', metrics([])])
def test_metrics_without_a_request_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        read_metrics(text, name="x")


def test_plan_tells_replicas_and_starts(call: Caller, tmp_path: Path) -> None:
    store = Store()
    with materials_from(INPUTS, store) as materials, build(golden_lock(), materials, store=store):
        pass
    file = tmp_path / "metrics.txt"
    file.write_text(metrics([8.0] * 30 + [12.0] * 10))
    base = ("plan", LOCK, "--capacity", "--per-minute", "12", "--metrics", file, "--pull-rate", "0.01")
    done = call(*base, "--json")
    assert done.code == 0, done.err
    capacity = done.document["capacity"]
    blind, least = capacity["plans"]
    assert (blind["dispatch"], least["dispatch"]) == ("blind", "least-busy")
    assert least["replicas"] < blind["replicas"]
    sizes = [layer["compressed"] or layer["size"] or 0 for layer in done.document["layers"]]
    assert capacity["cold_starts"][0]["pulled"] == sum(sizes)
    assert capacity["cold_starts"][0]["seconds"] == pytest.approx(12.5 + sum(sizes) / 10_000)
    lines = call(*base).out
    assert "Measured: 40 requests of 9.00 s" in lines
    assert "12 requests a minute of 9.00 s keep 1.80 replicas at work:" in lines
    assert f"divided blindly, as a Service does: {blind['replicas']} replicas" in lines


def test_a_running_service_is_asked_with_its_token(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Request) -> Answer:
        is_right = request.headers.get("authorization") == "Bearer its-token"
        return Answer(body=metrics([1.0]).encode()) if is_right else Answer(401)

    base = ("plan", LOCK, "--capacity", "--per-minute", "6", "--metrics")
    with serving(answer) as server:
        done = call(*base, f"{server.url}/metrics")
        assert (done.code, "CPACK_TOKEN" in done.err) == (6, True), done.err
        monkeypatch.setenv("CPACK_TOKEN", "its-token")
        done = call(*base, f"{server.url}/metrics")
        assert done.code == 0, done.err
        assert "its-token" not in done.out + done.err
    with serving_files({}) as server:
        done = call(*base, f"{server.url}/metrics")
        assert (done.code, "answers 404" in done.err) == (6, True), done.err


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--per-minute", "6"], 2, "Add --capacity"),
        (["--capacity", "--per-minute", "6"], 2, "was not measured"),
        (["--capacity", "--per-minute", "0", "--seconds", "1"], 2, "0"),
        (["--capacity", "--metrics", "/nonexistent"], 3, "cannot be read"),
        (["--capacity", "--metrics", "http://127.0.0.1:9/metrics"], 6, "does not answer"),
        (["--capacity", "--per-minute", "9e9", "--seconds", "10"], 3, "more than 10000"),
    ],
)
def test_what_cannot_be_computed_is_refused(call: Caller, flags: list[str], code: int, told: str) -> None:
    done = call("plan", LOCK, *flags)
    assert (done.code, told in done.err) == (code, True), done.err
