"""Items of a queue: their counts, their size in memory, and their encoding as one OTLP request."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from sys import getsizeof
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

from cascade.connectors.otel.encode import Envelope

# Bytes, measured with tracemalloc on SDK 1.45: a finished span without attributes, and the additional parts of a span.
_SPAN = 2_700
_ATTRIBUTE = 80
_EVENT = _LINK = 500
_ITEM = 60  # the bytes object of an encoded span, its place in a list, and its share of an entry

Item = ReadableSpan | bytes
"""A span of the SDK, or an encoded span or log record, which needs a tenth of the memory."""


@dataclass(frozen=True, slots=True)
class FlushReport:
    """Counts of some items; `put == sent + lost + pending` always holds.

    `retried` is the number of items that needed more than one request. `pending` items are queued or in a request. `reason` is
    that of the latest loss, retry or incomplete flush.
    """

    put: int = 0
    sent: int = 0
    retried: int = 0
    lost: int = 0
    pending: int = 0
    reason: str = ""

    def text(self, noun: str, endpoint: str) -> str:
        """Return one line about the undelivered items. A failed flush of another provider has a reason and no counts."""
        counts = [f"{self.lost} {noun} were lost"] if self.lost else []
        counts += [f"{self.pending} {noun} are not yet delivered"] if self.pending else []
        counts = counts or [f"{noun} may not be delivered"]
        hint = "; they stay queued until they are delivered or the process ends" if self.pending else ""
        where = f" at {endpoint}" if endpoint else ""
        return f"{' and '.join(counts)}{where}" + (f": {self.reason}" if self.reason else "") + hint

    def __add__(self, other: "FlushReport") -> "FlushReport":
        """Return the sums, with the reason of a report that has lost or pending items."""
        return FlushReport(
            self.put + other.put,
            self.sent + other.sent,
            self.retried + other.retried,
            self.lost + other.lost,
            self.pending + other.pending,
            other.reason if other.lost or other.pending else self.reason,
        )


class Counters:
    """Counts of the items of a run, a connector or a queue; the first two count in the next as well.

    The lock of the queue guards them.
    """

    __slots__ = ("__weakref__", "_parent", "lost", "put", "reason", "retried", "sent")

    def __init__(self, parent: "Counters | None" = None) -> None:
        self._parent = parent
        self.put = self.sent = self.retried = self.lost = 0
        self.reason = ""

    @property
    def pending(self) -> int:
        return self.put - self.sent - self.lost

    def count_put(self) -> None:
        self.put += 1
        if self._parent is not None:
            self._parent.count_put()

    def add(self, *, sent: int = 0, retried: int = 0, lost: int = 0, reason: str = "") -> None:
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
    """Entry of a queue: one item, or successive encoded items with the same counters.

    An entry is open until its items are counted as sent or lost. An important entry has the span of a run or of a map, which
    is the parent of others: it is dropped last.
    """

    items: list[Item]
    size: int
    counters: Counters
    put_at: float
    is_important: bool = False
    is_open: bool = True

    def halves(self) -> "list[QueuedItems]":
        """Split an entry of several items."""
        middle = len(self.items) // 2
        parts = self.items[:middle], self.items[middle:]
        sizes = sum(map(estimate, parts[0])), self.size - sum(map(estimate, parts[0]))
        return [
            QueuedItems(part, size, self.counters, self.put_at, self.is_important, self.is_open)
            for part, size in zip(parts, sizes, strict=True)
        ]


def estimate(span: Item) -> int:
    """Return the bytes of memory that an item needs, with an error of about 10 %."""
    if isinstance(span, bytes):
        return _ITEM + len(span)
    try:
        size = _SPAN + _weight(span.attributes)
        for event in span.events:
            size += _EVENT + _weight(event.attributes)
        for link in span.links:
            size += _LINK + _weight(link.attributes)
    except Exception:  # noqa: BLE001 - an invalid span must not raise in the code that ended it
        return _SPAN
    return size


def encode(entries: Sequence[QueuedItems], envelope: Envelope | None = None) -> tuple[bytes, list[QueuedItems]]:
    """Return the body of an OTLP request, and the entries that cannot be encoded."""
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
    """Add the tracestates, which the encoder of the SDK omits (up to 1.45)."""
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
    # The mappings of the SDK are slow: iterate once.
    values = list(attributes.values())
    size = len(values) * _ATTRIBUTE + sum(map(getsizeof, values))
    if tuple in map(type, values):
        size += sum(sum(map(getsizeof, value)) for value in values if type(value) is tuple)
    return size
