"""Gauges and telemetry counts, which an export reads: runs and tasks in progress, spans sent and lost."""

import threading
import weakref
from collections import Counter
from collections.abc import Callable

from cascade.connectors.otel._tally import FlushReport
from cascade.connectors.otel.metrics import catalogue as m
from cascade.connectors.otel.metrics.catalogue import Key

MAX_RUNS = 1000
"""Active runs of one connector. Of more, the oldest are forgotten: the end of such a run may never be published."""

_NOTHING = FlushReport()


class _Watched:
    """A report, as seen from a beginning that a fork sets anew."""

    def __init__(self, signal: str, report: Callable[[], FlushReport]) -> None:
        self.signal = signal
        self.report = report
        self.beginning = _NOTHING

    def counts(self) -> dict[Key, int]:
        now, then = self.report(), self.beginning
        return {
            (m.TELEMETRY_SENT, self.signal): now.sent - then.sent,
            (m.TELEMETRY_LOST, self.signal): now.lost - then.lost,
            (m.TELEMETRY_RETRIED, self.signal): now.retried - then.retried,
        }


class Gauges:
    """The sums over the connectors that share one export of metrics, and the counts of their telemetry. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._levels: weakref.WeakSet[Levels] = weakref.WeakSet()
        self._watched: tuple[_Watched, ...] = ()
        self._is_forked = False

    def attach(self, levels: "Levels") -> None:
        """Include the levels of a connector for as long as the connector exists."""
        with self._lock:
            self._levels.add(levels)

    @property
    def active_tasks(self) -> int:
        return sum(levels.active_tasks for levels in self._attached())

    @property
    def active_runs(self) -> int:
        return sum(levels.active_runs for levels in self._attached())

    @property
    def is_active(self) -> bool:
        return any(levels.active_runs or levels.active_tasks for levels in self._attached())

    def watch(self, signal: str, report: Callable[[], FlushReport]) -> None:
        """Count the telemetry of a signal; a report that is watched already counts once."""
        with self._lock:
            if all(watched.report != report for watched in self._watched):
                self._watched += (_Watched(signal, report),)

    def telemetry(self) -> Counter[Key]:
        """Telemetry sent, lost and retried so far, per signal."""
        found: Counter[Key] = Counter()
        if self._is_forked:
            return found
        for watched in self._watched:
            found.update(watched.counts())
        return found

    def start_run(self) -> None:
        """Count telemetry from here on, if this is the first run of a forked child."""
        if self._is_forked:
            self._is_forked = False
            for watched in self._watched:
                watched.beginning = watched.report()

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        # Reports are read later: their locks may be held by threads that this process does not have.
        self._is_forked = True
        for levels in list(self._levels):
            levels.reset_after_fork()

    def _attached(self) -> "list[Levels]":
        with self._lock:
            return list(self._levels)


class Levels:
    """Runs and tasks of one connector in progress. Thread-safe: tasks start and end in worker threads."""

    def __init__(self, gauges: Gauges) -> None:
        self._lock = threading.Lock()
        self._gauges = gauges
        self._active_tasks = 0
        self._runs: dict[str, None] = {}
        gauges.attach(self)

    @property
    def active_tasks(self) -> int:
        return self._active_tasks

    @property
    def active_runs(self) -> int:
        return len(self._runs)

    def enter_task(self) -> None:
        with self._lock:
            self._active_tasks += 1

    def leave_task(self) -> None:
        with self._lock:
            # In a forked child those calls may end that began in the parent.
            self._active_tasks = max(0, self._active_tasks - 1)

    def start_run(self, run_id: str) -> None:
        self._gauges.start_run()
        with self._lock:
            self._runs[run_id] = None
            if len(self._runs) > MAX_RUNS:
                del self._runs[next(iter(self._runs))]

    def end_run(self, run_id: str) -> None:
        with self._lock:
            self._runs.pop(run_id, None)

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._active_tasks = 0
        self._runs = {}
