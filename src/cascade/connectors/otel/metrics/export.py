"""When to export: at intervals while there is news, and for each flush."""

import logging
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from opentelemetry.sdk.resources import Resource

from cascade._forks import no_fork
from cascade._loggers import get_logger
from cascade.connectors import _lifetime
from cascade.connectors.otel._peer import Peer
from cascade.connectors.otel._transport import Reply, Transport, opened, takes_no_such_signal
from cascade.connectors.otel._uninstrumented import uninstrumented
from cascade.connectors.otel.metrics.aggregation import Ledger, Snapshot
from cascade.runtime.threads import start_daemon
from cascade.telemetry.safe import error_text

logger = get_logger("cascade.connectors.otel")


class Destination(Protocol):
    """Used by the exporting thread alone, which makes it and closes it."""

    def send(self, snapshot: Snapshot, time_left: Callable[[], float]) -> Reply | None:
        """Make one attempt; None from a peer that will never take metrics.

        `time_left`, in seconds, is asked when the request goes out: what we do before is not the peer's fault.
        """
        ...

    def close(self) -> None: ...


class Collector:
    """Sends OTLP."""

    def __init__(self, resource: Callable[[], Resource], open_transport: Callable[[], Transport]) -> None:
        self._resource = resource
        self._open_transport = open_transport
        self._transport: Transport | None = None

    def send(self, snapshot: Snapshot, time_left: Callable[[], float]) -> Reply | None:
        body = _encoded(snapshot, self._resource())
        self._transport = self._transport or opened(self._open_transport)
        reply = self._transport.send(body, time_left())
        if reply.outcome == "refused" and takes_no_such_signal(reply.reason):
            logger.debug("OtelConnector: no metrics are sent, the collector does not take them: %s", reply.reason)
            return None
        return reply

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Console:
    """Prints JSON, and passes on to the next destination if there is one."""

    def __init__(self, resource: Callable[[], Resource], following: Destination | None) -> None:
        self._resource = resource
        self._next = following

    def send(self, snapshot: Snapshot, time_left: Callable[[], float]) -> Reply | None:
        self._print(snapshot)
        reply = self._next.send(snapshot, time_left) if self._next else None
        if reply is None and self._next:
            self._next.close()
            self._next = None
        return reply or Reply("accepted")

    def close(self) -> None:
        if self._next:
            self._next.close()

    def _print(self, snapshot: Snapshot) -> None:
        with no_fork:
            from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

            from cascade.connectors.otel.metrics.otlp_points import metrics_data

        try:
            ConsoleMetricExporter(out=sys.stdout).export(metrics_data(snapshot, self._resource()))
        except Exception:
            logger.debug("OtelConnector: metrics cannot be printed", exc_info=True)


def _encoded(snapshot: Snapshot, resource: Resource) -> bytes:
    with no_fork:
        from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

        from cascade.connectors.otel.metrics.otlp_points import metrics_data

    return encode_metrics(metrics_data(snapshot, resource)).SerializeToString()


logger = get_logger("cascade.connectors.otel")

IDLE = 30.0  # seconds after which a thread without news ends, and with it its connection
EXIT_TIMEOUT = 5.0  # seconds that the process's exit may take for the last export, if no user has reserved another time
NOT_TAKEN_PAUSE = 3600.0  # seconds after which metrics are offered again to a collector that takes none


@dataclass(frozen=True, slots=True, eq=False)
class Flush:
    """A flush that waits for the end of export number `round`."""

    round: int
    start: float
    timeout: float

    @property
    def end(self) -> float:
        return self.start + self.timeout


class Exporter:
    """One thread, started by the first news. Each export is one request; the next one repeats what a peer has not taken.

    A flush waits as `Peer` says; while it waits, an export that the peer answers with "later" is repeated after a pause.
    """

    def __init__(
        self, ledger: Ledger, open_destination: Callable[[], Destination], *, interval: float, request_timeout: float
    ) -> None:
        self.ledger = ledger
        self._open_destination = open_destination
        self._interval = interval
        self._request_timeout = request_timeout
        self._idle = IDLE
        self._exit_timeout = EXIT_TIMEOUT
        self._exit_timeouts: weakref.WeakKeyDictionary[object, float] = weakref.WeakKeyDictionary()
        self._has_warned = False
        self._is_closed = False
        self._begin()
        ledger.wake = self.wake
        _lifetime.watch(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._peer = Peer()
        self._thread: threading.Thread | None = None
        self._flushes: list[Flush] = []
        self._begun = self._ended = 0  # exports that went out, and the latest of them that needs no repetition
        self._began_at = 0.0
        self._is_exporting = False
        self._has_failed = False

    def wake(self) -> None:
        """There is news."""
        with self._changed:
            self._ensure_thread()
            self._changed.notify_all()

    def flush(self, timeout: float) -> None:
        """Export what there is by now; returns when the peer has answered, or after `timeout` seconds."""
        self.start_flush(timeout)(math.inf)

    def start_flush(self, timeout: float) -> Callable[[float], None]:
        """Begin a flush; the returned function waits for it, at most until its argument, a time of `time.monotonic`."""
        with self._changed:
            flush = Flush(self._begun + self._has_news(), time.monotonic(), timeout)
            if flush.round > self._ended and self._ensure_thread():
                self._flushes.append(flush)
                self._changed.notify_all()
            return lambda limit: self._wait(flush, limit)

    def reserve(self, user: object, exit_timeout: float) -> None:
        """Register a user of this exporter. The longest time of the live users holds."""
        with self._changed:
            self._exit_timeouts[user] = exit_timeout
            self._exit_timeout = max(self._exit_timeouts.values())
            self._idle = IDLE

    def retire(self) -> None:
        """End the thread as soon as it has no news to export, until the exporter is reserved again."""
        with self._changed:
            self._idle = 0.0
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        """Flush, and end the thread; within `timeout` seconds."""
        self.start_close(timeout)()

    def start_close(self, timeout: float) -> Callable[[], None]:
        """Begin the last flush; the returned function waits for it and ends the thread."""
        deadline = time.monotonic() + timeout
        wait = self.start_flush(timeout)

        def finish() -> None:
            wait(math.inf)
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
                # A thread that is out with a request may take longer than the flush.
                thread = self._thread if not self._is_exporting else None
            self.ledger.turn_off()
            if thread is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

        return finish

    def reset_after_fork(self) -> None:
        self.ledger.reset_after_fork()
        self._begin()

    def start_exit(self) -> Callable[[], None]:
        with self._changed:
            self._peer.begin_exit()
        return self.start_close(self._exit_timeout)

    def _has_news(self) -> bool:
        return self.ledger.has_news or self._has_failed

    def _ensure_thread(self) -> bool:
        if self._is_closed:
            return False
        if self._thread is None or not self._thread.is_alive():
            self._thread = start_daemon(self._run, name="cascade-metrics")
        return self._thread is not None

    def _wait(self, flush: "Flush", limit: float) -> None:
        with self._changed:
            if flush not in self._flushes:
                return
            while self._ended < flush.round and not self._is_closed:
                end = min(flush.end, limit, self._peer.patience(flush.start))
                left = end - time.monotonic()
                if left <= 0 or self._peer.is_hopeless(flush.start, end):
                    self._peer.end_flush(flush.start)
                    break
                self._changed.wait(left)
            self._flushes.remove(flush)

    def _run(self) -> None:
        with uninstrumented():
            destination = self._open_destination()
            while self._is_due():
                self._export(destination)
            destination.close()

    def _is_due(self) -> bool:
        """Wait for the next export; False when the thread is to end."""
        due: float | None = None
        with self._changed:
            while not self._is_closed:
                if not self._has_news() and not self._is_awaited():
                    due = None
                    if not self._changed.wait(self._idle) and not self._has_news() and not self._is_awaited():
                        self._thread = None
                        return False
                    continue
                due = due or time.monotonic() + self._interval
                is_awaited = self._is_awaited()
                left = max(self._peer.next_try(is_flushing=is_awaited), 0.0 if is_awaited else due) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._begun += not self._is_closed
            self._is_exporting = not self._is_closed
            return self._is_exporting

    def _is_awaited(self) -> bool:
        """Whether a flush waits for an export that has not begun, or has to be repeated."""
        return any(flush.round > self._ended for flush in self._flushes)

    def _export(self, destination: Destination) -> None:
        self._began_at = time.monotonic()
        try:
            snapshot = self.ledger.take()
            reply = destination.send(snapshot, self._ask)
        except Exception as error:
            logger.debug("OtelConnector: metrics cannot be exported", exc_info=True)
            reply = Reply("refused", error_text(error, 200))
        else:
            if reply is None:
                self.ledger.turn_off(NOT_TAKEN_PAUSE)
            elif reply.outcome == "accepted":
                self.ledger.settle(snapshot)
        self._learn(reply or Reply("accepted"))

    def _ask(self) -> float:
        """A request goes out; the seconds that it may take."""
        with self._changed:
            self._began_at = time.monotonic()
            self._peer.ask(self._began_at)
            self._changed.notify_all()
            return self._request_timeout

    def _learn(self, reply: Reply) -> None:
        if reply.outcome != "accepted" or reply.rejected:
            self._report(reply)
        with self._changed:
            self._peer.record(reply, self._began_at)
            self._has_failed = reply.outcome != "accepted"
            self._is_exporting = False
            if reply.outcome != "retry":
                self._ended = self._begun
            self._changed.notify_all()

    def _report(self, reply: Reply) -> None:
        """Log one warning at most; an export that will be repeated is no loss."""
        level = logging.DEBUG if reply.dead or reply.outcome == "retry" or self._has_warned else logging.WARNING
        self._has_warned |= level == logging.WARNING
        logger.log(level, "OtelConnector: metrics were not taken: %s", reply.reason or f"{reply.rejected} rejected")
