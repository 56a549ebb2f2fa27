"""The time that this process has spent compiling, as JAX reports it: tracing, lowering, and XLA."""

from __future__ import annotations

import time

import jax

#: intervals (begin, end) of compilation on the clock of time.perf_counter, disjoint
_intervals: list[tuple[float, float]] = []


def _record(event: str, duration_secs: float, **_: str | int) -> None:
    """Keep the interval that ends now; it contains those of functions traced within it."""
    if not event.startswith("/jax/core/compile/"):
        return
    end = time.perf_counter()
    while _intervals and _intervals[-1][0] >= end - duration_secs:
        _intervals.pop()
    _intervals.append((end - duration_secs, end))


jax.monitoring.register_event_duration_secs_listener(_record)


def compile_seconds() -> float:
    """Seconds of compilation so far."""
    return sum(end - begin for begin, end in _intervals)
