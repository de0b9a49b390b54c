"""The tables of ``docs/scaling.md``: the queueing model of ``plan --capacity`` beside a simulation of the same service.

    python examples/scaling.py            # prints the tables
    python examples/scaling.py --write    # puts them into docs/scaling.md

The simulation knows nothing of the model: requests come one by one, each goes to a replica and waits there for its
turn. Its random numbers are made from seeds, so it prints the same everywhere.
"""

from __future__ import annotations

import bisect
import math
import random
import re
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cpack_build.deploy.capacity import Dispatch, Work, backlog, mean_wait, replicas_for, wait_quantile

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
REQUESTS = 60_000
"""Of one run; the first tenth, while the queues fill, is not counted."""
DISPATCHES: tuple[Dispatch, Dispatch] = ("blind", "least-busy")
TOLERANCE = 0.25
"""How far the model's mean may be from the simulation's, of it; a test holds the table to that."""


def service_times(seconds: float, variation: float, chance: random.Random) -> Callable[[], float]:
    """Draws the time of a request: always the same, or the sum of some exponential stages (Erlang), or of one."""
    stages = round(1 / variation**2) if variation else 0

    def draw() -> float:
        if not stages:
            return seconds
        product = 1.0
        for _ in range(stages):
            product *= 1 - chance.random()
        return -math.log(product) * seconds / stages

    return draw


def simulate(
    work: Work, replicas: int, dispatch: Dispatch, *, seed: int, requests: int = REQUESTS
) -> tuple[float, float]:
    """Mean wait, and the wait that 1 in 20 requests exceeds, in seconds."""
    chance = random.Random(seed)
    draw = service_times(work.seconds, work.variation, chance)
    queues: list[deque[float]] = [deque() for _ in range(replicas)]  # when each request there will be done
    now, waits = 0.0, []
    for _ in range(requests):
        now -= math.log(1 - chance.random()) / work.rate
        number = int(chance.random() * replicas)
        if dispatch == "least-busy":
            for queue in queues:
                while queue and queue[0] <= now:
                    queue.popleft()
            number = min(range(replicas), key=lambda one: len(queues[one]))
        queue = queues[number]
        start = max(now, queue[-1]) if queue else now
        waits.append(start - now)
        queue.append(start + draw())
        if dispatch == "blind" and len(queue) > 1:
            queue.popleft()  # only the last is asked for
    counted = sorted(waits[requests // 10 :])
    return sum(counted) / len(counted), counted[int(0.95 * len(counted))]


def burst(
    before: Work, after: Work, *, replicas: int, added: int, seconds: float, runs: int = 40
) -> tuple[float, float]:
    """The load rises at 0, and *added* replicas are there after *seconds*. Averages over *runs* of the requests that
    wait when the new replicas are there, and of the seconds from then until nobody waits."""
    waiting_sum = drained_sum = 0.0
    for run in range(runs):
        chance = random.Random(1000 + run)
        draw = service_times(after.seconds, after.variation, chance)
        free = sorted([0.0] * replicas)  # when each replica is free; one queue before all of them
        now, rate, warm = -200 * before.seconds, before.rate, False
        pending: deque[float] = deque()  # when those came that have not begun
        waiting, drained = 0, math.inf
        for index in range(len(free)):
            free[index] = now
        while math.isinf(drained):
            rate = after.rate if now >= 0 else before.rate
            gap = -math.log(1 - chance.random()) / rate
            upcoming = now + gap
            if now < 0 <= upcoming:
                upcoming = 0.0 - math.log(1 - chance.random()) / after.rate
            # what begins before the next request comes
            while pending and (free[0] <= upcoming or (not warm and seconds <= upcoming)):
                if not warm and seconds <= max(free[0], pending[0]):
                    warm, waiting = True, len(pending)
                    for _ in range(added):
                        bisect.insort(free, seconds)
                    continue
                begins = max(free.pop(0), pending.popleft())
                bisect.insort(free, begins + draw())
                if warm and not pending and begins >= seconds:
                    drained = begins - seconds
                    break
            if not warm and seconds <= upcoming and not pending:
                warm, drained = True, 0.0
            now = upcoming
            pending.append(now)
        waiting_sum, drained_sum = waiting_sum + waiting, drained_sum + drained
    return waiting_sum / runs, drained_sum / runs


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def replicas_table() -> str:
    """How many replicas it takes, by what is before them."""
    rows = []
    for per_minute in (3, 6, 12, 30, 60):
        work = Work(per_minute / 60, 10, 0.5)
        row = [str(per_minute), f"{work.offered:.1f}"]
        for dispatch in DISPATCHES:
            plan = replicas_for(work, dispatch, late=10)
            _, late = simulate(work, plan.replicas, dispatch, seed=per_minute)
            row += [str(plan.replicas), f"{plan.busy:.0%}", f"{plan.late:.1f}", f"{late:.1f}"]
        rows.append(row)
    each = ["replicas", "busy", "late, model", "late, simulated"]
    return table(["a minute", "work", *each, *(f"{one}, least busy" for one in each)], rows)


def model_rows() -> list[tuple[Dispatch, int, float, float, float, float, float, float]]:
    """Dispatch, replicas, busy, variation; mean wait of model and simulation, and what 1 in 20 exceeds in both."""
    rows = []
    for dispatch in DISPATCHES:
        for replicas, busy, variation in ((1, 0.5, 0.0), (1, 0.7, 0.5), (4, 0.7, 0.0), (4, 0.7, 0.5), (4, 0.9, 0.5),
                                          (4, 0.7, 1.0), (16, 0.7, 0.5), (16, 0.9, 0.5)):  # fmt: skip
            work = Work(busy * replicas / 10, 10, variation)
            mean, late = simulate(work, replicas, dispatch, seed=17 * replicas + round(100 * busy))
            rows.append(
                (
                    dispatch, replicas, busy, variation,
                    mean_wait(work, replicas, dispatch), mean, wait_quantile(work, replicas, dispatch), late,
                )
            )  # fmt: skip
    return rows


def model_table() -> str:
    """The model beside the simulation, in seconds, for requests of 10 seconds."""
    rows = [
        [dispatch, str(replicas), f"{busy:.0%}", f"{variation:g}", *(f"{one:.1f}" for one in waits)]
        for dispatch, replicas, busy, variation, *waits in model_rows()
    ]
    waits = ["mean, model", "mean, simulated", "late, model", "late, simulated"]
    return table(["to", "replicas", "busy", "variation", *waits], rows)


def burst_table() -> str:
    """A rise from 12 to 24 requests a minute of 10 seconds: 3 replicas, and 3 more that start."""
    before, after = Work(0.2, 10, 0.5), Work(0.4, 10, 0.5)
    rows = []
    for what, seconds in (
        ("the image is there", 20.0),
        ("its models are there", 50.0),
        ("10 GB at 100 MB/s", 120.0),
        ("40 GB at 100 MB/s", 420.0),
    ):
        waiting, drained = backlog(before, after, replicas=3, added=3, seconds=seconds)
        found, took = burst(before, after, replicas=3, added=3, seconds=seconds)
        rows.append([what, f"{seconds:.0f}", f"{waiting:.1f}", f"{found:.1f}", f"{drained:.0f}", f"{took:.0f}"])
    head = ["cold start", "seconds", "waiting, model", "waiting, simulated", "worked off after, model", "simulated"]
    return table(head, rows)


TABLES: dict[str, Callable[[], str]] = {"replicas": replicas_table, "model": model_table, "burst": burst_table}


def with_tables(text: str) -> str:
    """*text* with each table in its place, between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
        made = make()
        text, count = re.subn(pattern, lambda found, made=made: found[1] + made + found[2], text, flags=re.DOTALL)
        assert count == 1, name
    return text


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
    else:
        print("\n\n".join(f"{name}\n\n{make()}" for name, make in TABLES.items()))
