"""The same graph in other engines. Each function takes a graph and returns what runs it once, in this process."""

import asyncio
import inspect
import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks._graphs import Needs


def hamilton(needs: Needs) -> Callable[[], Any]:
    driver, ad_hoc = import_module("hamilton.driver"), import_module("hamilton.ad_hoc_utils")
    functions = [_named(f"step_{step}", [f"step_{one}" for one in wanted]) for step, wanted in enumerate(needs)]
    built = driver.Builder().with_modules(ad_hoc.create_temporary_module(*functions, module_name="graph")).build()
    return lambda: built.execute([f"step_{len(needs) - 1}"])


def _named(name: str, parameters: list[str]) -> Callable[..., int]:
    """Hamilton knows a step, and what it needs, by the names of a function and of its parameters."""

    def function(**_values: int) -> int:
        return 0

    function.__name__ = function.__qualname__ = name
    function.__annotations__ = {**dict.fromkeys(parameters, int), "return": int}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = [inspect.Parameter(parameter, kind, annotation=int) for parameter in parameters]
    function.__signature__ = inspect.Signature(signature, return_annotation=int)  # type: ignore[attr-defined]
    return function


def celery(needs: Needs) -> Callable[[], Any]:
    """Eager: each step is applied once what it needs has its result."""
    app = import_module("celery").Celery("bench")
    app.conf.task_always_eager = True
    noop = app.task(_noop, name="noop")

    def run() -> Any:
        values: list[Any] = []
        for wanted in needs:
            values.append(noop.delay(*[values[one] for one in wanted]).get())
        return values[-1]

    return run


def dask(needs: Needs) -> Callable[[], Any]:
    delayed = import_module("dask").delayed(_noop, pure=False)
    steps: list[Any] = []
    for wanted in needs[:-1]:
        steps.append(delayed(*[steps[one] for one in wanted]))
    target = delayed([steps[one] for one in needs[-1]])
    return lambda: target.compute(scheduler="synchronous")


def prefect(needs: Needs) -> Callable[[], Any]:
    """With the server that it starts for a script by itself, and its home in a directory that is thrown away."""
    os.environ |= {"PREFECT_HOME": tempfile.mkdtemp(), "PREFECT_LOGGING_LEVEL": "ERROR"}
    module = import_module("prefect")
    noop = module.task(_noop)

    @module.flow  # type: ignore[untyped-decorator]
    def workflow() -> Any:
        futures: list[Any] = []
        for wanted in needs[:-1]:
            futures.append(noop.submit(*[futures[one] for one in wanted]))
        return noop.submit([futures[one] for one in needs[-1]]).result()

    run: Callable[[], Any] = workflow
    return run


def dagster(needs: Needs) -> Callable[[], Any]:
    module = import_module("dagster")
    names = sorted({len(wanted) for wanted in needs[:-1]})
    steps = {count: _dagster_step(module, count) for count in names}
    collect = module.op(name="collect", ins={"values": module.In(list)})(_collect)

    @module.job  # type: ignore[untyped-decorator]
    def workflow() -> None:
        outputs: list[Any] = []
        for number, wanted in enumerate(needs[:-1]):
            outputs.append(steps[len(wanted)].alias(f"step_{number}")(*[outputs[one] for one in wanted]))
        collect([outputs[one] for one in needs[-1]])

    quiet = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
    return lambda: workflow.execute_in_process(run_config=quiet)


def _dagster_step(module: Any, inputs: int) -> Any:
    names = [f"value_{number}" for number in range(inputs)]

    def step(**_values: Any) -> int:
        return 0

    return module.op(name=f"step_of_{inputs}", ins={name: module.In(int) for name in names})(step)


def dbos(needs: Needs) -> Callable[[], Any]:
    """Steps of one workflow, each started once what it needs is there; its sqlite is thrown away."""
    module = import_module("dbos")
    path = Path(tempfile.mkdtemp()) / "bench.sqlite"
    module.DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{path}", "log_level": "ERROR"})

    @module.DBOS.step()  # type: ignore[untyped-decorator]
    async def noop(_values: list[Any]) -> int:
        return 0

    @module.DBOS.workflow()  # type: ignore[untyped-decorator]
    async def workflow() -> Any:
        values: list[Any] = []
        for layer in _layers(needs):
            values += await asyncio.gather(*[noop([values[one] for one in needs[step]]) for step in layer])
        return values[-1]

    module.DBOS.launch()
    return lambda: asyncio.run(workflow())


def _layers(needs: Needs) -> list[list[int]]:
    """Runs of neighbouring steps that do not need each other."""
    layers: list[list[int]] = []
    for step, wanted in enumerate(needs):
        if layers and all(one < layers[-1][0] for one in wanted):
            layers[-1].append(step)
        else:
            layers.append([step])
    return layers


def _noop(*_values: Any) -> int:
    return 0


def _collect(values: list[Any]) -> int:
    return len(values)


PEERS: dict[str, Callable[[Needs], Callable[[], Any]]] = {
    "hamilton": hamilton,
    "celery": celery,
    "dask": dask,
    "prefect": prefect,
    "dagster": dagster,
    "dbos": dbos,
}
