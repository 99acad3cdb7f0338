"""Log export of a connector: a handler that is attached while there are runs, and a queue."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from opentelemetry.sdk.resources import Resource

from cascade.connectors import _lifetime
from cascade.connectors.otel import environment
from cascade.connectors.otel.answers import is_unsupported_signal
from cascade.connectors.otel.batch import FlushReport, QueuedItems
from cascade.connectors.otel.environment import warn_once
from cascade.connectors.otel.export_queue import Bounds, ExportQueue
from cascade.connectors.otel.health import HOLD_TIMEOUT, ItemLabel
from cascade.connectors.otel.logs.handler import TaskLogHandler, attach, detach, open_loggers, report_closed
from cascade.connectors.otel.logs.records import encode_resource, request
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.routing import Share
from cascade.connectors.otel.scope import EncodedResource
from cascade.connectors.otel.transport import open_transport, prepare

CAPACITY = 32 << 20
"""Bytes of memory for records that wait."""

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def chosen_level(logs: bool | str | None, environ: Mapping[str, str] = os.environ) -> int | None:
    """The level from which on records are exported; None for no export.

    True is every record that the loggers let through, a name such as "INFO" is that level. None is True if
    OTEL_LOGS_EXPORTER names OTLP: unlike the SDK's, our default is no export. OTEL_SDK_DISABLED turns all of it off.

    Raises:
        ValueError: `logs` is no level.
    """
    name = logs.strip().upper() if isinstance(logs, str) else logs
    if name is not None and not isinstance(name, bool) and name not in _LEVELS:
        raise ValueError(f"logs={logs!r}: choose True, False or one of {', '.join(_LEVELS)}")
    if name is False or environment.is_disabled(environ):
        return None
    if name is None:
        names, _, problem = environment.exporters(environ, "logs")
        warn_once(*filter(None, (problem,)))
        return logging.NOTSET if names else None
    return logging.NOTSET if name is True else logging.getLevelNamesMapping()[name]


class RunLogs:
    """Exports `logging` records of the tasks of some runs, as OTLP log records with the ids of their spans.

    While there is a run, a handler gets the records that reach the root logger. The levels of loggers are not changed.

    Args:
        resource: Returns the current resource, the same as that of the spans.
        options: Made for the signal "logs".
        level: A number of `logging`'s, from which on records are exported.
        share: Returns the queue of the destination, which connectors share. None makes a queue.
        is_explicit: Whether the program asks for logs. False if only the environment does: then the level of the
            application's OpenTelemetry handler applies.
    """

    def __init__(
        self,
        resource: Callable[[], Resource],
        options: ExportOptions,
        level: int = logging.NOTSET,
        share: Share[ExportQueue] | None = None,
        *,
        is_explicit: bool = True,
    ) -> None:
        self.endpoint = options.endpoint
        make = partial(_queue, resource, options)
        self._queue = make() if share is None else share(make)
        self._is_shared = share is not None
        self._counters = self._queue.new_counters()
        self._runs: Counter[str] = Counter()
        put, refuse = (
            partial(self._queue.put, counters=self._counters),
            partial(self._queue.refuse, counters=self._counters),
        )
        self._handler = TaskLogHandler(put, refuse, self._runs, level, fills_gaps=is_explicit)
        self._lock = threading.Lock()
        self._reported_lost = 0
        self._has_reported_refusal = False
        self._open_loggers: frozenset[str] = frozenset()
        _lifetime.watch(self)

    def reserve(self, exit_timeout: float) -> None:
        """Register as a user of the queue, which the process's exit flushes for `exit_timeout` seconds."""
        self._queue.reserve(self, Bounds(CAPACITY, HOLD_TIMEOUT, exit_timeout))

    def attach(self, run_id: str) -> None:
        """Export the records of the run's tasks from now on. Attached twice, a run must be detached twice."""
        with self._lock:
            self._open_loggers = open_loggers() | (self._open_loggers if self._runs else frozenset())
            self._runs[run_id] += 1
            attach(self._handler)

    def detach(self, run_id: str) -> None:
        """End the export of the run's records, and warn of loggers that no longer pass their records on."""
        with self._lock:
            self._runs[run_id] -= 1
            if self._runs[run_id] <= 0:
                del self._runs[run_id]
            if not self._runs:
                detach(self._handler)
            before = self._open_loggers
        report_closed(before, self._handler.loggers)

    def flush(self, timeout: float) -> FlushReport:
        """Wait until all records so far are sent or lost, for `timeout` seconds at the most; for a thread, not a loop."""
        return self._queue.flush(timeout, counters=self._counters)

    def start_flush(self, timeout: float) -> Callable[[float], str]:
        """Begin a flush; the returned function waits for it, at the most until its argument, and returns a warning.

        The argument is a time of `time.monotonic`. The warning is empty if nothing new is lost or undelivered.
        """
        flush = self._queue.start_flush(timeout, counters=self._counters)
        return lambda limit: self._warning(flush.wait(limit))

    def _warning(self, report: FlushReport) -> str:
        with self._lock:
            fresh, self._reported_lost = replace(report, lost=report.lost - self._reported_lost), report.lost
        is_refused = fresh.lost > 0 and is_unsupported_signal(report.reason)
        if not (fresh.lost or fresh.pending) or (is_refused and self._has_reported_refusal):
            return ""
        if not self._queue.announce(fresh):
            return ""
        self._has_reported_refusal |= is_refused
        if is_refused:
            remedy = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT can name one that does"
            fresh = replace(fresh, reason=f"it takes no logs ({report.reason}); {remedy}")
        return fresh.text("log records", self.endpoint)

    def close(self, timeout: float) -> FlushReport:
        """Detach from all runs and flush for the last time. An queue that is not shared is closed."""
        with self._lock:
            self._runs.clear()
            detach(self._handler)
        return self.flush(timeout) if self._is_shared else self._queue.close(timeout)

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()

    def start_exit(self) -> Callable[[], None]:
        """Do nothing: the queue has a flush of its own at the exit."""
        return lambda: None


def _queue(resource: Callable[[], Resource], options: ExportOptions) -> ExportQueue:
    prepare(options)
    return ExportQueue(
        partial(open_transport, options),
        pack=partial(_pack, EncodedResource(resource, _encode_resource)),
        capacity=CAPACITY,
        request_timeout=options.timeout,
        label=ItemLabel("log records", options.endpoint),
    )


def _encode_resource(resource: Resource) -> bytes:
    return encode_resource(resource.attributes, resource.schema_url)


def _pack(around: EncodedResource, entries: Sequence[QueuedItems]) -> tuple[bytes, list[QueuedItems]]:
    return request(around(), [item for entry in entries for item in entry.items if isinstance(item, bytes)]), []
