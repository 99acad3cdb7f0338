"""The same graph in other engines. Each function prepares a graph and returns a function that runs it in this process."""

import asyncio
import inspect
import os
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks._graphs import Graph


def hamilton(graph: Graph, *, is_traced: bool = False) -> Callable[[], Any]:
    driver, ad_hoc = import_module("hamilton.driver"), import_module("hamilton.ad_hoc_utils")
    functions = [_named(f"step_{step}", [f"step_{one}" for one in inputs]) for step, inputs in enumerate(graph)]
    builder = driver.Builder().with_modules(ad_hoc.create_temporary_module(*functions, module_name="graph"))
    if is_traced:
        builder = builder.with_adapters(import_module("hamilton.plugins.h_opentelemetry").OpenTelemetryTracer())
    built = builder.build()
    return lambda: built.execute([f"step_{len(graph) - 1}"])


def _named(name: str, parameters: list[str]) -> Callable[..., int]:
    """Return a step of Hamilton, which finds inputs by the names of parameters."""

    def function(**_values: int) -> int:
        return 0

    function.__name__ = function.__qualname__ = name
    function.__annotations__ = {**dict.fromkeys(parameters, int), "return": int}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = [inspect.Parameter(parameter, kind, annotation=int) for parameter in parameters]
    function.__signature__ = inspect.Signature(signature, return_annotation=int)  # type: ignore[attr-defined]
    return function


def celery(graph: Graph) -> Callable[[], Any]:
    """Eager mode: each step is applied when its inputs have their results."""
    app = import_module("celery").Celery("bench")
    app.conf.task_always_eager = True
    noop = app.task(_noop, name="noop")

    def run() -> Any:
        values: list[Any] = []
        for inputs in graph:
            values.append(noop.delay(*[values[one] for one in inputs]).get())
        return values[-1]

    return run


def dask(graph: Graph) -> Callable[[], Any]:
    delayed = import_module("dask").delayed(_noop, pure=False)
    steps: list[Any] = []
    for inputs in graph[:-1]:
        steps.append(delayed(*[steps[one] for one in inputs]))
    target = delayed([steps[one] for one in graph[-1]])
    return lambda: target.compute(scheduler="synchronous")


def prefect(graph: Graph, *, is_traced: bool = False) -> Callable[[], Any]:
    """With the server that Prefect starts for a script, and a temporary home directory."""
    os.environ |= {
        "PREFECT_HOME": tempfile.mkdtemp(),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": str(is_traced),
    }
    module = import_module("prefect")
    noop = module.task(_noop)

    @module.flow  # type: ignore[untyped-decorator]
    def workflow() -> Any:
        futures: list[Any] = []
        for inputs in graph[:-1]:
            futures.append(noop.submit(*[futures[one] for one in inputs]))
        return noop.submit([futures[one] for one in graph[-1]]).result()

    run: Callable[[], Any] = workflow
    return run


def dagster(graph: Graph) -> Callable[[], Any]:
    module = import_module("dagster")
    names = sorted({len(inputs) for inputs in graph[:-1]})
    steps = {count: _dagster_step(module, count) for count in names}
    collect = module.op(name="collect", ins={"values": module.In(list)})(_collect)

    @module.job  # type: ignore[untyped-decorator]
    def workflow() -> None:
        outputs: list[Any] = []
        for number, inputs in enumerate(graph[:-1]):
            outputs.append(steps[len(inputs)].alias(f"step_{number}")(*[outputs[one] for one in inputs]))
        collect([outputs[one] for one in graph[-1]])

    quiet = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
    return lambda: workflow.execute_in_process(run_config=quiet)


def _dagster_step(module: Any, inputs: int) -> Any:
    names = [f"value_{number}" for number in range(inputs)]

    def step(**_values: Any) -> int:
        return 0

    return module.op(name=f"step_of_{inputs}", ins={name: module.In(int) for name in names})(step)


def dbos(graph: Graph, *, is_traced: bool = False) -> Callable[[], Any]:
    """Steps of one workflow, with a temporary SQLite database. Each step starts when its inputs are available."""
    module = import_module("dbos")
    database = f"sqlite:///{tempfile.mkdtemp()}/bench.sqlite"
    options = {"name": "bench", "system_database_url": database, "log_level": "ERROR", "enable_otlp": is_traced}
    module.DBOS(config=options)

    @module.DBOS.step()  # type: ignore[untyped-decorator]
    async def noop(_values: list[Any]) -> int:
        return 0

    @module.DBOS.workflow()  # type: ignore[untyped-decorator]
    async def workflow() -> Any:
        values: list[Any] = []
        for layer in _layers(graph):
            values += await asyncio.gather(*[noop([values[one] for one in graph[step]]) for step in layer])
        return values[-1]

    module.DBOS.launch()
    return lambda: asyncio.run(workflow())


def taskiq(graph: Graph, *, is_traced: bool = False) -> Callable[[], Any]:
    """With the broker in memory. Each step is sent when its inputs are available."""
    broker = import_module("taskiq").InMemoryBroker()
    if is_traced:
        broker = broker.with_middlewares(
            import_module("taskiq.middlewares.opentelemetry_middleware").OpenTelemetryMiddleware()
        )

    @broker.task(task_name="noop")  # type: ignore[untyped-decorator]
    async def noop(_values: list[Any]) -> int:
        return 0

    async def result(values: list[Any]) -> Any:
        sent = await noop.kiq(values)
        return (await sent.wait_result(check_interval=0)).return_value

    async def workflow() -> Any:
        values: list[Any] = []
        for layer in _layers(graph):
            values += await asyncio.gather(*[result([values[one] for one in graph[step]]) for step in layer])
        return values[-1]

    return lambda: asyncio.run(workflow())


def _layers(graph: Graph) -> list[list[int]]:
    """Split the steps into sequences whose steps are independent of each other."""
    layers: list[list[int]] = []
    for step, inputs in enumerate(graph):
        if layers and all(one < layers[-1][0] for one in inputs):
            layers[-1].append(step)
        else:
            layers.append([step])
    return layers


def _noop(*_values: Any) -> int:
    return 0


def _collect(values: list[Any]) -> int:
    return len(values)


Prepare = Callable[[Graph], Callable[[], Any]]

PACKAGES = {"hamilton": "apache-hamilton"}
"""The packages of engines whose module has another name."""

ENGINES: dict[str, Prepare] = {
    "hamilton": hamilton,
    "celery": celery,
    "dask": dask,
    "prefect": prefect,
    "dagster": dagster,
    "dbos": dbos,
    "taskiq": taskiq,
}

TRACED: dict[str, Prepare] = {
    name: partial(engine, is_traced=True)
    for name, engine in {"hamilton": hamilton, "prefect": prefect, "dbos": dbos, "taskiq": taskiq}.items()
}
"""Engines with tracing of their own. They use the global tracer provider. Celery, Dask and Dagster have none."""
