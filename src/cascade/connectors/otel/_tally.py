"""Counts of items that were put, sent, retried and lost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FlushReport:
    """The counts of one tally since it began; always `put == sent + lost + pending`.

    `retried` counts the spans, among all of these, that needed more than one request. `pending` spans are queued or in
    a request. `reason` is that of the latest loss, retry, or flush that ended too early; empty without any.
    """

    put: int = 0
    sent: int = 0
    retried: int = 0
    lost: int = 0
    pending: int = 0
    reason: str = ""

    def text(self, noun: str, endpoint: str) -> str:
        """The undelivered items as one line of a report. Without counts, only the reason of a failed flush is known."""
        counts = [f"{self.lost} {noun} were lost"] if self.lost else []
        counts += [f"{self.pending} {noun} are not yet delivered"] if self.pending else []
        counts = counts or [f"{noun} may not be delivered"]
        hint = "; they stay queued until they are delivered or the process ends" if self.pending else ""
        where = f" at {endpoint}" if endpoint else ""
        return f"{' and '.join(counts)}{where}" + (f": {self.reason}" if self.reason else "") + hint

    def __add__(self, other: "FlushReport") -> "FlushReport":
        """The counts of both; the reason is that of a report with lost or pending spans."""
        has_reason = other if other.lost or other.pending else self
        return FlushReport(
            self.put + other.put,
            self.sent + other.sent,
            self.retried + other.retried,
            self.lost + other.lost,
            self.pending + other.pending,
            has_reason.reason,
        )


class Tally:
    """A running count, one for each run and one above them for the outbox. Guarded by the outbox's lock."""

    __slots__ = ("__weakref__", "_parent", "lost", "put", "reason", "retried", "sent")

    def __init__(self, parent: "Tally | None" = None) -> None:
        self._parent = parent
        self.put = self.sent = self.retried = self.lost = 0
        self.reason = ""

    @property
    def pending(self) -> int:
        return self.put - self.sent - self.lost

    def count_put(self) -> None:
        """Count one that was put, here and above."""
        self.put += 1
        if self._parent is not None:
            self._parent.count_put()

    def add(self, *, sent: int = 0, retried: int = 0, lost: int = 0, reason: str = "") -> None:
        """Count, here and above."""
        self.sent += sent
        self.retried += retried
        self.lost += lost
        self.reason = reason or self.reason
        if self._parent is not None:
            self._parent.add(sent=sent, retried=retried, lost=lost, reason=reason)

    def disown_pending(self) -> None:
        """Forget the pending items: after a fork the parent process sends them."""
        self.put = self.sent + self.lost

    def report(self) -> FlushReport:
        return FlushReport(self.put, self.sent, self.retried, self.lost, self.pending, self.reason)
