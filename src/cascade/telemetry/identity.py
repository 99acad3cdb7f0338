"""Trace ids and span ids, which any process can compute from run_id, task_id and attempt.

The trace id of a run has the 128 bits of its run_id. A span id is the first 8 bytes of SHA-256 over
`{run_id}/{task_id}/{attempt}`. The span of the run has an empty task_id. These spans have another id instead of a task_id:

- the marker of the start of a run: `run.started`
- a resource: `setup:{name}` and `teardown:{name}`
- a wait: `wait:{task_id}`, with the number of the wait as attempt
- an item of a map: `{map_id}/{index}`
- the root of a part: `part:{parent_id}`, with the number of the part as attempt

A tracestate (W3C Trace Context) belongs to one trace. All spans of a run in the trace of a caller have the tracestate of the
caller. A run in its own trace has no tracestate, and a part has none.

The size of a trace is limited: the children of a run or of a map belong to parts (`cascade.telemetry.trace_shards`). Part 0
is in the trace of the parent. The trace id of each further part is the first 16 bytes of SHA-256 over
`{run_id}/{parent_id}/part/{part}`. The parent_id is the task_id of the map, or empty for the run.

`docs/identity.md` has test vectors.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from cascade.spec.value_types import MAX_TRACESTATE
from cascade.telemetry.trace_budget import Part
from cascade.telemetry.trace_shards import TraceShards

RUN = ""
RUN_STARTED = "run.started"
"""Id of the span `run {target} started` instead of a task_id."""
SAMPLED = 0x01
_KNOWN_FLAGS = 0x03  # sampled and random (W3C Trace Context Level 2); a participant clears all others
MAX_TRACESTATE_MEMBERS = 32
_ZERO_SPAN = "0" * 16
_TRACE_ID = re.compile(r"^(?!0{32})[0-9a-f]{32}$")
_TRACEPARENT = re.compile(r"^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$")

# The keys and values of W3C Trace Context with the checks of the OpenTelemetry SDK, so that all spans of a trace agree.
_KEY = r"[a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13}"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(f"({_KEY})={_VALUE}")


def new_run_id(random_bytes: Callable[[int], bytes] = os.urandom) -> str:
    """Return 128 random bits in the form of a UUID. Zero is not returned, because it is not a valid trace id.

    All bits are random. A version 4 UUID has fixed bits among the low 64 bits, which ratio samplers use.
    """
    while not any(bits := random_bytes(16)):
        pass
    return str(UUID(bytes=bits))


def trace_id(run_id: str) -> str:
    """Return the trace id of a run in its own trace: the bits of a run_id in UUID form, or a hash of another run_id."""
    plain = run_id.replace("-", "").lower()
    return plain if _TRACE_ID.match(plain) else sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def span_id(run_id: str, task_id: str = RUN, attempt: int = 0) -> str:
    """Return the span id of a task (attempt 0), of one of its attempts (from 1), or of the run (no task_id)."""
    name = f"{run_id}/{task_id}/{attempt}".encode("utf-8", "surrogatepass")
    found = sha256(name).hexdigest()
    # Zero is not a valid span id (W3C Trace Context 3.2.2.4). The next 8 bytes replace it.
    return found[:16] if found[:16] != _ZERO_SPAN else found[16:32]


def item_id(map_id: str, index: int) -> str:
    """Return the task_id of an item of a map."""
    return f"{map_id}/{index}"


def setup_id(name: str) -> str:
    """Return the id of the setup of a resource instead of a task_id."""
    return f"setup:{name}"


def teardown_id(name: str) -> str:
    """Return the id of the teardown of a resource instead of a task_id."""
    return f"teardown:{name}"


def wait_id(task_id: str) -> str:
    """Return the id of the waits of a task instead of its task_id. The attempt is the number of the wait, from 1."""
    return f"wait:{task_id}"


def part_trace_id(run_id: str, parent_id: str, part: int) -> str:
    """Return the trace id of a part, from 1. The parent_id is the task_id of a map, or empty for the run."""
    name = f"{run_id}/{parent_id}/part/{part}".encode("utf-8", "surrogatepass")
    found = sha256(name).hexdigest()
    return found[:32] if _TRACE_ID.match(found[:32]) else found[32:]


def part_id(parent_id: str) -> str:
    """Return the id of the roots of parts instead of a task_id. The attempt is the number of the part."""
    return f"part:{parent_id}"


class SpanLocation(NamedTuple):
    """Trace and parent of a span."""

    trace_id: str
    parent_span_id: str


@lru_cache(maxsize=1024)
def _location(run_id: str, trace_id: str, parent_id: str, part: int) -> SpanLocation:
    if not part:
        return SpanLocation(trace_id, span_id(run_id, parent_id))
    return SpanLocation(part_trace_id(run_id, parent_id, part), span_id(run_id, part_id(parent_id), part))


@dataclass(frozen=True, slots=True)
class SpanRef:
    """A span of this or another process, with the trace flags and the tracestate of W3C Trace Context."""

    trace_id: str
    span_id: str
    flags: int = SAMPLED
    tracestate: str = ""

    @property
    def traceparent(self) -> str:
        """The `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


@dataclass(frozen=True, slots=True)
class RunTrace:
    """The trace of a run, its parent in that trace, if any, and the spans to which the run links.

    Spans in the trace `trace_id` have the `tracestate`. `parts` assigns the children of the run to parts.
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
        """Id of the span of the run."""
        return span_id(self.run_id)

    def location_of(self, task_id: str, map_id: str | None = None) -> SpanLocation:
        """Return the location of the span of a task, or of an item of the map `map_id`.

        It is constant from the start of the task on. Before the start, and after the end of an item, it is in part 0.
        """
        child = self.parts.child(task_id)
        if child is not None:
            return self.location_in(child.part)
        return self._location(0 if map_id else self.parts.number_of(task_id), map_id)

    def location_in(self, part: Part) -> SpanLocation:
        """Return the location of the spans of the children of a part."""
        location: SpanLocation | None = part.location
        if location is None:
            location = part.location = self._location(part.number, part.parent.id or None)
        return location

    def _location(self, part: int, map_id: str | None) -> SpanLocation:
        if map_id is None:
            return _location(self.run_id, self.trace_id, RUN, part)
        return _location(self.run_id, self.trace_id if part else self.location_of(map_id).trace_id, map_id, part)

    def tracestate_in(self, trace_id: str) -> str:
        """Return the tracestate of the spans of the run in a trace. It is empty in the trace of a part."""
        return self.tracestate if trace_id == self.trace_id else ""

    def ref(self, trace_id: str, span_id: str) -> SpanRef:
        """Return a reference to a span of the run in a trace."""
        return SpanRef(trace_id, span_id, self.flags, self.tracestate_in(trace_id))

    def span_of(self, task_id: str, attempt: int = 0) -> SpanRef:
        """Return a reference to the span of a task, which is not an item of a map."""
        return self.ref(self.location_of(task_id).trace_id, span_id(self.run_id, task_id, attempt))

    def part_root(self, parent_id: str, part: int) -> SpanRef:
        """Return a reference to the root of a part of a map, or of the run for an empty id."""
        location = _location(self.run_id, self.trace_id, parent_id, part)
        return self.ref(location.trace_id, location.parent_span_id)


def place_run(run_id: str, parent: SpanRef | None = None, mode: str = "join") -> RunTrace:
    """Return the trace of a run.

    Args:
        run_id: Id of the run.
        parent: Span of the caller, if any.
        mode: "join" for the trace of the parent, "link" for a separate trace with a link to the parent, "none" for a
            separate trace.
    """
    if parent is None or mode == "none":
        return RunTrace(run_id, trace_id(run_id))
    if mode == "link":
        return RunTrace(run_id, trace_id(run_id), links=(parent,))
    flags = parent.flags & _KNOWN_FLAGS
    return RunTrace(run_id, parent.trace_id, parent.span_id, flags, tracestate=parent.tracestate)


def parse_traceparent(value: str | None, tracestate: str | None = None) -> SpanRef | None:
    """Parse the headers `traceparent` and `tracestate`. Return None without a valid `traceparent` (W3C Trace Context, 3.2)."""
    match = _TRACEPARENT.match((value or "").strip())
    if match is None:
        return None
    version, trace, span, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
        return None
    return SpanRef(trace, span, int(flags, 16), parse_tracestate(tracestate))


@lru_cache(maxsize=256)
def parse_tracestate(value: str | None) -> str:
    """Return a `tracestate` header without empty members and spaces, or "" if it is invalid (W3C Trace Context, 3.3)."""
    if not value or len(value) > MAX_TRACESTATE:
        return ""
    members = [member for each in value.split(",") if (member := each.strip(" \t"))]
    matches = [match for member in members if (match := _MEMBER.fullmatch(member))]
    keys = {match.group(1) for match in matches}
    is_valid = len(keys) == len(members) <= MAX_TRACESTATE_MEMBERS
    return ",".join(members) if is_valid else ""
