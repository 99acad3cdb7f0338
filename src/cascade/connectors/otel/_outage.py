"""The log lines about a destination that does not take its items: one when that is found, one when it ends."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cascade._loggers import get_logger
from cascade.connectors.otel._batch import Entry
from cascade.connectors.otel._tally import FlushReport

logger = get_logger("cascade.connectors.otel")


@dataclass(frozen=True, slots=True)
class Items:
    """The items of an outbox, as log lines name them."""

    noun: str = "spans"
    endpoint: str = ""

    @property
    def place(self) -> str:
        return f" at {self.endpoint}" if self.endpoint else ""


SPANS = Items()


class Outage:
    """Log state of one outage. It begins with a flush that leaves items undelivered and ends when these are counted.

    Guarded by the outbox's lock, but for `log`.
    """

    def __init__(self, items: Items, clock: Callable[[], float] = time.monotonic) -> None:
        self._items = items
        self._clock = clock
        self._end()

    def _end(self) -> None:
        self._began = math.inf
        self._answered = math.inf
        self._lost = 0  # of the outbox when the outage began
        self._late = 0
        self._announced = 0  # undelivered items that a warning has named
        self._has_told_of_loss = False

    @property
    def is_announced(self) -> bool:
        return self._began < math.inf

    def announce(self, run: FlushReport, total: FlushReport) -> bool:
        """Whether the end of a run with `run` is worth a warning.

        Of an outage these are the first run with undelivered items, and the first with lost ones.
        """
        if self.is_announced:
            is_news = run.lost > 0 and not self._has_told_of_loss
        elif run.pending:
            is_news = True
            self._began = self._clock()
            self._lost = total.lost - run.lost
        else:
            return True
        if is_news:
            self._announced += run.pending
            self._has_told_of_loss = run.lost > 0
        return is_news

    def accepted(self, entries: Iterable[Entry]) -> None:
        """The peer took these entries."""
        if self.is_announced:
            self._answered = min(self._answered, self._clock())
            self._late += sum(len(entry.items) for entry in entries if entry.put_at <= self._answered)

    def ended(self, total: FlushReport, holds: Callable[[float], bool]) -> str:
        """The line about the outage's end; empty while items wait that were put before the peer answered."""
        if not self.is_announced or (total.pending and (self._answered == math.inf or holds(self._answered))):
            return ""
        items, seconds = self._items, self._clock() - self._began
        line = f"the outage{items.place} is over after {seconds:.3g} s: {self._late} {items.noun} were delivered late"
        if lost := total.lost - self._lost:
            line += f", {lost} were lost: {total.reason}"
        self._end()
        return line

    def closed(self, lost: int, reason: str) -> str:
        """The line about items that are lost at the process's end; empty if a warning has named just these."""
        is_named = lost <= self._announced and not self._late
        self._end()
        if not lost or is_named:
            return ""
        return f"{lost} {self._items.noun} were lost{self._items.place} when the process ended: {reason}"


def log(line: str) -> None:
    """Log a line as a warning, unless it is empty. Called without the lock: a handler may do anything."""
    if line:
        logger.warning("OtelConnector: %s", line)
