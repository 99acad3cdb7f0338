"""What is read rather than measured: runs and tasks in progress, and the counts of what becomes of the telemetry."""

import threading
from collections import Counter
from collections.abc import Callable

from cascade.connectors.otel._tally import FlushReport
from cascade.connectors.otel.metrics import _catalogue as m
from cascade.connectors.otel.metrics._census import Key

MAX_RUNS = 1000
"""At once; of more, and of those whose end never comes, the oldest are forgotten."""

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


class Levels:
    """One connector's. Thread-safe: tasks come and go in worker threads, an exporter reads in one of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active_tasks = 0
        self._runs: dict[str, None] = {}
        self._watched: tuple[_Watched, ...] = ()
        self._is_forked = False

    @property
    def active_tasks(self) -> int:
        return self._active_tasks

    @property
    def active_runs(self) -> int:
        return len(self._runs)

    @property
    def is_active(self) -> bool:
        return bool(self._runs or self._active_tasks)

    def enter_task(self) -> None:
        with self._lock:
            self._active_tasks += 1

    def leave_task(self) -> None:
        with self._lock:
            # In a forked child those calls may end that began in the parent.
            self._active_tasks = max(0, self._active_tasks - 1)

    def start_run(self, run_id: str) -> None:
        if self._is_forked:
            self._begin_anew()
        with self._lock:
            self._runs[run_id] = None
            if len(self._runs) > MAX_RUNS:
                del self._runs[next(iter(self._runs))]

    def end_run(self, run_id: str) -> None:
        with self._lock:
            self._runs.pop(run_id, None)

    def watch(self, signal: str, report: Callable[[], FlushReport]) -> None:
        with self._lock:
            self._watched += (_Watched(signal, report),)

    def telemetry(self) -> Counter[Key]:
        """What has become of each signal's telemetry so far."""
        found: Counter[Key] = Counter()
        if self._is_forked:
            return found
        for watched in self._watched:
            found.update(watched.counts())
        return found

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._active_tasks = 0
        self._runs = {}
        # Reports are not asked here: their locks may be held by threads that this process does not have.
        self._is_forked = True

    def _begin_anew(self) -> None:
        self._is_forked = False
        for watched in self._watched:
            watched.beginning = watched.report()
