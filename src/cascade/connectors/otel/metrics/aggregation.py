"""Aggregation of measurements between two exports.

Cascade has its own aggregation for speed. A measurement with its exemplar takes 0.5 µs, and 8 µs with an instrument of the
SDK.
"""

import math
import threading
import time
import weakref
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cascade.connectors.otel.buffer import FlushReport
from cascade.connectors.otel.metrics import catalogue as m
from cascade.connectors.otel.metrics.catalogue import BOUNDS, Key, Metric
from cascade.connectors.otel.sdk_settings import MetricSettings
from cascade.telemetry import attributes as a

Exemplar = tuple[float, int, str, str]
"""A value, its time in nanoseconds, and the hexadecimal ids of its trace and span. A tuple is created faster than a class."""

_SAMPLED = 1


MAX_NAMES = 200
MAX_TARGETS = 200
MAX_ERROR_TYPES = 50
MAX_SETS = 1000
"""Attribute sets of one metric. A request with this many for each metric is below 4 MiB, the default limit of gRPC servers."""

_LIMITS = {a.TASK_NAME: MAX_NAMES, a.RUN_TARGET: MAX_TARGETS, a.ERROR_TYPE: MAX_ERROR_TYPES}


class CardinalityLimit:
    """Limits the number of attribute sets, whose values come from user code. Not thread-safe."""

    def __init__(self) -> None:
        self._sets: Counter[Metric] = Counter()
        self._values: dict[str, set[str]] = defaultdict(set)

    def admit(self, key: Key) -> Key:
        """Return a new key unchanged, or the overflow key if a limit is reached. Each new key is counted once."""
        metric: Metric = key[0]
        limited = [pair for pair in zip(metric.attributes, key[1:], strict=False) if pair[0] in _LIMITS]
        if self._sets[metric] >= MAX_SETS or any(self._is_above_limit(*pair) for pair in limited):
            return (metric,)
        self._sets[metric] += 1
        for name, value in limited:
            self._values[name].add(value)
        return key

    def _is_above_limit(self, name: str, value: str | None) -> bool:
        known = self._values[name]
        return value not in known and len(known) >= _LIMITS[name]


class Histogram:
    """Counts of durations per bucket, with the latest exemplar of each bucket. Durations are in seconds."""

    __slots__ = ("counts", "exemplars", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.exemplars: dict[int, Exemplar] = {}
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf

    def record(self, value: float, exemplar: Exemplar | None) -> None:
        bucket = bisect_left(BOUNDS, value)
        self.counts[bucket] += 1
        self.total += value
        if value < self.minimum:  # noqa: PLR1730 - min() would double the cost of this method
            self.minimum = value
        if value > self.maximum:  # noqa: PLR1730
            self.maximum = value
        if exemplar is not None:
            self.exemplars[bucket] = exemplar

    def merge(self, other: "Histogram") -> None:
        self.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        self.exemplars |= other.exemplars
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)


class Aggregation:
    """Histograms and counts of one period, by key. Keys above the cardinality limits share one overflow key per metric."""

    __slots__ = ("_limit", "counts", "histograms")

    def __init__(self) -> None:
        self._limit = CardinalityLimit()
        self.histograms: dict[Key, Histogram] = {}
        self.counts: dict[Key, int] = {}

    def histogram(self, key: Key) -> Histogram:
        found = self.histograms.get(key)
        if found is None:
            found = self.histograms.setdefault(self._limit.admit(key), Histogram())
        return found

    def add(self, key: Key, increment: int = 1) -> None:
        if key not in self.counts:
            key = self._limit.admit(key)
        self.counts[key] = self.counts.get(key, 0) + increment

    def merge(self, other: "Aggregation") -> None:
        for key, histogram in other.histograms.items():
            self.histogram(key).merge(histogram)
        for key, count in other.counts.items():
            self.add(key, count)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Content of one export. The period begins at `start_ns` for delta values, at `origin_ns` for cumulative values."""

    aggregation: Aggregation
    telemetry: Counter[Key]
    active_runs: int
    active_tasks: int
    origin_ns: int
    start_ns: int
    end_ns: int
    is_delta: bool
    is_telemetry_delta: bool


class Activity(Protocol):
    """Runs and tasks of one connector in progress."""

    @property
    def active_tasks(self) -> int: ...

    @property
    def active_runs(self) -> int: ...

    def reset_after_fork(self) -> None: ...


class _TelemetryCounts:
    """Counts of one signal. Those of a forked child begin at its first run."""

    def __init__(self, signal: str, report: Callable[[], FlushReport]) -> None:
        self.signal = signal
        self.report = report
        self.start = FlushReport()

    def counts(self) -> dict[Key, int]:
        now, start = self.report(), self.start
        return {
            (m.TELEMETRY_SENT, self.signal): now.sent - start.sent,
            (m.TELEMETRY_LOST, self.signal): now.lost - start.lost,
            (m.TELEMETRY_RETRIED, self.signal): now.retried - start.retried,
        }


class Gauges:
    """Sums over the connectors that share one export of metrics. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connectors: weakref.WeakSet[Activity] = weakref.WeakSet()
        self._signals: tuple[_TelemetryCounts, ...] = ()
        self._is_forked = False

    def attach(self, connector: Activity) -> None:
        """Include a connector until it is garbage-collected."""
        with self._lock:
            self._connectors.add(connector)

    @property
    def active_tasks(self) -> int:
        return sum(connector.active_tasks for connector in self._attached())

    @property
    def active_runs(self) -> int:
        return sum(connector.active_runs for connector in self._attached())

    @property
    def is_active(self) -> bool:
        return any(connector.active_runs or connector.active_tasks for connector in self._attached())

    def add_report(self, signal: str, report: Callable[[], FlushReport]) -> None:
        """Add the counts of a signal, unless this report has been added already."""
        with self._lock:
            if all(known.report != report for known in self._signals):
                self._signals += (_TelemetryCounts(signal, report),)

    def telemetry(self) -> Counter[Key]:
        """Return the counts of sent, lost and retried telemetry per signal."""
        found: Counter[Key] = Counter()
        if not self._is_forked:
            for signal in self._signals:
                found.update(signal.counts())
        return found

    def start_run(self) -> None:
        """Begin the counts of a forked child at its first run."""
        if self._is_forked:
            self._is_forked = False
            for signal in self._signals:
                signal.start = signal.report()

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        # The reports cannot be read yet: threads of the parent may hold their locks.
        self._is_forked = True
        for connector in list(self._connectors):
            connector.reset_after_fork()

    def _attached(self) -> list[Activity]:
        with self._lock:
            return list(self._connectors)


class Aggregator:
    """Sink that aggregates measurements for an exporter.

    Measurements go to `_current` under a lock. `collect` replaces it with an empty aggregation and merges it into
    `_totals`, which only the exporting thread uses. Totals are kept until the collector has accepted them; cumulative
    totals are never reset. The cardinality limits bound the memory.

    Args:
        settings: Temporality and exemplar filter.
        on_change: Called at each `touch`, and at the first measurements after a `collect` while no run is in progress. While a
            run is in progress, `has_changes` is True without measurements.
    """

    def __init__(self, settings: MetricSettings, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self.gauges = Gauges()
        self._temporality = settings.temporality
        self._has_exemplars = settings.exemplars != "always_off"
        self._required_flag = _SAMPLED if settings.exemplars == "trace_based" else 0
        self._is_disabled = False
        self._resumes_at = math.inf
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._current = Aggregation()
        self._totals = Aggregation()
        self._delivered: Counter[Key] = Counter()
        self._is_touched = False
        self._origin_ns = self._start_ns = time.time_ns()

    def record(self, key: Key, seconds: float, end_ns: int, payload: Mapping[str, Any]) -> None:
        if self._is_disabled:
            return
        exemplar = None
        if self._has_exemplars and payload.get("trace_flags", 1) & _SAMPLED >= self._required_flag:
            exemplar = (seconds, end_ns, payload["trace_id"], payload["span_id"])
        with self._lock:
            is_first = not self._current.histograms
            histogram = self._current.histograms.get(key) or self._current.histogram(key)
            histogram.record(seconds, exemplar)
        if is_first and not self.gauges.active_runs:
            self._on_change()

    def add(self, key: Key) -> None:
        if self._is_disabled:
            return
        with self._lock:
            is_first = not self._current.counts
            self._current.add(key)
        if is_first and not self.gauges.active_runs:
            self._on_change()

    def touch(self) -> None:
        if self._is_disabled and time.monotonic() >= self._resumes_at:
            self._reset()
            self._is_disabled = False
        if not self._is_disabled:
            self._is_touched = True
            self._on_change()

    @property
    def has_changes(self) -> bool:
        """Whether there is something to export: new measurements, or runs or tasks in progress."""
        has_measurements = self._current.histograms or self._current.counts
        return not self._is_disabled and (bool(has_measurements) or self._is_touched or self.gauges.is_active)

    def collect(self) -> Snapshot:
        """Return a snapshot. `complete` must follow when the collector has accepted it."""
        self._is_touched = False
        with self._lock:
            current, self._current = self._current, Aggregation()
            end_ns = time.time_ns()
        self._totals.merge(current)
        telemetry = self.gauges.telemetry()
        is_telemetry_delta = self._temporality == "delta"
        return Snapshot(
            aggregation=self._totals,
            telemetry=telemetry - self._delivered if is_telemetry_delta else telemetry,
            active_runs=self.gauges.active_runs,
            active_tasks=self.gauges.active_tasks,
            origin_ns=self._origin_ns,
            start_ns=self._start_ns,
            end_ns=end_ns,
            is_delta=self._temporality != "cumulative",
            is_telemetry_delta=is_telemetry_delta,
        )

    def complete(self, snapshot: Snapshot) -> None:
        """Reset the delta values and the exemplars of a delivered snapshot."""
        if snapshot.is_telemetry_delta:
            self._delivered += snapshot.telemetry
        if snapshot.is_delta:
            self._totals = Aggregation()
            self._start_ns = snapshot.end_ns
        else:
            for histogram in self._totals.histograms.values():
                histogram.exemplars = {}

    def disable(self, pause: float = math.inf) -> None:
        """Drop all measurements, until the first run that starts or ends after `pause` seconds."""
        self._resumes_at = time.monotonic() + pause
        self._is_disabled = True
        with self._lock:
            self._current = Aggregation()
        self._totals = Aggregation()

    def reset_after_fork(self) -> None:
        self.gauges.reset_after_fork()
        self._reset()
