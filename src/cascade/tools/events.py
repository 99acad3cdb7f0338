"""Events of the analysis of a plan."""

from dataclasses import dataclass, field
from typing import Any

from cascade.runtime.events import Event


@dataclass(frozen=True)
class PlanAnalysisStarted(Event):
    target_node_id: str = ""


@dataclass(frozen=True)
class PlanNodeInspected(Event):
    """One node of the plan. `index` starts at 1. Secret arguments are masked in `literal_inputs`.

    `details` has one text for each fact about the node: its input, its map, its decisions and its options.
    """

    index: int = 0
    total_nodes: int = 0
    node_id: str = ""
    node_name: str = ""
    literal_inputs: dict[str, Any] = field(default_factory=dict)
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanAnalysisFinished(Event):
    total_steps: int = 0
