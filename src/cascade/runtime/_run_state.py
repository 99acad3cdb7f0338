"""State of one run inside the subscriber, and a message without its header."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cascade.spec import telemetry as wire
from cascade.spec.metadata import Decision
from cascade.telemetry.identity import RunTrace, SpanLocation
from cascade.telemetry.trace_shards import TraceShards


@dataclass(slots=True)
class RunState:
    """State of one run inside the subscriber."""

    trace: RunTrace
    capture: frozenset[str] = frozenset()
    topic: str = ""
    target: str = ""
    inputs: list[str] = field(default_factory=list)
    params: Any = None
    counts: Counter[str] = field(default_factory=Counter)
    head: dict[str, Any] = field(default_factory=dict)
    seq: int = 0
    last_ns: int = 0
    lost: int = 0
    control: list[Decision] = field(default_factory=list)
    control_count: int = 0

    def __post_init__(self) -> None:
        self.trace.parts.activate()

    @property
    def parts(self) -> TraceShards:
        """The parts of the run's trace."""
        return self.trace.parts

    @property
    def run_id(self) -> str:
        return self.trace.run_id

    @property
    def location(self) -> SpanLocation:
        """Trace and parent of the run's span."""
        return SpanLocation(self.trace.trace_id, self.trace.parent_span_id)


class UnstampedMessage(NamedTuple):
    """A message without its header. `task_id` and `location` identify its span and the parent of its span."""

    body: wire.Body
    task_id: str
    location: SpanLocation
    terminal: bool = False
