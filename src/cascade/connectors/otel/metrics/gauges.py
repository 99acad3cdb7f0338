"""Values that an export reads: runs and tasks in progress, and counts of exported telemetry."""

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from cascade.connectors.otel.batch import FlushReport
from cascade.connectors.otel.metrics import catalogue as m
from cascade.connectors.otel.metrics.catalogue import Key


class Activity(Protocol):
    """Runs and tasks of one connector in progress."""

    active_tasks: int

    @property
    def active_runs(self) -> int: ...

    def reset_after_fork(self) -> None: ...


class _TelemetryCounts:
    """Counts of one signal since a start, which a forked child moves to its first run."""

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
        """Include the activity of a connector until the object is garbage-collected."""
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

    def watch(self, signal: str, report: Callable[[], FlushReport]) -> None:
        """Count the telemetry of a signal. A report that is watched already is not counted again."""
        with self._lock:
            if all(watched.report != report for watched in self._signals):
                self._signals += (_TelemetryCounts(signal, report),)

    def telemetry(self) -> Counter[Key]:
        """Return the counts of sent, lost and retried telemetry per signal."""
        found: Counter[Key] = Counter()
        if not self._is_forked:
            for signal in self._signals:
                found.update(signal.counts())
        return found

    def start_run(self) -> None:
        """Start the counts of a forked child at its first run."""
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
