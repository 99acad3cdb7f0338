"""Measures the calls of a run's functions, and detects worker threads that wait for a processor instead of running.

A task that waits for a server takes far longer than its CPU time, too. More threads help it, and fewer threads help a task
that computes. Two measures distinguish them. The first is the processor time of the process: tasks that wait use little.
The second is the delay of the event loop after the end of a call. The event loop needs the interpreter and a
processor like each thread. Therefore its delay is that of all threads. It is far below a millisecond while threads wait for
servers, or compute in C code on free processors. If N threads compete, it is about N times 5 ms, because a thread
releases the interpreter after 5 ms.
"""

import threading
import time
from collections.abc import Callable

from cascade.runtime.events import StarvedThreads
from cascade.runtime.task_context import CallUsage

MIN_RUN_NS = 1_000_000_000
"""Smallest duration of a run, and of its busy part, for a report."""
MIN_PART = 0.1
"""Smallest busy part of a run: a report about a shorter one would not make the run faster."""
MAX_SHARE = 0.3
"""Largest part of a processor that the tasks got while they ran. With up to three threads, each one gets more."""
MIN_DELAY_NS = 10_000_000
"""Smallest mean delay of the event loop: twice the time after which a thread must release the interpreter."""
MIN_DELAY_OF_THREAD_NS = 2_500_000
"""Smallest mean delay for each thread that competes: half of the time after which it must release the interpreter."""
MIN_CORES = 0.4
"""Smallest number of busy processors. One interpreter keeps one processor busy, unless other processes use it."""
MIN_OWN = 0.5
"""Smallest part of the CPU time of the process that the measured functions used."""

WINDOW_NS = 200_000_000
"""Shortest time between two readings of the CPU time of the process."""
MEASURED_CALLS = 256
"""Number of calls of a run that are all measured. Of the others, every sixteenth one is, unless a subscriber needs all."""
_STRIDE = 16


class Meter:
    """Measures the calls of one run, and of the runs that its tasks start. Used in the event loops of these runs.

    The sums are weighted by CPU time: a task that waits while others compete does not count. If a nested run has no report
    of its own, its sums are added to those of the outer run: several nested runs may share the processors.

    Args:
        outer: The meter of the run whose task has started this run.
        of_tasks: Measures each call, for subscribers that use the CPU time of tasks. Otherwise it measures a sample.
        clock: Returns nanoseconds; the clock of `CallUsage.ended_ns`.
        process_clock: Returns the CPU time of the process in nanoseconds.
    """

    def __init__(
        self,
        outer: "Meter | None" = None,
        *,
        of_tasks: bool = True,
        clock: Callable[[], int] = time.perf_counter_ns,
        process_clock: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self.of_tasks = of_tasks
        self._outer = outer
        self._lock = threading.Lock()  # nested runs may have event loops in other threads
        self._clock, self._process_clock = clock, process_clock
        self._calls = self._threads = 0
        self._cpu = self._share = self._delay = 0.0
        self._process_cpu = self._cores = 0.0
        self._window_ns = self._window_cpu = self._first_ns = 0

    def begin(self) -> CallUsage | None:
        """Return the object for the measures of a call; None if the call is not measured."""
        if not self.of_tasks:
            self._calls += 1
            if self._calls > MEASURED_CALLS and self._calls % _STRIDE:
                return None
        if not self._window_ns:
            self.begin_at(self._clock())
        return CallUsage()

    def begin_at(self, now: int) -> None:
        """Begin to measure the process, before the first call of this run or of a nested run."""
        with self._lock:
            if not self._window_ns:
                self._open_window(now)
            self._first_ns = self._first_ns or now
        if self._outer is not None:
            self._outer.begin_at(now)

    def end(self, usage: CallUsage, cpu_ns: int) -> None:
        """Add the measures of a call that has ended. Calls outside of threads do not count."""
        if not usage.threads:
            return
        now, wall_ns = self._clock(), max(usage.wall_ns, cpu_ns, 1)
        weight = 1 if self.of_tasks or self._calls <= MEASURED_CALLS else _STRIDE
        cpu = cpu_ns * weight
        with self._lock:
            self._add(cpu, cpu * (cpu_ns / wall_ns), cpu * (now - usage.ended_ns), usage.threads)
            if usage.ended_ns > self._window_ns:  # else a call of the period before
                self._first_ns = min(self._first_ns or now, usage.ended_ns - wall_ns)
            if now - self._window_ns >= WINDOW_NS:
                self._close_window(now)

    def _add(self, cpu: float, share: float, delay: float, threads: int) -> None:
        self._cpu += cpu
        self._share += share
        self._delay += delay
        self._threads = max(self._threads, threads)

    def add_nested(self, cpu: float, share: float, delay: float, threads: int) -> None:
        """Add the sums of a nested run that has ended."""
        with self._lock:
            self._add(cpu, share, delay, threads)
            self._close_window(self._clock())

    def _open_window(self, now: int) -> None:
        self._window_ns, self._window_cpu, self._first_ns = now, self._process_clock(), 0

    def _close_window(self, now: int) -> None:
        """Add the busy processors of a period, which starts with its first call: a run may pause between calls."""
        used, begin_ns = self._process_clock() - self._window_cpu, max(self._window_ns, self._first_ns)
        self._process_cpu += used
        self._cores += used * (used / max(1, now - begin_ns))
        self._open_window(now)

    def starved(self, duration_ns: int) -> StarvedThreads | None:
        """Return the measures if the threads of the run were starved, at its end. `duration_ns` is the duration of the run."""
        with self._lock:
            if self._first_ns:
                self._close_window(self._clock())
        found = self._starved(duration_ns)
        if found is None and self._outer is not None and self._cpu:
            self._outer.add_nested(self._cpu, self._share, self._delay, self._threads)
        return found

    def _starved(self, duration_ns: int) -> StarvedThreads | None:
        if duration_ns < MIN_RUN_NS or not self._cpu or not self._process_cpu:
            return None
        share, cores = self._share / self._cpu, self._cores / self._process_cpu
        busy_ns = self._process_cpu / cores
        competing = cores / share
        is_starved = (
            share <= MAX_SHARE
            and cores >= MIN_CORES
            and self._delay / self._cpu >= max(MIN_DELAY_NS, MIN_DELAY_OF_THREAD_NS * competing)
            and self._cpu >= self._process_cpu * MIN_OWN
            and busy_ns >= max(MIN_RUN_NS, duration_ns * MIN_PART)
        )
        return StarvedThreads(1 / share, self._threads, cores, max(2, round(cores))) if is_starved else None
