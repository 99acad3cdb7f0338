"""How a workflow runs. Names are imported when they are first used: a connector needs little of all this."""

from typing import TYPE_CHECKING, Any

from cascade._lazy import load

if TYPE_CHECKING:
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

_HOMES = {
    "bus": ("MessageBus",),
    "engine": ("Engine",),
    "events": ("Event",),
    "exceptions": ("DependencyMissingError",),
    "protocols": ("CachePolicy", "ExecutionPlan", "Executor", "Solver"),
    "resource_manager": ("ResourceManager",),
    "subscribers": ("HumanReadableLogSubscriber", "TelemetrySubscriber"),
}


def __getattr__(name: str) -> Any:
    found = globals()[name] = load(__name__, name, _HOMES)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
