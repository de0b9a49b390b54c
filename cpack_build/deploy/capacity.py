"""How many replicas serve so many requests, and what the start of one costs: a queueing model over measured numbers.

A replica works on one request at a time. Requests come independently of each other (Poisson). Either each goes to some
replica, as a Service in Kubernetes or a load balancer that takes turns does it, and waits there though another may be
idle; or to the one that has the fewest, as a proxy with "least requests" does it. ``docs/scaling.md`` has the
assumptions, and a simulation that says how good the model is.

Sources: Pollaczek–Khinchine's formula for M/G/1; Erlang C with the correction of Lee and Longton for M/G/k
(L. Kleinrock, Queueing Systems I, 5.6; A. M. Lee, P. A. Longton, "Queueing processes associated with airline passenger
check-in", 1959). How that becomes the fewest requests' is an interpolation of our own, which the simulation checks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cpack_build.errors import BadInput

__all__ = [
    "LAYOUTS",
    "ColdStart",
    "Dispatch",
    "Measured",
    "Plan",
    "Work",
    "backlog",
    "cold_starts",
    "erlang_c",
    "mean_wait",
    "read_metrics",
    "replicas_for",
    "wait_quantile",
]

Dispatch = Literal["blind", "least-busy"]
_MOST = 10_000
_PHASE = "run"
"""Of a request: the one in which a replica takes no other (``docs/serving.md``)."""


@dataclass(frozen=True)
class Work:
    """*rate* requests a second, each of which takes *seconds* of a replica on average, *variation* being the standard
    deviation over that."""

    rate: float
    seconds: float
    variation: float = 0.0

    @property
    def offered(self) -> float:
        """Replicas that would be busy all the time."""
        return self.rate * self.seconds

    def busy(self, replicas: int) -> float:
        """Of their time that each of *replicas* works; 1 or more is more than they can do."""
        return self.offered / replicas


@dataclass(frozen=True)
class Plan:
    """That *replicas* do it, and how: *wait* is the mean, *late* the wait that 1 in 20 exceeds, in seconds."""

    dispatch: Dispatch
    replicas: int
    busy: float
    wait: float
    late: float


def erlang_c(replicas: int, offered: float) -> float:
    """The probability that a request has to wait in M/M/k: all *replicas* are busy, which *offered* is less than."""
    blocked = 1.0
    for number in range(1, replicas + 1):  # Erlang B, which this recursion keeps from overflowing
        blocked = offered * blocked / (number + offered * blocked)
    busy = offered / replicas
    return blocked / (1 - busy * (1 - blocked))


def mean_wait(work: Work, replicas: int, dispatch: Dispatch) -> float:
    """Seconds that a request waits on average; infinite where *replicas* cannot do the work."""
    busy = work.busy(replicas)
    if busy >= 1:
        return math.inf
    rest = (1 + work.variation**2) / 2 * work.seconds  # that a request which is under way still takes, when met
    if dispatch == "blind" or replicas == 1:
        return rest * busy / (1 - busy)
    waits = erlang_c(replicas, work.offered)
    # One queue before all replicas would be the first of these: the first that becomes free takes the next. But who has
    # chosen a replica stays there, so it waits at least for the one request that it found there, the second of them.
    return math.hypot(waits * rest / (replicas * (1 - busy)), waits * rest)


def wait_quantile(work: Work, replicas: int, dispatch: Dispatch, *, share: float = 0.95) -> float:
    """Seconds that no more than *share* of all requests wait, with an exponential tail as M/M/k has it."""
    mean = mean_wait(work, replicas, dispatch)
    if math.isinf(mean):
        return mean
    waits = work.busy(replicas) if dispatch == "blind" else erlang_c(replicas, work.offered)
    return mean / waits * math.log(waits / (1 - share)) if waits > 1 - share else 0.0


def replicas_for(work: Work, dispatch: Dispatch, *, late: float) -> Plan:
    """The fewest replicas with which 19 in 20 requests wait no longer than *late* seconds.

    Raises :class:`BadInput` where no sensible number does.
    """
    for replicas in range(max(1, math.ceil(work.offered)), _MOST + 1):
        if (found := wait_quantile(work, replicas, dispatch)) <= late:
            wait = mean_wait(work, replicas, dispatch)
            return Plan(dispatch, replicas, work.busy(replicas), wait, found)
    raise BadInput(
        f"{work.rate * 60:g} requests a minute of {work.seconds:g} seconds need more than {_MOST} replicas.",
        hint="Check the numbers.",
    )


def backlog(before: Work, after: Work, *, replicas: int, added: int, seconds: float) -> tuple[float, float]:
    """What a rise of the load does while *added* replicas start, which takes *seconds*: the requests that wait when
    they are there, and the seconds until all of them together have worked it off (infinite where they cannot)."""
    pace = replicas / after.seconds
    waiting = max(0.0, (after.rate - pace) * seconds)
    spare = (replicas + added) / after.seconds - after.rate
    return waiting, (waiting / spare if spare > 0 else math.inf if waiting else 0.0)


# -- cold starts -------------------------------------------------------------------------------------------------------

_COMMON = frozenset({"system", "interpreter", "service", "wheel"})
_MODELS = frozenset({"model", "models"})
LAYOUTS: Mapping[str, frozenset[str]] = {
    "nothing": frozenset(),
    "another image of this Python and these heavy wheels": _COMMON,
    "its models, by another image or image volumes": _MODELS,
    "both": _COMMON | _MODELS,
}
"""What a node has already → the kinds of layers that it need not pull."""


@dataclass(frozen=True)
class ColdStart:
    """*present* is what the node has; it pulls *pulled* bytes and has *shared* of the image already. *seconds* is
    ``None`` where the rate or the start were not measured."""

    present: str
    pulled: int
    shared: int
    seconds: float | None


def cold_starts(
    layers: Iterable[tuple[str, int]], *, rate: float | None = None, start: float | None = None
) -> list[ColdStart]:
    """By what a node has: the cost of a first replica there. *layers* are kind and bytes in a registry, *rate* is bytes
    a second with unpacking, *start* the seconds from then on until it serves."""
    listed = list(layers)
    total = sum(size for _, size in listed)
    found = []
    for present, kinds in LAYOUTS.items():
        pulled = sum(size for kind, size in listed if kind not in kinds)
        found.append(ColdStart(present, pulled, total - pulled, _seconds(pulled, rate, start)))
    return [*found, ColdStart("the image", 0, total, _seconds(0, rate, start))]


def _seconds(pulled: int, rate: float | None, start: float | None) -> float | None:
    if start is None or (pulled and rate is None):
        return None
    return start + (pulled / rate if rate is not None else 0.0)


# -- what a service measured -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What ``/metrics`` of a service says: *count* requests ran, of *seconds* each on average; *start* is how long it
    took until it was ready, ``None`` where it does not say."""

    count: int
    seconds: float
    variation: float
    start: float | None


def read_metrics(text: str, *, name: str) -> Measured:
    """Read the *text* of ``/metrics``, of one service or of several put together; *name* is what errors call it.

    The variation is read off the histogram, whose buckets are coarse: each request counts as the middle of its own.
    Raises :class:`BadInput` when no request has run.
    """
    totals: dict[str, float] = {"sum": 0.0, "count": 0.0}
    buckets: dict[float, float] = {}
    starts: list[float] = []
    for line in text.splitlines():
        match = re.fullmatch(r"(cpack_\w+)(?:\{(.*)\})? ([0-9.eE+-]+|NaN|[+]Inf)(?: [0-9]+)?", line.strip())
        if match is None:
            continue
        key, value = match[1], float(match[3])
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
        if key == "cpack_start_seconds" and value > 0:
            starts.append(value)
        if not key.startswith("cpack_phase_seconds_") or labels.get("phase") != _PHASE or not math.isfinite(value):
            continue
        kind = key.removeprefix("cpack_phase_seconds_")
        if kind in totals:
            totals[kind] += value
        elif kind == "bucket":
            bound = float(labels.get("le", "nan"))
            buckets[bound] = buckets.get(bound, 0.0) + value
    if totals["count"] < 1 or totals["sum"] <= 0:
        raise BadInput(
            f"{name} has no request that ran.", hint="Give it the /metrics of a service that has served some."
        )
    mean = totals["sum"] / totals["count"]
    return Measured(round(totals["count"]), mean, _variation(buckets, mean), max(starts, default=None))


def _variation(buckets: Mapping[float, float], mean: float) -> float:
    bounds: Sequence[float] = sorted(bound for bound in buckets if not math.isnan(bound))
    squares = count = total = 0.0
    lower = below = 0.0
    for bound in bounds:
        inside, below = buckets[bound] - below, buckets[bound]
        middle = (lower + bound) / 2 if math.isfinite(bound) else max(lower, mean)
        squares, total, count = squares + inside * middle**2, total + inside * middle, count + inside
        lower = bound
    if not count or not total:
        return 0.0
    center = total / count
    return math.sqrt(max(0.0, squares / count - center**2)) / center
