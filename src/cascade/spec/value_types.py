"""Types of single values in messages, with the constraints that their JSON Schemas express."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

MAX_TRACESTATE = 8_192
"""Limit of the characters of a tracestate. Longer ones are ignored, as in the OpenTelemetry SDK. W3C requires at least 512."""


class Keywords(dict[str, Any]):
    """Keywords of JSON Schema for `Annotated`, for constraints that a Python type does not express."""


Count = Annotated[int, Keywords(minimum=0)]
Ordinal = Annotated[int, Keywords(minimum=1)]
Nanoseconds = Annotated[int, Keywords(minimum=0)]
Milliseconds = Annotated[float, Keywords(minimum=0)]
Seconds = Annotated[float, Keywords(minimum=0)]
TraceId = Annotated[str, Keywords(pattern="^[0-9a-f]{32}$")]
SpanId = Annotated[str, Keywords(pattern="^[0-9a-f]{16}$")]
TraceState = Annotated[str, Keywords(minLength=1, maxLength=MAX_TRACESTATE)]
NonEmpty = Annotated[str, Keywords(minLength=1)]


class StarvedThreads(TypedDict):
    """Worker threads that computed, but waited for the interpreter or for a processor most of the time."""

    slowdown: float
    """Duration of the tasks in relation to their CPU time."""
    threads: Ordinal
    """Largest number of threads that ran tasks at once."""
    cores: float
    """Mean number of processors that the process used meanwhile."""
    max_workers: Ordinal
    """Number of threads that is sufficient for the same work."""


class Part(TypedDict):
    """A separate trace with some children of a large run or map."""

    part: Ordinal
    """Number of the part."""
    trace_id: TraceId
    """Trace of the part."""
    span_id: SpanId
    """Root span of the part."""
    first: Count
    """Smallest number of its children: index of an item, or position of a task in the order of starts, from 0."""
    last: Count
    """Largest number of its children."""
    start_ns: Nanoseconds
    """Start of the first child."""
    end_ns: Nanoseconds
    """End of the last child."""


class ListedPart(Part):
    """A part in the last message of its run or map."""

    ended: NotRequired[Literal[True]]
    """Present if `ended_parts` of an earlier message contains the part."""
