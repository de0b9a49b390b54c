"""Work that several threads do at once ends soon after it is no longer wanted."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from cpack_build.errors import Cancelled
from cpack_build.progress import SILENT, Progress, working


def endless(progress: Progress, started: threading.Event, ended: list[str]) -> None:
    """Reports for as long as it may: half a minute at most, so that a failure is one and no hanging test."""
    with progress.task("endless") as task:
        started.set()
        for _ in range(3000):
            task.advance(1)
            threading.Event().wait(0.01)
    ended.append("by itself")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_runs_and_what_waits_is_stopped_by_ctrl_c_and_by_an_error(error: type[BaseException]) -> None:
    started = threading.Event()
    ended: list[str] = []
    futures: list[Future[None]] = []

    def fail() -> None:
        with working(1, SILENT) as (pool, progress):
            futures.append(pool.submit(endless, progress, started, ended))
            futures.append(pool.submit(ended.append, "begun"))
            started.wait()
            raise error

    with pytest.raises(error):
        fail()
    running, waiting = futures
    assert isinstance(running.exception(), Cancelled)
    assert waiting.cancelled()
    assert ended == []


def test_what_ends_well_is_waited_for() -> None:
    with working(2, SILENT) as (pool, progress):
        with progress.task("outside") as task:
            task.expect(1)
            task.advance(1)
        futures = [pool.submit(str, number) for number in range(5)]
    assert [future.result() for future in futures] == ["0", "1", "2", "3", "4"]
