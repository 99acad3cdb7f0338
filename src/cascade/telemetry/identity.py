"""Trace and span ids that any process can compute from what it knows of a run (`docs/identity.md` has test vectors).

A run's trace id is its run_id's 128 bits. A span's id is the first 8 bytes of SHA-256 over
`{run_id}/{task_id}/{attempt}`. The run's own span has the empty task_id; what is no task has a task_id of its own:
`run.started`, `resource:{name}`, `wait:{task_id}` (whose attempt is the wait's number), `{map_id}/{index}` for an item.
"""

import re
from dataclasses import dataclass
from hashlib import sha256

RUN = ""
RUN_STARTED = "run.started"
SAMPLED = 0x01

_ZERO_SPAN = "0" * 16
_TRACE_ID = re.compile(r"^(?!0{32})[0-9a-f]{32}$")
_TRACEPARENT = re.compile(r"^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$")


def trace_id(run_id: str) -> str:
    """The trace id of a run that joins no other trace: its UUID without dashes; a hash of any other run_id."""
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


def resource_id(name: str) -> str:
    return f"resource:{name}"


def wait_id(task_id: str) -> str:
    """What stands for a task's waits in place of its task_id; the attempt is then the wait's number, from 1."""
    return f"wait:{task_id}"


@dataclass(frozen=True, slots=True)
class SpanRef:
    """A span somewhere, in this process or in another; `flags` are W3C's trace flags."""

    trace_id: str
    span_id: str
    flags: int = SAMPLED

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


@dataclass(frozen=True, slots=True)
class RunTrace:
    """Where a run stands: its trace, the parent it joined (or none), the spans it links to."""

    run_id: str
    trace_id: str
    parent_span_id: str = ""
    flags: int = SAMPLED
    links: tuple[SpanRef, ...] = ()

    @property
    def span_id(self) -> str:
        """The run's own span."""
        return span_id(self.run_id)

    def span_of(self, task_id: str, attempt: int = 0) -> SpanRef:
        """The span of one of the run's tasks."""
        return SpanRef(self.trace_id, span_id(self.run_id, task_id, attempt), self.flags)


def place_run(run_id: str, parent: SpanRef | None = None, mode: str = "join") -> RunTrace:
    """Decide a run's trace: `join` the parent's, `link` to the parent from a trace of its own, or `none`."""
    if parent is None or mode == "none":
        return RunTrace(run_id, trace_id(run_id))
    if mode == "link":
        return RunTrace(run_id, trace_id(run_id), links=(parent,))
    return RunTrace(run_id, parent.trace_id, parent.span_id, parent.flags)


def parse_traceparent(value: str | None) -> SpanRef | None:
    """Read a `traceparent` header; None when there is none or it is not valid (W3C Trace Context, 3.2)."""
    match = _TRACEPARENT.match((value or "").strip())
    if match is None:
        return None
    version, trace, span, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
        return None
    return SpanRef(trace, span, int(flags, 16))
