"""The engine that runs workflows. Names are imported on first use, because a connector needs few of these modules."""

from typing import TYPE_CHECKING, Any

from cascade._imports import load

if TYPE_CHECKING:
    from cascade.runtime import bus as bus
    from cascade.runtime import control as control
    from cascade.runtime import engine as engine
    from cascade.runtime import events as events
    from cascade.runtime import exceptions as exceptions
    from cascade.runtime import flow as flow
    from cascade.runtime import log_records as log_records
    from cascade.runtime import protocols as protocols
    from cascade.runtime import publish_queue as publish_queue
    from cascade.runtime import resolvers as resolvers
    from cascade.runtime import resource_manager as resource_manager
    from cascade.runtime import state as state
    from cascade.runtime import subscribers as subscribers
    from cascade.runtime import task_context as task_context
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

_EXPORTS = {
    "bus": ("MessageBus",),
    "engine": ("Engine",),
    "events": ("Event",),
    "exceptions": ("DependencyMissingError",),
    "protocols": ("CachePolicy", "ExecutionPlan", "Executor", "Solver"),
    "resource_manager": ("ResourceManager",),
    "subscribers": ("HumanReadableLogSubscriber", "TelemetrySubscriber"),
}


if not TYPE_CHECKING:  # a checker would accept every name of a module that has __getattr__

    def __getattr__(name: str) -> Any:
        found = globals()[name] = load(__name__, name, _EXPORTS)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
