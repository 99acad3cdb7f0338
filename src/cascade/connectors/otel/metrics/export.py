"""Export of aggregated metrics: periodically while there are changes, and at each flush."""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.sdk.resources import Resource

from cascade._forks import no_fork
from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors import _lifetime
from cascade.connectors.otel.health import CollectorHealth
from cascade.connectors.otel.metrics.aggregation import Aggregator, Snapshot
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.reply import Reply, is_unsupported_signal
from cascade.connectors.otel.sdk_settings import MetricSettings
from cascade.connectors.otel.transport import Transport, open_safely, open_transport, suppress_instrumentation
from cascade.runtime.threads import start_daemon
from cascade.telemetry.sanitize import error_text

IDLE_TIMEOUT = 30.0  # seconds without changes after which the thread ends and closes its connection
EXIT_TIMEOUT = 5.0  # seconds for the last export when the process exits, unless a user has reserved another time
UNSUPPORTED_PAUSE = 3600.0  # seconds until the next export to a collector that does not support metrics

logger = get_logger("cascade.connectors.otel")


class _SnapshotSender:
    """Sends snapshots to a collector, prints them as JSON, or both. The exporting thread creates, uses and closes it."""

    def __init__(self, settings: MetricSettings, resource: Callable[[], Resource], options: ExportOptions) -> None:
        self._prints = "console" in settings.exporters
        self._exports = "otlp" in settings.exporters
        self._resource = resource
        self._options = options
        self._transport: Transport | None = None

    def send(self, snapshot: Snapshot, start_request: Callable[[], float]) -> Reply | None:
        """Make one attempt. Return None if the collector does not support metrics and they are not printed.

        `start_request` is called immediately before the request, and returns its time limit in seconds.
        """
        with no_fork:
            from cascade.connectors.otel.metrics import otlp_points

        data = otlp_points.metrics_data(snapshot, self._resource())
        if self._prints:
            otlp_points.print_json(data)
        if not self._exports:
            return Reply("accepted")
        body = otlp_points.encode(data)
        self._transport = self._transport or open_safely(lambda: open_transport(self._options))
        reply = self._transport.send(body, start_request())
        if reply.outcome != "refused" or not is_unsupported_signal(reply.reason):
            return reply
        logger.debug("OtelConnector: the collector does not support metrics: %s", reply.reason)
        if not self._prints:
            return None
        self._exports = False
        return Reply("accepted")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@dataclass(frozen=True, slots=True, eq=False)
class _Flush:
    """A flush that waits for the export `number`, at most until `end`."""

    number: int
    start: float
    end: float


class MetricExporter:
    """Exports the snapshots of an aggregator in one thread, which starts with the first change.

    Each export is one request. The next export repeats values that the collector has not accepted. `CollectorHealth`
    limits the wait of a flush. During a flush, an export is repeated after a pause if the collector requests a retry.
    """

    def __init__(self, settings: MetricSettings, resource: Callable[[], Resource], options: ExportOptions) -> None:
        self.aggregator = Aggregator(settings, self.notify)
        self._settings = settings
        self._resource = resource
        self._options = options
        self._idle_timeout = IDLE_TIMEOUT
        self._exit_timeouts: weakref.WeakKeyDictionary[object, float] = weakref.WeakKeyDictionary()
        self._exit_timeout = EXIT_TIMEOUT
        self._has_warned = False
        self._is_closed = False
        self._reset()
        _lifetime.watch(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._health = CollectorHealth()
        self._thread: threading.Thread | None = None
        self._flushes: list[_Flush] = []
        self._started = self._completed = 0  # the latest export, and the latest one that is not repeated
        self._started_at = 0.0
        self._is_exporting = False
        self._has_failed = False

    def notify(self) -> None:
        """Wake the thread after a change."""
        with self._changed:
            self._ensure_thread()
            self._changed.notify_all()

    def start_flush(self, timeout: float) -> Callable[[float], None]:
        """Start a flush of `timeout` seconds at most. The returned function waits for it.

        Its argument is an earlier end of the wait, a time of `time.monotonic`.
        """
        with self._changed:
            start = time.monotonic()
            flush = _Flush(self._started + self._has_changes(), start, start + timeout)
            if flush.number > self._completed and self._ensure_thread():
                self._flushes.append(flush)
                self._changed.notify_all()
            return lambda limit: self._wait(flush, limit)

    def reserve(self, user: object, exit_timeout: float) -> None:
        """Register a user. The exit flush takes the longest `exit_timeout` of the users that exist."""
        with self._changed:
            self._exit_timeouts[user] = exit_timeout
            self._exit_timeout = max(self._exit_timeouts.values())
            self._idle_timeout = IDLE_TIMEOUT

    def retire(self) -> None:
        """End the thread when there are no changes, until the next `reserve`."""
        with self._changed:
            self._idle_timeout = 0.0
            self._changed.notify_all()

    def reset_after_fork(self) -> None:
        self.aggregator.reset_after_fork()
        self._reset()

    def start_exit(self) -> Callable[[], None]:
        """Start the last flush. The returned function waits for it, and closes the exporter."""
        with self._changed:
            self._health.begin_exit()
        end = time.monotonic() + self._exit_timeout
        wait = self.start_flush(self._exit_timeout)

        def finish() -> None:
            wait(end)
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
                # A request that is in progress may outlast the flush.
                thread = self._thread if not self._is_exporting else None
            self.aggregator.disable()
            if thread is not None:
                thread.join(max(0.0, end - time.monotonic()))

        return finish

    def _has_changes(self) -> bool:
        return self.aggregator.has_changes or self._has_failed

    def _ensure_thread(self) -> bool:
        if self._is_closed:
            return False
        if self._thread is None or not self._thread.is_alive():
            self._thread = start_daemon(self._run, name="cascade-metrics")
        return self._thread is not None

    def _wait(self, flush: _Flush, limit: float) -> None:
        with self._changed:
            if flush not in self._flushes:
                return
            while self._completed < flush.number and not self._is_closed:
                end = min(flush.end, limit, self._health.flush_deadline(flush.start))
                left = end - time.monotonic()
                if left <= 0 or self._health.should_end_flush(flush.start, end):
                    self._health.record_failed_flush(flush.start)
                    break
                self._changed.wait(left)
            self._flushes.remove(flush)

    def _run(self) -> None:
        with suppress_instrumentation():
            sender = _SnapshotSender(self._settings, self._resource, self._options)
            while self._wait_for_next():
                self._export(sender)
            sender.close()

    def _wait_for_next(self) -> bool:
        """Wait until the next export is due. Return False when the thread must end."""
        due: float | None = None
        with self._changed:
            while not self._is_closed:
                is_flushing = self._is_flushing()
                if not is_flushing and not self._has_changes():
                    due = None
                    is_notified = self._changed.wait(self._idle_timeout)
                    if not is_notified and not self._has_changes() and not self._is_flushing():
                        self._thread = None
                        return False
                    continue
                now = time.monotonic()
                due = due or now + self._settings.interval
                next_export = max(self._health.next_request_at(is_flushing=is_flushing), 0 if is_flushing else due)
                if next_export <= now:
                    self._started += 1
                    self._is_exporting = True
                    return True
                self._changed.wait(next_export - now)
            return False

    def _is_flushing(self) -> bool:
        """Return whether a flush waits for an export that has not started or must be repeated."""
        return any(flush.number > self._completed for flush in self._flushes)

    def _export(self, sender: _SnapshotSender) -> None:
        self._started_at = time.monotonic()
        try:
            snapshot = self.aggregator.collect()
            reply = sender.send(snapshot, self._start_request)
        except Exception as error:
            raise_in_tests(error)
            logger.debug("OtelConnector: metrics cannot be exported", exc_info=True)
            reply = Reply("refused", error_text(error, 200))
        else:
            if reply is None:
                self.aggregator.disable(UNSUPPORTED_PAUSE)
            elif reply.outcome == "accepted":
                self.aggregator.complete(snapshot)
        self._record(reply or Reply("accepted"))

    def _start_request(self) -> float:
        # Imports and encoding take time before the request, which does not count for the health of the collector.
        with self._changed:
            self._started_at = time.monotonic()
            self._health.record_request(self._started_at)
            self._changed.notify_all()
            return self._options.timeout

    def _record(self, reply: Reply) -> None:
        if reply.outcome != "accepted" or reply.rejected:
            # A repeated export is no loss. There is one warning per exporter.
            is_quiet = reply.unanswered or reply.outcome == "retry" or self._has_warned
            self._has_warned |= not is_quiet
            level = logging.DEBUG if is_quiet else logging.WARNING
            reason = reply.reason or f"{reply.rejected} rejected"
            logger.log(level, "OtelConnector: metrics were not accepted: %s", reason)
        with self._changed:
            self._health.record(reply, self._started_at)
            self._has_failed = reply.outcome != "accepted"
            self._is_exporting = False
            if reply.outcome != "retry":
                self._completed = self._started
            self._changed.notify_all()
