"""How a workflow runs."""

from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.events import Event
from cascade.runtime.exceptions import DependencyMissingError
from cascade.runtime.protocols import CachePolicy, ExecutionPlan, Executor, Solver
from cascade.runtime.resource_manager import ResourceManager
from cascade.runtime.subscribers import HumanReadableLogSubscriber, TelemetrySubscriber

__all__ = [
    "CachePolicy",
    "DependencyMissingError",
    "Engine",
    "Event",
    "ExecutionPlan",
    "Executor",
    "HumanReadableLogSubscriber",
    "MessageBus",
    "ResourceManager",
    "Solver",
    "TelemetrySubscriber",
]
