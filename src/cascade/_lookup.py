"""Names of `cascade` that are imported on first use: its own, connectors of an extra, and those of providers."""

from importlib import import_module, metadata
from typing import Any

from cascade._lazy import load

_HOMES = {
    "_inputs": ("Env", "Param"),
    "_run": ("run", "run_async"),
    "adapters.executors.local": ("LocalExecutor",),
    "adapters.solvers.native": ("NativeSolver",),
    "connectors.fanout": ("FanoutConnector",),
    "connectors.memory": ("MemoryConnector",),
    "context": ("get_current_context",),
    "graph.serialize": ("from_json", "to_json"),
    "runtime.bus": ("MessageBus",),
    "runtime.engine": ("Engine",),
    "runtime.exceptions": ("DependencyMissingError",),
    "runtime.log_records": ("CorrelationFilter", "JsonFormatter"),
    "runtime.overrides": ("override_resource",),
    "runtime.protocols": ("Connector",),
    "runtime.subscribers": ("HumanReadableLogSubscriber", "TelemetrySubscriber"),
    "runtime.task_context": ("current_task",),
    "spec.constraint": ("with_constraints",),
    "spec.input": ("EnvSpec", "ParamSpec"),
    "spec.lazy_types": ("LazyResult",),
    "spec.resource": ("inject", "resource"),
    "spec.routing": ("Router",),
    "spec.task": ("task",),
    "telemetry.rules": ("redact",),
    "tools.cli": ("cli",),
    "tools.preview": ("dry_run",),
    "tools.visualize": ("visualize",),
    "connectors.mqtt": ("MqttConnector",),
    "connectors.otel": ("OtelConnector",),
}
_PACKAGES = frozenset(
    {
        "adapters",
        "connectors",
        "context",
        "graph",
        "messaging",
        "providers",
        "runtime",
        "spec",
        "telemetry",
        "testing",
        "tools",
    }
)


def lookup(name: str) -> Any:
    """An object by its name: of the public API, a connector's class, or of a provider.

    Raises:
        AttributeError: There is no such name.
        ImportError: The connector's extra is not installed.
    """
    if name in _PACKAGES:
        return import_module(f"cascade.{name}")
    if name == "__version__":
        return metadata.version("cascade-runs")
    # A private name, or a name of this package, is never looked up among the providers.
    if name.startswith("_") or any(name in names for names in _HOMES.values()):
        return load("cascade", name, _HOMES)
    from cascade.providers.registry import ProviderRegistry

    try:
        return ProviderRegistry.instance().get(name)
    except AttributeError:
        raise AttributeError(f"module 'cascade' has no attribute '{name}'") from None
