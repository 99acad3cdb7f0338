"""Flushes of an application's tracer provider, in a thread beside the runs.

`force_flush` of the SDK's batch processor ignores its time limit: it returns when the exporter has given up. A run waits for
it within `flush_timeout`. Once a flush has not ended in time, or slowly, later runs do not wait.
"""

import threading
import time
import weakref
from collections.abc import Callable

from opentelemetry.sdk.trace import TracerProvider

from cascade._loggers import get_logger
from cascade.connectors import _lifetime
from cascade.runtime.threads import start_daemon
from cascade.telemetry.safe import error_text

logger = get_logger("cascade.connectors.otel")

SLOW = 1.0  # seconds; after a flush that has taken longer, a run does not wait for the next one
BRIEF = 0.03  # seconds that a run waits then; with the threads around the wait, at most 0.05
PROCESSOR_LIMIT = 30_000  # milliseconds for all processors; the SDK leaves out those that come later
EXIT_TIMEOUT = 5.0  # seconds for the flush at the process's end

_flushes: "weakref.WeakKeyDictionary[TracerProvider, ProviderFlush]" = weakref.WeakKeyDictionary()


def flush_of(provider: TracerProvider) -> "ProviderFlush":
    """The flushes of this provider, which all connectors share."""
    return _flushes.get(provider) or _flushes.setdefault(provider, ProviderFlush(provider))


class ProviderFlush:
    """Runs the flushes of one provider, one at a time, in a thread that ends when none is wanted.

    An outage begins when a flush fails, or does not end within the time limit of a run. It ends when a flush of spans
    succeeds quickly. One warning is logged at the beginning and one at the end.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = weakref.ref(provider)
        self._outage_began = 0.0  # time.monotonic; zero without an outage
        self._is_slow = False
        self._quick = SLOW
        self._begin()
        _lifetime.watch(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wanted = self._begun = self._ended = 0  # numbers of flushes
        self._with_spans = 0  # the latest flush that a run with spans waits for
        self._is_proof = False  # whether the flush in progress has spans, and so shows that the exporter works
        self._problem = ""

    def run(self, timeout: float, *, has_spans: bool, strict: bool) -> str:
        """Flush the spans that have ended; wait `timeout` seconds at most, or `BRIEF` seconds after a slow flush.

        Args:
            timeout: Seconds.
            has_spans: Whether the run has exported spans. A flush without spans does not show that the exporter works.
            strict: Wait for a slow flush too, unless there is an outage, and leave the warning to the caller.

        Returns: The problem with the flush; the empty text if it succeeded.
        """
        with self._changed:
            number = self._begun + 1
            self._wanted = max(self._wanted, number)
            self._with_spans = number if has_spans else self._with_spans
            if not self._ensure_thread():
                return "the interpreter is shutting down"
            is_brief = self._outage_began > 0 or (self._is_slow and not strict)
            limit = min(timeout, BRIEF) if is_brief else timeout
            is_done = self._await(number, limit)
            problem = self._problem if is_done else f"the flush has not ended within {limit:g} s"
            is_news = bool(problem) and not is_brief and not self._outage_began
            if is_news:
                self._outage_began = time.monotonic()
                self._is_slow, self._quick = True, min(SLOW, timeout)
        if is_news and not strict:
            logger.warning(
                "OtelConnector: spans may not be delivered by the application's tracer provider: %s; later runs do not "
                "wait for it",
                problem,
            )
        return problem

    def start_exit(self) -> Callable[[], None]:
        """Begin the flush that is wanted; the returned function waits for it, until `EXIT_TIMEOUT` seconds from now."""
        end = time.monotonic() + EXIT_TIMEOUT
        with self._changed:
            is_running = self._ensure_thread()

        def finish() -> None:
            with self._changed:
                if is_running:
                    self._await(self._wanted, max(0.0, end - time.monotonic()))

        return finish

    def reset_after_fork(self) -> None:
        self._begin()
        self._outage_began, self._is_slow = 0.0, False

    def _await(self, number: int, timeout: float) -> bool:
        return self._changed.wait_for(lambda: self._ended >= number, timeout)

    def _ensure_thread(self) -> bool:
        if self._thread is None and self._ended < self._wanted:
            self._thread = start_daemon(self._flush_all, name="cascade-provider-flush")
            return self._thread is not None
        return True

    def _flush_all(self) -> None:
        while self._begin_next():
            began = time.monotonic()
            problem = self._flush()
            self._finish(time.monotonic() - began, problem)

    def _begin_next(self) -> bool:
        with self._changed:
            if self._ended >= self._wanted:
                self._thread = None
                return False
            self._begun += 1
            self._is_proof = self._with_spans == self._begun
            return True

    def _flush(self) -> str:
        provider = self._provider()
        try:
            succeeded = provider is None or provider.force_flush(PROCESSOR_LIMIT)
        except Exception as error:  # noqa: BLE001 - a processor of the application
            return f"the flush has raised {error_text(error)}"
        return "" if succeeded else "the flush has failed"

    def _finish(self, seconds: float, problem: str) -> None:
        outage = 0.0
        with self._changed:
            self._ended, self._problem = self._begun, problem
            self._is_slow = self._is_slow or bool(problem) or seconds > SLOW
            if not problem and seconds <= self._quick and self._is_proof:
                outage = time.monotonic() - self._outage_began if self._outage_began else 0.0
                self._outage_began, self._is_slow, self._quick = 0.0, False, SLOW
            self._changed.notify_all()
        if outage:
            logger.warning("OtelConnector: the application's tracer provider is flushed again, after %.3g s", outage)
