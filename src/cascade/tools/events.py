"""Events of the analysis of a plan."""

from dataclasses import dataclass, field
from typing import Any

from cascade.runtime.events import Event


@dataclass(frozen=True)
class PlanAnalysisStarted(Event):
    target_node_id: str = ""


@dataclass(frozen=True)
class PlanNodeInspected(Event):
    """One node of the plan; `index` counts from 1. In `literal_inputs` the arguments with the name of a secret are masked."""

    index: int = 0
    total_nodes: int = 0
    node_id: str = ""
    node_name: str = ""
    literal_inputs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanAnalysisFinished(Event):
    total_steps: int = 0
