"""Names of `cascade` that are found on first use: its own, connectors of an extra, and what providers offer."""

from importlib import import_module
from typing import Any

_MODULES = {
    "cascade._inputs": ("Env", "Param"),
    "cascade._lookup": ("lookup",),
    "cascade._run": ("run", "run_async"),
    "cascade.adapters.executors.local": ("LocalExecutor",),
    "cascade.adapters.solvers.native": ("NativeSolver",),
    "cascade.connectors.fanout": ("FanoutConnector",),
    "cascade.connectors.memory": ("MemoryConnector",),
    "cascade.context": ("context", "get_current_context"),
    "cascade.graph.serialize": ("from_json", "to_json"),
    "cascade.runtime.bus": ("MessageBus",),
    "cascade.runtime.engine": ("Engine",),
    "cascade.runtime.exceptions": ("DependencyMissingError",),
    "cascade.runtime.log_records": ("CorrelationFilter", "JsonFormatter"),
    "cascade.runtime.overrides": ("override_resource",),
    "cascade.runtime.protocols": ("Connector",),
    "cascade.runtime.subscribers": ("HumanReadableLogSubscriber", "TelemetrySubscriber"),
    "cascade.runtime.task_context": ("current_task",),
    "cascade.spec.constraint": ("with_constraints",),
    "cascade.spec.input": ("EnvSpec", "ParamSpec"),
    "cascade.spec.lazy_types": ("LazyResult",),
    "cascade.spec.resource": ("inject", "resource"),
    "cascade.spec.routing": ("Router",),
    "cascade.spec.task": ("task",),
    "cascade.tools.cli": ("cli",),
    "cascade.tools.preview": ("dry_run",),
    "cascade.tools.visualize": ("visualize",),
    "cascade.connectors.otel": ("OtelConnector",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
_PACKAGES = frozenset(
    {"adapters", "connectors", "context", "graph", "messaging", "providers", "runtime", "spec", "telemetry", "tools"}
)


def lookup(name: str) -> Any:
    """A name of the public API, a connector's class, or what a provider of that name offers.

    Raises:
        AttributeError: Nothing is called so.
        ImportError: The connector's extra is not installed.
    """
    if name in _PACKAGES:
        return import_module(f"cascade.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name.startswith("_"):
        raise AttributeError(f"module 'cascade' has no attribute '{name}'")
    from cascade.providers.registry import ProviderRegistry

    try:
        return ProviderRegistry.instance().get(name)
    except AttributeError:
        raise AttributeError(f"module 'cascade' has no attribute '{name}'") from None
