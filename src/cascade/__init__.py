"""Workflows of plain functions: every run is an OpenTelemetry trace, live on MQTT.

A name is imported on its first use, so that a module that only defines tasks imports a small part of the package.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from cascade import _imports

if TYPE_CHECKING:
    from cascade import (
        adapters,
        connectors,
        context,
        graph,
        messaging,
        providers,
        runtime,
        spec,
        telemetry,
        testing,
        tools,
    )
    from cascade._run import execute, execute_async, run, run_async
    from cascade._run.result import RunResult
    from cascade.adapters.caching.disk import DiskCache
    from cascade.adapters.executors.local import LocalExecutor
    from cascade.adapters.solvers.native import NativeSolver
    from cascade.connectors.console import ConsoleConnector as ConsoleConnector
    from cascade.connectors.fanout import FanoutConnector
    from cascade.connectors.memory import MemoryConnector
    from cascade.connectors.mqtt import MqttConnector as MqttConnector
    from cascade.connectors.otel import OtelConnector as OtelConnector
    from cascade.context import Env, Param, get_current_context
    from cascade.graph.serialize import from_json, to_json
    from cascade.providers.shell import shell as shell
    from cascade.providers.subflow import subflow as subflow
    from cascade.runtime.bus import MessageBus
    from cascade.runtime.engine import Engine, override_resource
    from cascade.runtime.exceptions import DependencyMissingError
    from cascade.runtime.log_records import CorrelationFilter, JsonFormatter, get_logger
    from cascade.runtime.protocols import Connector
    from cascade.runtime.subscribers import HumanReadableLogSubscriber, TelemetrySubscriber
    from cascade.runtime.task_context import current_task
    from cascade.spec.constraint import with_constraints
    from cascade.spec.failure import Failure
    from cascade.spec.input import EnvSpec, ParamSpec
    from cascade.spec.lazy_types import LazyResult
    from cascade.spec.resource import inject, resource
    from cascade.spec.routing import Router
    from cascade.spec.task import task
    from cascade.spec.unmapped import unmapped
    from cascade.telemetry.redact import redact
    from cascade.tools.cli import cli
    from cascade.tools.preview import dry_run
    from cascade.tools.visualize import visualize

    __version__: str
    """Version of the distribution `cascade-runs`."""

__all__ = [
    "Connector",
    "CorrelationFilter",
    "DependencyMissingError",
    "DiskCache",
    "Engine",
    "Env",
    "EnvSpec",
    "Failure",
    "FanoutConnector",
    "HumanReadableLogSubscriber",
    "JsonFormatter",
    "LazyResult",
    "LocalExecutor",
    "MemoryConnector",
    "MessageBus",
    "NativeSolver",
    "Param",
    "ParamSpec",
    "Router",
    "RunResult",
    "TelemetrySubscriber",
    "adapters",
    "cli",
    "connectors",
    "context",
    "current_task",
    "dry_run",
    "execute",
    "execute_async",
    "from_json",
    "get_current_context",
    "get_logger",
    "graph",
    "inject",
    "messaging",
    "override_resource",
    "providers",
    "redact",
    "resource",
    "run",
    "run_async",
    "runtime",
    "spec",
    "task",
    "telemetry",
    "testing",
    "to_json",
    "tools",
    "unmapped",
    "visualize",
    "with_constraints",
]

_EXPORTS = {
    "_run": ("execute", "execute_async", "run", "run_async"),
    "_run.result": ("RunResult",),
    "adapters.caching.disk": ("DiskCache",),
    "adapters.executors.local": ("LocalExecutor",),
    "adapters.solvers.native": ("NativeSolver",),
    "connectors.fanout": ("FanoutConnector",),
    "connectors.memory": ("MemoryConnector",),
    "context": ("Env", "Param", "get_current_context"),
    "graph.serialize": ("from_json", "to_json"),
    "runtime.bus": ("MessageBus",),
    "runtime.engine": ("Engine", "override_resource"),
    "runtime.exceptions": ("DependencyMissingError",),
    "runtime.log_records": ("CorrelationFilter", "JsonFormatter", "get_logger"),
    "runtime.protocols": ("Connector",),
    "runtime.subscribers": ("HumanReadableLogSubscriber", "TelemetrySubscriber"),
    "runtime.task_context": ("current_task",),
    "spec.constraint": ("with_constraints",),
    "spec.failure": ("Failure",),
    "spec.input": ("EnvSpec", "ParamSpec"),
    "spec.lazy_types": ("LazyResult",),
    "spec.resource": ("inject", "resource"),
    "spec.routing": ("Router",),
    "spec.task": ("task",),
    "spec.unmapped": ("unmapped",),
    "telemetry.redact": ("redact",),
    "tools.cli": ("cli",),
    "tools.preview": ("dry_run",),
    "tools.visualize": ("visualize",),
    "connectors.console": ("ConsoleConnector",),
    "connectors.mqtt": ("MqttConnector",),
    "connectors.otel": ("OtelConnector",),
}


if not TYPE_CHECKING:  # type checkers accept any name of a module with __getattr__

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return _version("cascade-runs")
        # Providers are not searched for private names and for names of this package.
        if name.startswith("_") or name in __all__ or any(name in names for names in _EXPORTS.values()):
            found = _imports.load("cascade", name, _EXPORTS)
            if name in __all__:
                globals()[name] = found
            return found
        from cascade.providers.registry import ProviderRegistry

        try:
            return ProviderRegistry.instance().get(name)
        except AttributeError:
            raise AttributeError(f"module 'cascade' has no attribute '{name}'") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
