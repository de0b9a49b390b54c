"""``plan --capacity``: how many replicas serve so many requests, and what a first one costs on each kind of node.

The numbers are what was measured: layers by builds and pushes, requests and starts by a service that ran.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from cpack_build.cli.terminal import amount

if TYPE_CHECKING:
    from cpack_build.deploy.capacity import ColdStart, Measured, Plan, Work
    from cpack_build.image.plan import PlannedLayer

__all__ = ["Capacity", "capacity_document", "capacity_options"]

F = TypeVar("F", bound=Callable[..., Any])
_TIMEOUT = 30
_LARGEST = 16 << 20


@dataclass(frozen=True)
class Capacity:
    """What was asked, and measured: *per_minute* requests, of *seconds* each (or what *metrics* say), of which 19 in 20
    may wait *late* seconds; *pull_rate* is bytes a second."""

    per_minute: float | None
    seconds: float | None
    metrics: str | None
    start: float | None
    pull_rate: float | None
    late: float | None

    def plans(self, measured: Measured | None) -> tuple[Work | None, list[Plan]]:
        """The work, and the replicas for it, by how requests are divided. Raises :class:`UsageError`."""
        from cpack_build.deploy.capacity import Work, replicas_for
        from cpack_build.errors import UsageError

        if self.per_minute is None:
            return None, []
        seconds = self.seconds or (measured.seconds if measured is not None else None)
        if seconds is None:
            raise UsageError(
                "How long a request takes was not measured.",
                hint="Add --metrics URL of a service that has served some, or --seconds SECONDS.",
            )
        is_measured = self.seconds is None and measured is not None
        work = Work(self.per_minute / 60, seconds, measured.variation if is_measured and measured else 0.0)
        late = self.late if self.late is not None else seconds
        return work, [replicas_for(work, "blind", late=late), replicas_for(work, "least-busy", late=late)]

    def measured(self) -> Measured | None:
        """What the service says, if one is named. Raises :class:`BadInput`, :class:`NetworkError`."""
        if self.metrics is None:
            return None
        from cpack_build.deploy.capacity import read_metrics
        from cpack_build.fetch.urls import redact

        return read_metrics(_read(self.metrics), name=redact(self.metrics))


def capacity_options(function: F) -> F:
    """The flags, passed as *capacity*: ``None`` where it is not asked for."""

    @functools.wraps(function)
    def wrapped(*args: Any, is_wanted: bool, **kwargs: Any) -> Any:
        names = ("per_minute", "seconds", "metrics", "start", "pull_rate", "late")
        values = {name: kwargs.pop(name) for name in names}
        if not is_wanted and any(value is not None for value in values.values()):
            from cpack_build.errors import UsageError

            raise UsageError("--per-minute and its like are for --capacity.", hint="Add --capacity.")
        if values["pull_rate"] is not None:
            values["pull_rate"] *= 10**6
        return function(*args, capacity=Capacity(**values) if is_wanted else None, **kwargs)

    positive = click.FloatRange(0, min_open=True)
    options = (
        click.option("--capacity", "is_wanted", is_flag=True, help="Also how many replicas it takes, and their start."),
        click.option("--per-minute", type=positive, metavar="COUNT", help="Requests that come, on average."),
        click.option("--metrics", metavar="URL|FILE", help="The /metrics of a service that has served some."),
        click.option("--seconds", type=positive, metavar="SECONDS", help="Of a request, instead of what was measured."),
        click.option("--start-seconds", "start", type=positive, metavar="SECONDS", help="From pulled to ready."),
        click.option("--pull-rate", type=positive, metavar="MB/S", help="Of a node that pulls and unpacks."),
        click.option(
            "--late", type=positive, metavar="SECONDS", help="That 19 in 20 may wait; by default a request's."
        ),
    )
    return cast("F", functools.reduce(lambda inner, option: option(inner), reversed(options), cast("Any", wrapped)))


def capacity_document(capacity: Capacity, layers: Sequence[PlannedLayer]) -> tuple[dict[str, Any], Iterator[str]]:
    """The answer for ``--json``, and for people."""
    from cpack_build.deploy.capacity import cold_starts

    measured = capacity.measured()
    work, plans = capacity.plans(measured)
    start = capacity.start or (measured.start if measured is not None else None)
    known = [(layer.kind, _stored(layer)) for layer in layers]
    unknown = sum(size is None for _, size in known)
    colds = cold_starts([(kind, size or 0) for kind, size in known], rate=capacity.pull_rate, start=start)
    document = {
        "measured": asdict(measured) if measured is not None else None,
        "work": asdict(work) if work is not None else None,
        "plans": [asdict(plan) for plan in plans],
        "cold_starts": [asdict(cold) for cold in colds],
        "unmeasured_layers": unknown,
    }
    return document, _lines(measured, work, plans, colds, unknown)


def _stored(layer: PlannedLayer) -> int | None:
    """Bytes that a node pulls, as far as they are known."""
    return layer.compressed if layer.compressed is not None else layer.size


def _lines(
    measured: Measured | None, work: Work | None, plans: Sequence[Plan], colds: Sequence[ColdStart], unknown: int
) -> Iterator[str]:
    if measured is not None:
        yield f"Measured: {measured.count} requests of {measured.seconds:.2f} s, variation {measured.variation:.2f}" + (
            f", ready after {measured.start:.1f} s" if measured.start else ""
        )
    if work is not None:
        yield f"{work.rate * 60:g} requests a minute of {work.seconds:.2f} s keep {work.offered:.2f} replicas at work:"
        for plan in plans:
            how = "by a proxy to the least busy" if plan.dispatch == "least-busy" else "blindly, as a Service does"
            yield (
                f"  divided {how}: {plan.replicas} replicas, {plan.busy:.0%} busy; "
                f"a request waits {plan.wait:.1f} s, and 1 in 20 longer than {plan.late:.1f} s"
            )
    yield "A first replica on a node that has…"
    width = max(len(cold.present) for cold in colds)
    for cold in colds:
        pulled = f"pulls {amount(cold.pulled, None, 'B'):>9} and has {amount(cold.shared, None, 'B'):>9}"
        seconds = "" if cold.seconds is None else f"  {cold.seconds:6.0f} s"
        late = (
            "" if cold.seconds is None or work is None else f", {work.rate * cold.seconds:.0f} requests come meanwhile"
        )
        yield f"  {cold.present:<{width}}  {pulled}{seconds}{late}"
    if any(cold.seconds is None for cold in colds):
        yield "How long that takes: add --pull-rate MB/S and --start-seconds SECONDS, or --metrics."
    if unknown:
        yield f"{unknown} layers were never made here and count as nothing: build the image first."


def _read(place: str) -> str:
    """The text at *place*, a URL or a file; a service that wants a token is given ``CPACK_TOKEN``."""
    from cpack_build.errors import BadInput, NetworkError
    from cpack_build.fetch.urls import redact

    if not place.startswith(("http://", "https://")):
        try:
            return Path(place).read_text(errors="replace")
        except OSError as error:
            raise BadInput(f"{place} cannot be read: {error.strerror}.", hint="Name a URL or a file.") from error
    import requests

    token = os.environ.get("CPACK_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with requests.get(place, headers=headers, timeout=_TIMEOUT, stream=True, allow_redirects=False) as answer:
            if answer.status_code == 401:
                raise NetworkError(f"{redact(place)} wants its token.", hint="Set CPACK_TOKEN to it.")
            if answer.status_code != 200:
                raise NetworkError(f"{redact(place)} answers {answer.status_code}.", hint="Name its /metrics.")
            data: bytes = answer.raw.read(_LARGEST, decode_content=True)
    except (requests.RequestException, OSError) as error:
        raise NetworkError(
            f"{redact(place)} does not answer: {type(error).__name__}.", hint="See whether the service runs."
        ) from error
    return data.decode("utf-8", "replace")
