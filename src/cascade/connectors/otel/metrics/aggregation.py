"""The measurements of a process, from the event loop that makes them to the exporter that takes them away."""

import math
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cascade.connectors.otel.metrics.catalogue import BOUNDS, CardinalityLimit, Key
from cascade.connectors.otel.metrics.gauges import Gauges
from cascade.connectors.otel.metrics.settings import Settings

Example = tuple[float, int, str, str]
"""An exemplar: a value, when it was measured, and the ids of its trace and span, in hex. No class: that costs more."""


class Histogram:
    """Durations in seconds: how many per bucket, and the latest example of each."""

    __slots__ = ("counts", "examples", "largest", "smallest", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.examples: dict[int, Example] = {}
        self.total = 0.0
        self.smallest = math.inf
        self.largest = -math.inf

    def record(self, value: float, example: Example | None) -> None:
        bucket = bisect_left(BOUNDS, value)
        self.counts[bucket] += 1
        self.total += value
        if value < self.smallest:  # noqa: PLR1730 - a call of min() for each task costs more than all of this
            self.smallest = value
        if value > self.largest:  # noqa: PLR1730
            self.largest = value
        if example is not None:
            self.examples[bucket] = example

    def absorb(self, other: "Histogram") -> None:
        self.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        self.examples |= other.examples
        self.total += other.total
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)


class Cells:
    """All measurements of a period, by key. What is over the census's limits is in its overflow."""

    __slots__ = ("_limit", "counts", "histograms")

    def __init__(self) -> None:
        self._limit = CardinalityLimit()
        self.histograms: dict[Key, Histogram] = {}
        self.counts: dict[Key, int] = {}

    def __bool__(self) -> bool:
        return bool(self.histograms or self.counts)

    def histogram(self, key: Key) -> Histogram:
        found = self.histograms.get(key)
        if found is None:
            found = self.histograms.setdefault(self._limit.admit(key), Histogram())
        return found

    def add(self, key: Key, more: int = 1) -> None:
        if key not in self.counts:
            key = self._limit.admit(key)
        self.counts[key] = self.counts.get(key, 0) + more

    def absorb(self, other: "Cells") -> None:
        for key, histogram in other.histograms.items():
            self.histogram(key).absorb(histogram)
        for key, more in other.counts.items():
            self.add(key, more)

    def forget_examples(self) -> None:
        for histogram in self.histograms.values():
            histogram.examples = {}


_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of one export, from `start_ns` (delta) or `origin_ns` (cumulative) to `end_ns`."""

    cells: Cells
    telemetry: Counter[Key]
    active_runs: int
    active_tasks: int
    origin_ns: int
    start_ns: int
    end_ns: int
    are_cells_delta: bool
    is_telemetry_delta: bool


class Ledger:
    """The sink of our own exports. `wake` is called with the first news after each take; it may take a while.

    Measurements go to `_fresh`, under a lock that is held for nanoseconds; a take swaps that for an empty one and
    adds it to the totals, which are the exporter's alone. Totals are kept until a peer has them: for good if they are
    cumulative. Memory is bounded by the census's limits.
    """

    def __init__(self, settings: Settings) -> None:
        self.wake: Callable[[], None] = lambda: None
        self.gauges = Gauges()
        self._temporality = settings.temporality
        self._takes_examples = settings.exemplars != "always_off"
        self._needed_flag = _SAMPLED if settings.exemplars == "trace_based" else 0
        self._is_off = False
        self._resumes_at = math.inf
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._fresh = Cells()
        self._totals = Cells()
        self._taken: Counter[Key] = Counter()
        self._is_touched = False
        self._origin_ns = self._start_ns = time.time_ns()

    def observe(self, key: Key, seconds: float, end_ns: int, payload: Mapping[str, Any]) -> None:
        if self._is_off:
            return
        example = None
        if self._takes_examples and payload.get("trace_flags", 1) & _SAMPLED >= self._needed_flag:
            example = (seconds, end_ns, payload["trace_id"], payload["span_id"])
        with self._lock:
            is_first = not self._fresh.histograms
            histogram = self._fresh.histograms.get(key) or self._fresh.histogram(key)
            histogram.record(seconds, example)
        if is_first:
            self.wake()

    def count(self, key: Key) -> None:
        if self._is_off:
            return
        with self._lock:
            is_first = not self._fresh.counts
            self._fresh.add(key)
        if is_first:
            self.wake()

    def touch(self) -> None:
        if self._is_off and time.monotonic() >= self._resumes_at:
            self._begin()
            self._is_off = False
        if not self._is_off:
            self._is_touched = True
            self.wake()

    @property
    def has_news(self) -> bool:
        """Whether there is anything to export. That is so while runs or tasks are active."""
        return not self._is_off and (bool(self._fresh) or self._is_touched or self.gauges.is_active)

    def take(self) -> Snapshot:
        """Take a snapshot; `settle` follows once a peer has accepted it."""
        self._is_touched = False
        with self._lock:
            fresh, self._fresh = self._fresh, Cells()
            end_ns = time.time_ns()
        self._totals.absorb(fresh)
        telemetry = self.gauges.telemetry()
        is_delta = self._temporality == "delta"
        return Snapshot(
            cells=self._totals,
            telemetry=telemetry - self._taken if is_delta else telemetry,
            active_runs=self.gauges.active_runs,
            active_tasks=self.gauges.active_tasks,
            origin_ns=self._origin_ns,
            start_ns=self._start_ns,
            end_ns=end_ns,
            are_cells_delta=self._temporality != "cumulative",
            is_telemetry_delta=is_delta,
        )

    def settle(self, snapshot: Snapshot) -> None:
        """A peer has what is in the snapshot."""
        if snapshot.is_telemetry_delta:
            self._taken += snapshot.telemetry
        if snapshot.are_cells_delta:
            self._totals = Cells()
            self._start_ns = snapshot.end_ns
        else:
            self._totals.forget_examples()

    def turn_off(self, pause: float = math.inf) -> None:
        """Forget all measurements and take no more, until the first run that starts or ends after `pause` seconds."""
        self._resumes_at = time.monotonic() + pause
        self._is_off = True
        with self._lock:
            self._fresh = Cells()
        self._totals = Cells()

    def reset_after_fork(self) -> None:
        self.gauges.reset_after_fork()
        self._begin()
