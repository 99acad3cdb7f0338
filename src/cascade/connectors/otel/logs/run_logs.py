"""Export of the log records of the runs of one connector, by a logging handler and a queue."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from opentelemetry.sdk.resources import Resource

from cascade._loggers import get_logger
from cascade.connectors import _lifetime
from cascade.connectors.otel import environment
from cascade.connectors.otel.buffer import FlushReport, QueuedItems
from cascade.connectors.otel.encode import EncodedResource
from cascade.connectors.otel.environment import warn_once
from cascade.connectors.otel.export_queue import Bounds, ExportQueue
from cascade.connectors.otel.health import HOLD_TIMEOUT, ItemLabel
from cascade.connectors.otel.logs.handler import TaskLogHandler, attach, detach
from cascade.connectors.otel.logs.records import encode_request, encode_resource
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.reply import is_unsupported_signal
from cascade.connectors.otel.routing import Share
from cascade.connectors.otel.transport import open_transport, prepare

CAPACITY = 32 << 20
"""Bytes of memory for queued records."""

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def chosen_level(logs: bool | str | None, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the lowest level of exported records; None if logs are not exported.

    True exports all records that pass their loggers, and a name such as "INFO" sets a level. None exports them if
    OTEL_LOGS_EXPORTER contains "otlp"; the default of that variable is no export, unlike in the SDK. With
    OTEL_SDK_DISABLED no logs are exported.

    Raises:
        ValueError: `logs` is not a level.
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


_MAX_NAMES = 5
"""Names in one warning."""
_NOT_REPORTED = frozenset({"cascade", "opentelemetry"})
_LOGGER = "cascade.connectors.otel.logs"

reported_loggers: set[str] = set()
"""Loggers that a warning of the process has named."""


def _active_loggers() -> frozenset[str]:
    """Return the names of the loggers that are enabled and propagate their records."""
    known = [logging.root, *logging.root.manager.loggerDict.values()]
    return frozenset(each.name for each in known if isinstance(each, logging.Logger) and _is_active(each))


def _is_active(logger: logging.Logger) -> bool:
    return logger.propagate and not logger.disabled and logger.name.partition(".")[0] not in _NOT_REPORTED


def _warn_of_silenced(before: frozenset[str], used: Collection[str]) -> None:
    """Warn once of each logger in `before` that is not open any more. Loggers in `used` come first."""
    silenced = sorted(before - _active_loggers() - reported_loggers, key=lambda name: (name not in used, name))
    if not silenced:
        return
    reported_loggers.update(silenced)
    names = ", ".join(map(repr, silenced[:_MAX_NAMES])) + (", …" if len(silenced) > _MAX_NAMES else "")
    logging.getLogger(_LOGGER).disabled = False  # the same configuration may have disabled it
    get_logger(_LOGGER).warning(
        "OtelConnector: loggers (%s) were disabled or set not to propagate during the run, and their records are not "
        "exported; configure logging with disable_existing_loggers=False and propagate=True",
        names,
    )


class RunLogs:
    """Exports the `logging` records of the tasks of runs as OTLP log records with the ids of their spans.

    While there are runs, a handler gets the records that reach the root logger. The levels of loggers are not changed.

    Args:
        resource: Returns the current resource, the same as that of the spans.
        options: Options of the signal "logs".
        level: Lowest level of exported records, a number of `logging`.
        share: Returns the queue of the destination, which connectors share.
        is_explicit: Whether the connector has an argument for logs. Otherwise, if only the environment enables logs, the
            level of an OpenTelemetry handler of the application applies.
    """

    def __init__(
        self,
        resource: Callable[[], Resource],
        options: ExportOptions,
        level: int,
        share: Share[ExportQueue],
        *,
        is_explicit: bool = True,
    ) -> None:
        self.endpoint = options.endpoint
        self.queue = share(partial(_new_queue, resource, options))
        self._counters = self.queue.new_counters()
        self._runs: Counter[str] = Counter()
        put = partial(self.queue.put, counters=self._counters)
        refuse = partial(self.queue.refuse, counters=self._counters)
        self.handler = TaskLogHandler(put, refuse, self._runs, level, respects_handlers=not is_explicit)
        self._lock = threading.Lock()
        self._reported_lost = 0
        self._has_reported_refusal = False
        self._active_loggers: frozenset[str] = frozenset()
        _lifetime.watch(self)

    def reserve(self, exit_timeout: float) -> None:
        """Register as a user of the queue. It is flushed for `exit_timeout` seconds when the process exits."""
        self.queue.reserve(self, Bounds(CAPACITY, HOLD_TIMEOUT, exit_timeout))

    def attach(self, run_id: str) -> None:
        """Start the export of the records of the tasks of a run. A run that is attached twice must be detached twice."""
        with self._lock:
            self._active_loggers = _active_loggers() | (self._active_loggers if self._runs else frozenset())
            self._runs[run_id] += 1
            attach(self.handler)

    def detach(self, run_id: str) -> None:
        """End the export of the records of a run, and warn of loggers that were disabled during it."""
        with self._lock:
            self._runs[run_id] -= 1
            if self._runs[run_id] <= 0:
                del self._runs[run_id]
            if not self._runs:
                detach(self.handler)
            before = self._active_loggers
        _warn_of_silenced(before, self.handler.loggers)

    def start_flush(self, timeout: float) -> Callable[[float], str]:
        """Start a flush. The returned function waits for it and returns a warning, which may be empty.

        Its argument is the end of the wait, a time of `time.monotonic`. The warning is about records that were lost or are
        undelivered and that no earlier warning has counted.
        """
        flush = self.queue.start_flush(timeout, counters=self._counters)
        return lambda limit: self._warning(flush.wait(limit))

    def _warning(self, report: FlushReport) -> str:
        with self._lock:
            fresh, self._reported_lost = replace(report, lost=report.lost - self._reported_lost), report.lost
        is_refused = fresh.lost > 0 and is_unsupported_signal(report.reason)
        if not (fresh.lost or fresh.pending) or (is_refused and self._has_reported_refusal):
            return ""
        if not self.queue.starts_outage(fresh):
            return ""
        self._has_reported_refusal |= is_refused
        if is_refused:
            remedy = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT can name a collector that does"
            fresh = replace(fresh, reason=f"it does not support logs ({report.reason}); {remedy}")
        return fresh.text("log records", self.endpoint)

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()

    def start_exit(self) -> Callable[[], None]:
        """Do nothing: the queue is flushed by itself."""
        return lambda: None


def _new_queue(resource: Callable[[], Resource], options: ExportOptions) -> ExportQueue:
    prepare(options)
    return ExportQueue(
        partial(open_transport, options),
        encode=partial(_encode, EncodedResource(resource, _encode_resource)),
        capacity=CAPACITY,
        request_timeout=options.timeout,
        label=ItemLabel("log records", options.endpoint),
    )


def _encode_resource(resource: Resource) -> bytes:
    return encode_resource(resource.attributes, resource.schema_url)


def _encode(around: EncodedResource, entries: Sequence[QueuedItems]) -> tuple[bytes, list[QueuedItems]]:
    return encode_request(around(), [item for entry in entries for item in entry.items if isinstance(item, bytes)]), []
