"""What is between a run's events and its messages: the run's memory, and messages that still lack their header."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cascade.spec import telemetry as wire
from cascade.telemetry.identity import Place, RunTrace
from cascade.telemetry.parts import TraceParts


@dataclass(slots=True)
class RunState:
    """What the subscriber must remember of a run between its messages."""

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
    control: list[dict[str, Any]] = field(default_factory=list)
    control_count: int = 0

    def __post_init__(self) -> None:
        self.trace.parts.activate()

    @property
    def parts(self) -> TraceParts:
        """The parts of the run's trace."""
        return self.trace.parts

    @property
    def run_id(self) -> str:
        return self.trace.run_id

    @property
    def place(self) -> Place:
        """Where the run's own span stands."""
        return Place(self.trace.trace_id, self.trace.parent_span_id)


class Draft(NamedTuple):
    """A message but for its header: the span it belongs to, by task_id, and where that one stands."""

    body: wire.Body
    task_id: str
    place: Place
    terminal: bool = False
