"""How a workflow runs. Names are imported when they are first used: a connector needs little of all this."""

from typing import TYPE_CHECKING, Any

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
    "CachePolicy": "protocols",
    "DependencyMissingError": "exceptions",
    "Engine": "engine",
    "Event": "events",
    "ExecutionPlan": "protocols",
    "Executor": "protocols",
    "HumanReadableLogSubscriber": "subscribers",
    "MessageBus": "bus",
    "ResourceManager": "resource_manager",
    "Solver": "protocols",
    "TelemetrySubscriber": "subscribers",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
