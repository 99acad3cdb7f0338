"""Items of a queue: their size in memory, and their encoding as one OTLP request."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from sys import getsizeof
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

from cascade.connectors.otel.encode import Envelope

# Measured with tracemalloc on SDK 1.45: a finished span without attributes; then what an item adds to its container.
_SPAN = 2_700
_ATTRIBUTE = 80
_EVENT = _LINK = 500
_ITEM = 60  # the object around an encoded span's bytes, its place in a list, and its share of an entry

Item = ReadableSpan | bytes
"""A span of the SDK, or an encoded span or log record, which takes a tenth of the memory."""


@dataclass(frozen=True, slots=True)
class FlushReport:
    """The counts of one counters since it began; always `put == sent + lost + pending`.

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


class Counters:
    """A running count, one for each run and one above them for the queue. Guarded by the queue's lock."""

    __slots__ = ("__weakref__", "_parent", "lost", "put", "reason", "retried", "sent")

    def __init__(self, parent: "Counters | None" = None) -> None:
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

    def forget_pending(self) -> None:
        """Forget the pending items: after a fork the parent process sends them."""
        self.put = self.sent + self.lost

    def report(self) -> FlushReport:
        return FlushReport(self.put, self.sent, self.retried, self.lost, self.pending, self.reason)


@dataclass(slots=True, eq=False)
class QueuedItems:
    """One item in a queue, or some successive encoded ones of one counters.

    `is_open` until it is counted as sent or lost; it is counted once. An entry that `is_important` has the span of a run
    or of a map, which is a parent of others: it is refused last.
    """

    items: list[Item]
    size: int
    counters: Counters
    put_at: float
    is_important: bool = False
    is_open: bool = True

    def halves(self) -> "list[QueuedItems]":
        """Two entries in place of one of several items."""
        middle = len(self.items) // 2
        parts = self.items[:middle], self.items[middle:]
        sizes = sum(map(estimate, parts[0])), self.size - sum(map(estimate, parts[0]))
        return [
            QueuedItems(part, size, self.counters, self.put_at, self.is_important, self.is_open)
            for part, size in zip(parts, sizes, strict=True)
        ]


def estimate(span: Item) -> int:
    """The bytes of memory that a waiting span holds, to some ten per cent, for a few microseconds."""
    if isinstance(span, bytes):
        return _ITEM + len(span)
    try:
        size = _SPAN + _weight(span.attributes)
        for event in span.events:
            size += _EVENT + _weight(event.attributes)
        for link in span.links:
            size += _LINK + _weight(link.attributes)
    except Exception:  # noqa: BLE001 - a strange span must not break the code that ended it
        return _SPAN
    return size


def encode(entries: Sequence[QueuedItems], envelope: Envelope | None = None) -> tuple[bytes, list[QueuedItems]]:
    """One OTLP request, and the entries that are not in it because they cannot be encoded."""
    ours = [item for entry in entries for item in entry.items if isinstance(item, bytes)]
    body = envelope.wrap(ours) if ours and envelope else b""
    others = [entry for entry in entries if not isinstance(entry.items[0], bytes)]
    if not others:
        return body, []
    try:
        return body + _serialized(others), []
    except Exception:  # noqa: BLE001 - protobuf raises many kinds
        good = [entry for entry in others if _is_encodable(entry)]
    kept = set(good)
    return body + (_serialized(good) if good else b""), [entry for entry in others if entry not in kept]


def _serialized(entries: Iterable[QueuedItems]) -> bytes:
    spans = [item for entry in entries for item in entry.items if not isinstance(item, bytes)]
    request = encode_spans(spans)
    _add_tracestates_of_links(request, [span for span in spans if any(link.context.trace_state for link in span.links)])
    return request.SerializeToString()


def _add_tracestates_of_links(request: ExportTraceServiceRequest, spans: Sequence[ReadableSpan]) -> None:
    """Write what the SDK's encoder leaves out (up to 1.45)."""
    links = {span.context.span_id.to_bytes(8): span.links for span in spans if span.context is not None}
    if not links:
        return
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            for encoded in of_scope.spans:
                for ours, theirs in zip(links.get(encoded.span_id, ()), encoded.links, strict=False):
                    theirs.trace_state = ours.context.trace_state.to_header()


def _is_encodable(entry: QueuedItems) -> bool:
    try:
        _serialized([entry])
    except Exception:  # noqa: BLE001 - protobuf raises many kinds
        return False
    return True


def _weight(attributes: Any) -> int:
    if not attributes:
        return 0
    # The SDK's mappings look each value up in Python: once round is enough.
    values = list(attributes.values())
    size = len(values) * _ATTRIBUTE + sum(map(getsizeof, values))
    if tuple in map(type, values):
        size += sum(sum(map(getsizeof, value)) for value in values if type(value) is tuple)
    return size
