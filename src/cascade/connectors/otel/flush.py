"""Flush of spans, metrics and logs at the end of a run, in a thread that does not block the event loop.

`force_flush` of the SDK's batch processor ignores its time limit, and returns when the exporter has succeeded or failed. A
run therefore waits at most `flush_timeout` seconds for it. After a slow or unfinished flush, later runs do not wait.
"""

import asyncio
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors import _lifetime
from cascade.connectors.otel.buffer import FlushReport
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.provider import RunTracer
from cascade.connectors.otel.routing import ExportTarget
from cascade.connectors.otel.signals import Signals
from cascade.runtime.threads import start_daemon
from cascade.telemetry.sanitize import error_text

logger = get_logger("cascade.connectors.otel")

SLOW = 1.0  # seconds; after a slower flush, runs wait for `SHORT_WAIT` only
SHORT_WAIT = 0.03  # seconds; at most 0.05 with the start of the thread
PROCESSOR_LIMIT = 30_000  # milliseconds for all processors; the SDK skips those that it has not called by then
EXIT_TIMEOUT = 5.0  # seconds for the flush when the process exits
_CAPACITY_TIMEOUT = 0.5  # seconds that one message waits for capacity: half of the limit of the publish queue
_GRACE = 1.0  # seconds after its time limit at which a flush is abandoned


async def flush(
    tracer: RunTracer,
    targets: Sequence[ExportTarget],
    timeout: float,  # noqa: ASYNC109 - the time limit is its purpose
    signals: Signals,
    *,
    has_spans: bool,
    strict: bool,
) -> tuple[FlushReport, str]:
    """Flush the spans of the targets and the other signals at the same time, within `timeout` seconds.

    Returns the report of the spans and a warning about the other signals, which may be empty. With the provider of the
    application the report has no counts. Only a strict connector gets the reason; otherwise `ProviderFlush` logs it.
    """
    if tracer.own is not None:
        found = await _in_thread(lambda: _flush_queues(targets, timeout, signals), timeout + _GRACE)
        return found or (FlushReport(reason=_timeout_reason(timeout)), "")
    spans = partial(flush_of(tracer.provider).run, timeout, has_spans=has_spans, strict=strict)
    others = _in_thread(lambda: signals.start_flush(timeout)(math.inf), timeout + _GRACE)
    problem, warning = await asyncio.gather(_in_thread(spans, timeout + _GRACE), others)
    return FlushReport(reason=problem or "" if strict else ""), warning or ""


def _flush_queues(targets: Sequence[ExportTarget], timeout: float, signals: Signals) -> tuple[FlushReport, str]:
    # All flushes start before the first wait, so that several silent destinations cost one wait.
    flushes = [target.queue.start_flush(timeout, counters=target.counters) for target in targets]
    wait_for_others = signals.start_flush(timeout)
    report = sum((flush.wait() for flush in flushes), FlushReport())
    # If spans are not delivered, the run does not wait for the other signals.
    return report, wait_for_others(time.monotonic() if report.pending else math.inf)


class CapacityWaiter:
    """Waits for capacity in a queue, in one thread for all waiting tasks."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[Any] | None = None

    async def wait(self, queue: ExportQueue) -> None:
        """Wait until the queue has capacity or its collector does not respond, but not longer than half a second."""
        waiting = self._waiting
        if waiting is None or waiting.done() or waiting.get_loop() is not asyncio.get_running_loop():
            waiting = asyncio.ensure_future(
                _in_thread(lambda: queue.wait_for_capacity(_CAPACITY_TIMEOUT), _CAPACITY_TIMEOUT + _GRACE)
            )
            self._waiting = waiting
        await asyncio.wait({waiting})


def _timeout_reason(timeout: float) -> str:
    return f"the flush has not ended within {timeout:g} s"


async def _in_thread(work: Callable[[], Any], timeout: float) -> Any:  # noqa: ASYNC109 - the time limit is its purpose
    """Call `work` in a daemon thread, and return its result or raise its exception. Return None after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if not done.done():
            done.set_result(result) if error is None else done.set_exception(error)

    def run() -> None:
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001 - raised again where it is awaited
            error = caught
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="cascade-flush", daemon=True).start()
    await asyncio.wait({done}, timeout=timeout)
    if not done.done():
        done.cancel()
        return None
    return done.result()


_flushes: "weakref.WeakKeyDictionary[TracerProvider, ProviderFlush]" = weakref.WeakKeyDictionary()


def flush_of(provider: TracerProvider) -> "ProviderFlush":
    """Return the `ProviderFlush` that all connectors with this provider share."""
    return _flushes.get(provider) or _flushes.setdefault(provider, ProviderFlush(provider))


class ProviderFlush:
    """Runs the flushes of one provider one after the other, in a thread that ends when no flush is requested.

    An outage starts when a flush fails or exceeds the time limit of a run. It ends when a flush of spans succeeds quickly.
    One warning is logged at its start, and one at its end.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = weakref.ref(provider)
        self._outage_start = 0.0  # time.monotonic; zero without an outage
        self._is_slow = False
        self._quick_limit = SLOW
        self._reset()
        _lifetime.watch(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._requested = self._started = self._completed = 0  # numbers of flushes
        self._with_spans = 0  # number of the latest flush that a run with spans has requested
        self._tests_exporter = False  # whether the flush in progress is one with spans
        self._problem = ""

    def run(self, timeout: float, *, has_spans: bool, strict: bool) -> str:
        """Flush the spans that have ended. Wait `timeout` seconds at most, and `SHORT_WAIT` seconds after a slow flush.

        Args:
            timeout: Seconds.
            has_spans: Whether the run has exported spans. A flush without spans does not test the exporter, and therefore
                does not end an outage.
            strict: Wait `timeout` seconds after a slow flush too, unless there is an outage, and log no warning.

        Returns:
            The problem of the flush, or an empty text.
        """
        with self._changed:
            number = self._started + 1
            self._requested = max(self._requested, number)
            self._with_spans = number if has_spans else self._with_spans
            if not self._ensure_thread():
                return "the interpreter is shutting down"
            is_short = self._outage_start > 0 or (self._is_slow and not strict)
            limit = min(timeout, SHORT_WAIT) if is_short else timeout
            is_done = self._await(number, limit)
            problem = self._problem if is_done else _timeout_reason(limit)
            is_new = bool(problem) and not is_short and not self._outage_start
            if is_new:
                self._outage_start = time.monotonic()
                self._is_slow, self._quick_limit = True, min(SLOW, timeout)
        if is_new and not strict:
            logger.warning(
                "OtelConnector: spans may not be delivered by the application's tracer provider: %s; later runs do not "
                "wait for it",
                problem,
            )
        return problem

    def start_exit(self) -> Callable[[], None]:
        """Start the requested flush. The returned function waits for it, until `EXIT_TIMEOUT` seconds from now."""
        end = time.monotonic() + EXIT_TIMEOUT
        with self._changed:
            is_running = self._ensure_thread()

        def finish() -> None:
            with self._changed:
                if is_running:
                    self._await(self._requested, max(0.0, end - time.monotonic()))

        return finish

    def reset_after_fork(self) -> None:
        self._reset()
        self._outage_start, self._is_slow = 0.0, False

    def _await(self, number: int, timeout: float) -> bool:
        return self._changed.wait_for(lambda: self._completed >= number, timeout)

    def _ensure_thread(self) -> bool:
        if self._thread is None and self._completed < self._requested:
            self._thread = start_daemon(self._flush_all, name="cascade-provider-flush")
            return self._thread is not None
        return True

    def _flush_all(self) -> None:
        while self._start_next():
            start = time.monotonic()
            problem = self._flush()
            self._complete(time.monotonic() - start, problem)

    def _start_next(self) -> bool:
        with self._changed:
            if self._completed >= self._requested:
                self._thread = None
                return False
            self._started += 1
            self._tests_exporter = self._with_spans == self._started
            return True

    def _flush(self) -> str:
        provider = self._provider()
        try:
            succeeded = provider is None or provider.force_flush(PROCESSOR_LIMIT)
        except Exception as error:  # noqa: BLE001 - code of the application
            raise_in_tests(error)
            return f"the flush has raised {error_text(error)}"
        return "" if succeeded else "the flush has failed"

    def _complete(self, seconds: float, problem: str) -> None:
        outage = 0.0
        with self._changed:
            self._completed, self._problem = self._started, problem
            self._is_slow = self._is_slow or bool(problem) or seconds > SLOW
            if not problem and seconds <= self._quick_limit and self._tests_exporter:
                outage = time.monotonic() - self._outage_start if self._outage_start else 0.0
                self._outage_start, self._is_slow, self._quick_limit = 0.0, False, SLOW
            self._changed.notify_all()
        if outage:
            logger.warning("OtelConnector: the application's tracer provider is flushed again, after %.3g s", outage)
