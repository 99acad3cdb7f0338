import subprocess
import sys
from importlib import import_module, metadata
from types import ModuleType

import pytest

import cascade
import cascade.runtime
import cascade.testing
from tests.lab.extras import needs


def visible(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name != "Any"
        and not (isinstance(value, ModuleType) and name not in module.__all__)
    }


def test_all_is_what_is_visible() -> None:
    for module in (cascade, cascade.runtime):
        for name in module.__all__:
            getattr(module, name)
    assert visible(cascade) - {"TYPE_CHECKING"} == set(cascade.__all__)
    assert set(cascade.__all__) <= set(dir(cascade))
    assert set(cascade.runtime.__all__) <= visible(cascade.runtime) & set(dir(cascade.runtime))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = cascade.runtime.nonsense  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    assert cascade.__all__ == sorted(cascade.__all__)


@pytest.mark.parametrize("module", [cascade, pytest.param(cascade.testing, marks=needs("otel"))])
def test_every_name_of_all_is_there(module: ModuleType) -> None:
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_submodules_are_attributes() -> None:
    assert cascade.runtime.MessageBus is cascade.MessageBus
    assert cascade.graph.model.EdgeType.DATA


PROMISED = {
    "cascade": """task Param Env run run_async dry_run visualize cli to_json from_json with_constraints LazyResult Router
        resource inject override_resource get_current_context Engine MessageBus NativeSolver LocalExecutor Connector
        HumanReadableLogSubscriber TelemetrySubscriber DependencyMissingError ParamSpec EnvSpec
        shell subflow __version__ testing""",
    "cascade.context": "WorkflowContext get_current_context",
    "cascade.spec.task": "Task LazyResult MappedLazyResult RetryPolicy task",
    "cascade.spec.lazy_types": "LazyResult MappedLazyResult RetryPolicy",
    "cascade.spec.common": "Param",
    "cascade.spec.input": "InputSpec ParamSpec EnvSpec",
    "cascade.spec.constraint": "ResourceConstraint with_constraints",
    "cascade.spec.resource": "resource inject Inject ResourceDefinition",
    "cascade.spec.routing": "Router",
    "cascade.spec.telemetry": "Header LifecycleEvent TaskStateEvent ResourceEvent ControlEvent",
    "cascade.spec.protocols": "Connector",
    "cascade.graph.model": "EdgeType Node Edge Graph",
    "cascade.graph.build": "build_graph",
    "cascade.graph.serialize": "to_json from_json graph_to_dict graph_from_dict",
    "cascade.runtime": """MessageBus Engine HumanReadableLogSubscriber TelemetrySubscriber Event DependencyMissingError
        ResourceManager ExecutionPlan Solver Executor CachePolicy""",
    "cascade.runtime.events": """Event RunStarted RunFinished TaskEvent TaskExecutionStarted TaskExecutionFinished
        TaskSkipped TaskRetrying ResourceEvent ResourceAcquired ResourceReleased""",
    "cascade.runtime.bus": "MessageBus",
    "cascade.runtime.engine": "Engine",
    "cascade.runtime.flow": "FlowManager",
    "cascade.runtime.resource_manager": "ResourceManager",
    "cascade.runtime.exceptions": "CascadeRuntimeError DependencyMissingError",
    "cascade.runtime.protocols": """ExecutionPlan Solver Executor CacheBackend CachePolicy StateBackend LazyFactory
        Connector""",
    "cascade.runtime.subscribers": "HumanReadableLogSubscriber TelemetrySubscriber",
    "cascade.messaging.bus": "MessageStore MessageBus bus",
    "cascade.messaging.renderer": "CliRenderer JsonRenderer",
    "cascade.adapters.executors.local": "LocalExecutor",
    "cascade.adapters.solvers.native": "NativeSolver",
    "cascade.adapters.state": "InMemoryStateBackend",
    "cascade.adapters.cache.in_memory": "InMemoryCacheBackend",
    "cascade.adapters.caching": "FileExistenceCache",
    "cascade.adapters.caching.file_existence": "FileExistenceCache",
    "cascade.tools.preview": "dry_run _analyze_plan DryRunConsoleSubscriber",
    "cascade.tools.events": "PlanAnalysisStarted PlanNodeInspected PlanAnalysisFinished",
    "cascade.tools.visualize": "visualize",
    "cascade.tools.cli": "cli",
    "cascade.providers": "registry ProviderNamespace ProviderRegistry",
    "cascade.providers.registry": "ProviderRegistry ProviderNamespace get register",
    "cascade.testing": "override_resource record_run ConnectorConformance MemoryConnector",
    "cascade.connectors.memory": "MemoryConnector",
}


WITH_EXTRAS = {
    "cascade": "OtelConnector MqttConnector",
    "cascade.connectors.otel": "OtelConnector",
    "cascade.connectors.mqtt": "MqttConnector",
    "cascade.testing": "OtlpReceiver",
}
CASES = [
    *(pytest.param(*case, id=case[0]) for case in PROMISED.items()),
    *(pytest.param(*case, id=f"{case[0]} with extras", marks=needs("otel", "mqtt")) for case in WITH_EXTRAS.items()),
]


@pytest.mark.parametrize(("module", "names"), CASES)
def test_every_promised_name_can_be_imported(module: str, names: str) -> None:
    found = import_module(module)
    assert [name for name in names.split() if not hasattr(found, name)] == []


def test_every_promised_name_is_an_attribute_in_a_fresh_process() -> None:
    names = [f"{module}.{name}" for module, named in PROMISED.items() for name in named.split()]
    code = f"""
import operator, cascade
for name in {names!r}:
    operator.attrgetter(name.removeprefix("cascade."))(cascade)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_that_of_the_distribution() -> None:
    assert cascade.__version__ == metadata.version("cascade-runs")


def test_the_registry_of_providers_is_a_module() -> None:
    assert cascade.providers.registry.get("shell") is cascade.shell
    with pytest.raises(AttributeError, match="no provider 'nonsense'"):
        cascade.providers.registry.get("nonsense")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match=r"^module 'cascade' has no attribute 'nonsense'$"):
        _ = cascade.nonsense  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="nonsense"):
        _ = cascade.spec.nonsense  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="nonsense"):
        _ = cascade.testing.nonsense  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


@needs("otel")
def test_connectors_are_found_on_first_use() -> None:
    assert cascade.OtelConnector.__name__ == "OtelConnector"


def test_importing_cascade_imports_no_optional_library() -> None:
    code = """
import sys, cascade, cascade.testing
heavy = {"opentelemetry", "grpc", "google", "typer", "requests", "rich", "urllib3", "aiomqtt", "paho"}
sys.exit(", ".join(sorted(heavy & {name.partition(".")[0] for name in sys.modules})) or 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
