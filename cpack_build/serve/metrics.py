"""What the service counts, in Prometheus' text format, added to BentoML's own ``/metrics``."""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Metrics"]

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counters of one service. Phases: ``upload``, ``queue``, ``run``, ``collect``; times are seconds."""

    def __init__(self) -> None:
        self._requests: dict[int, int] = {}
        self._phases: dict[str, list[float]] = {}
        self._buckets: dict[str, list[int]] = {}

    def answered(self, status: int) -> None:
        """A request to generate was answered with *status*."""
        self._requests[status] = self._requests.get(status, 0) + 1

    def observe(self, phase: str, seconds: float) -> None:
        """*phase* of a request took *seconds*."""
        total = self._phases.setdefault(phase, [0.0, 0])
        total[0] += seconds
        total[1] += 1
        self._buckets.setdefault(phase, [0] * (len(_BOUNDS) + 1))[bisect.bisect_left(_BOUNDS, seconds)] += 1

    @contextlib.contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Observe how long the block takes, unless it fails."""
        began = time.perf_counter()
        yield
        self.observe(phase, time.perf_counter() - began)

    def text(
        self,
        *,
        waiting: int,
        running: int,
        losses: int,
        ready: int,
        devices: Sequence[Mapping[str, Any]],
        start: float | None = None,
    ) -> str:
        """The metrics; *devices* are ComfyUI's, their memory in bytes. *start* is told once it is known."""
        lines = [
            *_gauge("cpack_queue_depth", "Requests that wait for ComfyUI.", waiting),
            *_gauge("cpack_running", "Requests that ComfyUI works on.", running),
            *_gauge("cpack_comfyui_ready", "ComfyUI processes that answer.", ready),
            *(_gauge("cpack_start_seconds", "From the start until it said that it is ready.", start) if start else ()),
            "# HELP cpack_comfyui_losses_total Times that ComfyUI was lost (and, if it is ours, started again).",
            "# TYPE cpack_comfyui_losses_total counter",
            f"cpack_comfyui_losses_total {losses}",
            "# HELP cpack_requests_total Requests to generate, by HTTP status.",
            "# TYPE cpack_requests_total counter",
            *(f'cpack_requests_total{{status="{status}"}} {count}' for status, count in sorted(self._requests.items())),
            "# HELP cpack_phase_seconds Time of a request by phase.",
            "# TYPE cpack_phase_seconds histogram",
        ]
        for phase, (total, count) in sorted(self._phases.items()):
            below = 0
            for bound, number in zip((*_BOUNDS, "+Inf"), self._buckets[phase], strict=True):
                below += number
                lines.append(f'cpack_phase_seconds_bucket{{phase="{phase}",le="{bound}"}} {below}')
            lines += [
                f'cpack_phase_seconds_sum{{phase="{phase}"}} {total:.6f}',
                f'cpack_phase_seconds_count{{phase="{phase}"}} {count:.0f}',
            ]
        for key, name, what in (
            ("vram_total", "cpack_device_memory_bytes", "Memory of ComfyUI's device."),
            ("vram_free", "cpack_device_memory_free_bytes", "Free memory of ComfyUI's device."),
        ):
            lines += [f"# HELP {name} {what}", f"# TYPE {name} gauge"]
            for number, device in enumerate(devices):
                label = str(device.get("name", "")).replace("\\", "").replace('"', "").replace("\n", " ")
                lines.append(f'{name}{{device="{number}",name="{label}"}} {int(device.get(key) or 0)}')
        return "\n".join(lines) + "\n"


def _gauge(name: str, what: str, value: float) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} gauge", f"{name} {value}"]
