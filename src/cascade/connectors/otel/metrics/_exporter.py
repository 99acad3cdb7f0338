"""When to export: at intervals while there is news, and when somebody waits for it."""

import logging
import threading
import time
from collections.abc import Callable

from cascade._loggers import get_logger
from cascade.connectors import _lifetime
from cascade.connectors.otel._peer import Peer
from cascade.connectors.otel._transport import Reply
from cascade.connectors.otel._uninstrumented import uninstrumented
from cascade.connectors.otel.metrics._destinations import Destination
from cascade.connectors.otel.metrics._ledger import Ledger

logger = get_logger("cascade.connectors.otel")

IDLE = 30.0  # seconds after which a thread without news ends, and with it its connection
DEAD_PATIENCE = 0.2  # seconds a flush has for a peer whose last reply was none
EXIT_TIMEOUT = 5.0  # seconds that the interpreter's exit may take for the last export; less for a dead collector
NOT_TAKEN_PAUSE = 3600.0  # seconds after which metrics are offered again to a collector that takes none
MAX_ATTEMPTS = 10  # in a row that fail, before waiting for more news


class Exporter:
    """One thread, started by the first news; each export is one request, and what fails is told by the next.

    A flush waits as long as `Peer` has the patience, for a peer that is dead at most `DEAD_PATIENCE`.
    """

    def __init__(
        self, ledger: Ledger, open_destination: Callable[[], Destination], *, interval: float, request_timeout: float
    ) -> None:
        self.ledger = ledger
        self._open_destination = open_destination
        self._interval = interval
        self._request_timeout = request_timeout
        self._idle = IDLE
        self._has_warned = False
        self._is_closed = False
        self._begin()
        ledger.wake = self.wake
        _lifetime.watch(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._peer = Peer()
        self._thread: threading.Thread | None = None
        self._flushes: list[tuple[float, float]] = []
        self._wanted = self._begun = self._ended = 0
        self._failures = 0

    def wake(self) -> None:
        """There is news."""
        with self._changed:
            self._ensure_thread()
            self._changed.notify_all()

    def flush(self, timeout: float) -> None:
        """Export what there is by now; returns when that is done, or has failed, or after `timeout` seconds."""
        with self._changed:
            start = time.monotonic()
            limit = start + (min(timeout, DEAD_PATIENCE) if self._peer.is_dead else timeout)
            round_ = self._begun + self._has_news()
            if round_ <= self._ended or not self._ensure_thread():
                return
            self._wanted = max(self._wanted, round_)
            self._flushes.append((start, limit))
            self._changed.notify_all()
            self._await_end(round_, start, limit)
            self._flushes.remove((start, limit))

    def retire(self) -> None:
        """End the thread, from now on, as soon as it has no news to export."""
        with self._changed:
            self._idle = 0.0
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        """Flush, and end the thread; within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        self.flush(timeout)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            # A thread that is out with a request may take longer than we have.
            thread = self._thread if self._begun == self._ended else None
        self.ledger.turn_off()
        if thread is not None:
            thread.join(max(0.0, deadline - time.monotonic()))

    def reset_after_fork(self) -> None:
        self.ledger.reset_after_fork()
        self._begin()

    def close_at_exit(self) -> None:
        self.close(EXIT_TIMEOUT)

    def _has_news(self) -> bool:
        return self.ledger.has_news or 0 < self._failures < MAX_ATTEMPTS

    def _ensure_thread(self) -> bool:
        if self._is_closed:
            return False
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="cascade-metrics", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is shutting down
                return False
            self._thread = thread
        return True

    def _await_end(self, round_: int, start: float, limit: float) -> None:
        while self._ended < round_ and not self._is_closed:
            left = min(limit, self._peer.patience(start)) - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _run(self) -> None:
        with uninstrumented():
            destination = self._open_destination()
            while self._is_due():
                self._export(destination)
            destination.close()

    def _is_due(self) -> bool:
        """Wait for the next export; False when the thread is to end."""
        due = None
        with self._changed:
            while self._wanted <= self._begun and not self._is_closed:
                if self._has_news():
                    due = due or time.monotonic() + self._interval
                    left = due - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
                elif not self._changed.wait(self._idle) and self._wanted <= self._begun and not self._has_news():
                    self._thread = None
                    return False
            self._begun += not self._is_closed
            return not self._is_closed

    def _export(self, destination: Destination) -> None:
        try:
            snapshot = self.ledger.take()
            reply = destination.send(snapshot, self._time_for_request)
        except Exception as error:
            logger.debug("OtelConnector: metrics cannot be exported", exc_info=True)
            reply = Reply("refused", f"{type(error).__name__}: {error}"[:200])
        else:
            if reply is None:
                self.ledger.turn_off(NOT_TAKEN_PAUSE)
            elif reply.outcome == "accepted":
                self.ledger.settle(snapshot)
        self._learn(reply or Reply("accepted"))

    def _time_for_request(self) -> float:
        """While somebody waits for a flush, no longer than that one waits."""
        now = time.monotonic()
        with self._changed:
            self._peer.ask(now)
            self._changed.notify_all()
            return self._peer.time_for_request(now, self._flushes, self._request_timeout)

    def _learn(self, reply: Reply) -> None:
        is_accepted = reply.outcome == "accepted"
        if not is_accepted or reply.rejected:
            self._report(reply)
        with self._changed:
            self._peer.record(reply, time.monotonic())
            self._failures = 0 if is_accepted else self._failures + 1
            self._ended = self._begun
            self._changed.notify_all()

    def _report(self, reply: Reply) -> None:
        """One warning at most, and none of a dead collector: that is the traces' to tell."""
        level = logging.DEBUG if reply.dead or self._has_warned else logging.WARNING
        self._has_warned |= not reply.dead
        logger.log(level, "OtelConnector: metrics were not taken: %s", reply.reason or f"{reply.rejected} rejected")
