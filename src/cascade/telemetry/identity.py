"""Trace and span ids, which any process can compute from run_id, task_id and attempt (test vectors: `docs/identity.md`).

A run's trace id is its run_id's 128 bits. A span's id is the first 8 bytes of SHA-256 over
`{run_id}/{task_id}/{attempt}`. The run's own span has the empty task_id. Other spans have an id in place of a task_id:
`run.started`, `setup:{name}` and `teardown:{name}` for a resource, `wait:{task_id}` (the attempt is the wait's number),
`{map_id}/{index}` for an item, `part:{parent_id}` (the attempt is the part's number) for the root of a part.

A tracestate (W3C Trace Context) belongs to one trace: all spans of a run in the caller's trace have the caller's. A run in
a trace of its own starts without one, and so does a part.

The size of a trace is limited: the children of a run or of a map belong to parts (`cascade.telemetry.trace_shards`). Part 0 is in
the parent's trace. The trace id of each further part is the first 16 bytes of SHA-256 over
`{run_id}/{parent_id}/part/{part}`, where the parent_id is the map's task_id, or empty for the run.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from cascade.spec.metadata import MAX_TRACESTATE
from cascade.telemetry.trace_budget import Part
from cascade.telemetry.trace_shards import TraceShards

RUN = ""
RUN_STARTED = "run.started"
"""The id that stands for the marker of a run's start, `run {target} started`, in place of a task_id."""
SAMPLED = 0x01
_KNOWN_FLAGS = 0x03  # sampled and random (W3C Trace Context Level 2); a participant clears the others
MAX_TRACESTATE_MEMBERS = 32
_ZERO_SPAN = "0" * 16
_TRACE_ID = re.compile(r"^(?!0{32})[0-9a-f]{32}$")
_TRACEPARENT = re.compile(r"^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$")

# The keys and values of W3C Trace Context, as the OpenTelemetry SDK checks them: their spans and ours agree.
_KEY = r"[a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13}"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(f"({_KEY})={_VALUE}")


def new_run_id(random_bytes: Callable[[int], bytes] = os.urandom) -> str:
    """Return 128 random bits in the form of a UUID; never zero, which is no trace id.

    No bit is fixed. A version 4 UUID has fixed bits where a ratio sampler looks: in the low 64 bits of the trace id.
    """
    while not any(bits := random_bytes(16)):
        pass
    return str(UUID(bytes=bits))


def trace_id(run_id: str) -> str:
    """The trace id of a run that joins no other trace: the 128 bits of a run_id in UUID form; a hash of any other one."""
    plain = run_id.replace("-", "").lower()
    return plain if _TRACE_ID.match(plain) else sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def span_id(run_id: str, task_id: str = RUN, attempt: int = 0) -> str:
    """The span id of a task (attempt 0), of one of its attempts (1, 2, …), or of the run itself (no task_id)."""
    name = f"{run_id}/{task_id}/{attempt}".encode("utf-8", "surrogatepass")
    found = sha256(name).hexdigest()
    # All zeroes is no valid span id (W3C Trace Context 3.2.2.4): take the next 8 bytes in that one case of 2**64.
    return found[:16] if found[:16] != _ZERO_SPAN else found[16:32]


def item_id(map_id: str, index: int) -> str:
    """The task_id of a map's item."""
    return f"{map_id}/{index}"


def setup_id(name: str) -> str:
    """The id that stands for a resource's setup in place of a task_id."""
    return f"setup:{name}"


def teardown_id(name: str) -> str:
    """The id that stands for a resource's teardown in place of a task_id."""
    return f"teardown:{name}"


def wait_id(task_id: str) -> str:
    """The id that stands for a task's waits in place of its task_id; the attempt is the wait's number, from 1."""
    return f"wait:{task_id}"


def part_trace_id(run_id: str, parent_id: str, part: int) -> str:
    """The trace id of a part, from 1, of the children of a map (its task_id) or of the run ("")."""
    name = f"{run_id}/{parent_id}/part/{part}".encode("utf-8", "surrogatepass")
    found = sha256(name).hexdigest()
    return found[:32] if _TRACE_ID.match(found[:32]) else found[32:]


def part_id(parent_id: str) -> str:
    """The id that stands for the roots of a parent's parts in place of a task_id; the attempt is the part's number."""
    return f"part:{parent_id}"


class SpanLocation(NamedTuple):
    """The trace and the parent of a task's span."""

    trace_id: str
    parent_span_id: str


@lru_cache(maxsize=1024)
def _place(run_id: str, trace_id: str, parent_id: str, part: int) -> SpanLocation:
    if not part:
        return SpanLocation(trace_id, span_id(run_id, parent_id))
    return SpanLocation(part_trace_id(run_id, parent_id, part), span_id(run_id, part_id(parent_id), part))


@dataclass(frozen=True, slots=True)
class SpanRef:
    """A span of this or another process; `flags` are W3C's trace flags, `tracestate` is W3C's header or ""."""

    trace_id: str
    span_id: str
    flags: int = SAMPLED
    tracestate: str = ""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


@dataclass(frozen=True, slots=True)
class RunTrace:
    """The trace of a run, the parent that the run joined (or none), and the spans to which it links.

    `tracestate` belongs to the spans in the trace `trace_id`. `parts` has the parts of the run's children.
    """

    run_id: str
    trace_id: str
    parent_span_id: str = ""
    flags: int = SAMPLED
    links: tuple[SpanRef, ...] = ()
    tracestate: str = ""
    parts: TraceShards = field(default_factory=TraceShards, compare=False, repr=False)

    @property
    def span_id(self) -> str:
        """The run's own span."""
        return span_id(self.run_id)

    def place_of(self, task_id: str, map_id: str | None = None) -> SpanLocation:
        """The place of a task's span, of an item's with the id of its map.

        It is fixed when the task starts. Before that, and after the end of an item, it is that in part 0.
        """
        child = self.parts.child(task_id)
        if child is not None:
            return self.place_in(child.part)
        return self._place_of_number(self.parts.number_of(task_id, map_id), map_id)

    def place_in(self, part: Part) -> SpanLocation:
        """The place of the spans of a part's children."""
        place: SpanLocation | None = part.place
        if place is None:
            place = part.place = self._place_of_number(part.number, part.parent.id or None)
        return place

    def _place_of_number(self, part: int, map_id: str | None) -> SpanLocation:
        if map_id is None:
            return _place(self.run_id, self.trace_id, RUN, part)
        return _place(self.run_id, self.trace_id if part else self.place_of(map_id).trace_id, map_id, part)

    def tracestate_in(self, trace_id: str) -> str:
        """The tracestate of the run's spans in a trace: none in that of a part."""
        return self.tracestate if trace_id == self.trace_id else ""

    def ref(self, trace_id: str, span_id: str) -> SpanRef:
        """One of the run's spans, in that trace."""
        return SpanRef(trace_id, span_id, self.flags, self.tracestate_in(trace_id))

    def span_of(self, task_id: str, attempt: int = 0) -> SpanRef:
        """The span of one of the run's own children."""
        return self.ref(self.place_of(task_id).trace_id, span_id(self.run_id, task_id, attempt))

    def part_root(self, parent_id: str, part: int) -> SpanRef:
        """The root of a part of the children of a map, or of the run ("")."""
        place = _place(self.run_id, self.trace_id, parent_id, part)
        return self.ref(place.trace_id, place.parent_span_id)


def place_run(run_id: str, parent: SpanRef | None = None, mode: str = "join") -> RunTrace:
    """The trace of a run: that of the parent (`join`), or one of its own with a link to the parent (`link`) or without (`none`)."""
    if parent is None or mode == "none":
        return RunTrace(run_id, trace_id(run_id))
    if mode == "link":
        return RunTrace(run_id, trace_id(run_id), links=(parent,))
    flags = parent.flags & _KNOWN_FLAGS
    return RunTrace(run_id, parent.trace_id, parent.span_id, flags, tracestate=parent.tracestate)


def parse_traceparent(value: str | None, tracestate: str | None = None) -> SpanRef | None:
    """Read a `traceparent` header, and the `tracestate` header beside it.

    Returns None without a valid `traceparent` (W3C Trace Context, 3.2); `tracestate` is then not used either.
    """
    match = _TRACEPARENT.match((value or "").strip())
    if match is None:
        return None
    version, trace, span, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
        return None
    return SpanRef(trace, span, int(flags, 16), parse_tracestate(tracestate))


@lru_cache(maxsize=256)
def parse_tracestate(value: str | None) -> str:
    """Return a `tracestate` header without empty members and spaces; "" if it is not valid (W3C Trace Context, 3.3)."""
    if not value or len(value) > MAX_TRACESTATE:
        return ""
    members = [member for each in value.split(",") if (member := each.strip(" \t"))]
    matches = [match for member in members if (match := _MEMBER.fullmatch(member))]
    keys = {match.group(1) for match in matches}
    is_valid = len(keys) == len(members) <= MAX_TRACESTATE_MEMBERS
    return ",".join(members) if is_valid else ""
