"""Tests of the types of the public API. mypy and pyright check this file; it is never run.

A comment `type: ignore` is for mypy, `pyright: ignore` for pyright. Both checkers report an ignore without an error, so
each of them proves that the error is there.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, assert_type

import cascade as cs
from cascade.adapters.caching import FileExistenceCache
from cascade.graph.model import Graph
from cascade.runtime.engine import Engine
from cascade.spec.lazy_types import LazyResult, MappedLazyResult
from cascade.spec.task import Task

T = TypeVar("T")
P = ParamSpec("P")


@cs.task
def plain(x: int, *, y: str = "") -> float:
    return x / 2


@cs.task
async def asynchronous(x: int) -> str:
    return str(x)


@cs.task(name="other")
def named(x: int) -> list[int]:
    return [x]


@cs.task(label=lambda x: f"number {x}")
def labelled(x: int, *, y: str = "") -> float:
    return x / 2


def is_busy(error: Exception) -> bool:
    return "busy" in str(error)


@cs.task(
    name="fetch",
    retries=3,
    retry_delay=1.0,
    backoff=2.0,
    max_delay=60,
    jitter=0.1,
    retry_on=(ConnectionError, is_busy),
    timeout=30,
    cache=FileExistenceCache("out"),
    constraints={"cpu": 2, "gpu": cs.Param("gpus")},
    label=lambda x: f"number {x}",
    tags=["etl"],
    threaded=True,
)
def with_options(x: int, *, y: str = "") -> float:
    return x / 2


@cs.task(retries=3, retry_on=TimeoutError, cache=False, constraints=cs.with_constraints(cpu=1), tags={"a", "b"})
async def asynchronous_with_options(x: int) -> str:
    return str(x)


@cs.task
def total(
    numbers: Sequence[int],
    label: str,
    key: Callable[[int], int] | None = None,
    mode: Literal["sum", "mean"] = "sum",
    path: Path | None = None,
) -> int:
    return sum(numbers)


@cs.task
def first(items: Sequence[T]) -> T:
    return items[0]


class Order(Enum):
    NAME = "name"


class Store:
    @cs.task
    def add(self, x: int) -> int:
        return x


# Calls
assert_type(plain(1, y="a"), LazyResult[float])
assert_type(asynchronous(1), LazyResult[str])
assert_type(named(1), LazyResult[list[int]])
assert_type(named.map(x=[1, 2]), MappedLazyResult[list[int]])
assert_type(cs.task(named.func, name="again"), Task[..., Any])
assert_type(cs.task(dict), Task[..., dict[Any, Any]])

assert_type(first([1]), LazyResult[int])  # for mypy with the plugin
assert_type(Store().add(1), LazyResult[int])
cs.task(max)([1, 2])  # pyright: ignore[reportCallIssue]  # the first overload of max; mypy with the plugin has no error

Store().add("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
plain(1, 2)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
plain("wrong", nonsense=True)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
plain(1, y=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# A lazy result, a Router, an input or a resource is accepted for any type. The other arguments are checked.
choice = cs.Router(asynchronous(1), {"1": named(1), "2": named(2)})
some = cs.Param("some")
assert_type(plain(total([1], "a")), LazyResult[float])
assert_type(total(named(1), "a", some, some, path=some), LazyResult[int])
assert_type(total(choice, label="a"), LazyResult[int])
assert_type(total([1, plain(1)], label=cs.Param("label")), LazyResult[int])
assert_type(total(total.map(numbers=some), cs.Env("LABEL"), cs.inject("key")), LazyResult[int])

total(named(1))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
total(named(1), 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
total(named(1), "a", mode="median")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
total(named(1), "a", nonsense=named(1))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

# The value of a lazy result has the type of the parameter, with the plugin for mypy; see docs/types.md.
plain(asynchronous(1))  # type: ignore[arg-type]
total(named.map(x=named(1)), asynchronous(1))  # type: ignore[arg-type]

# Consequences that docs/types.md lists.
not_an_integer: int = named(1)
results = [plain(1), plain(2)]


@cs.task
def of_list(numbers: list[float]) -> float:
    return sum(numbers)


@cs.task
def of_none(nothing: None) -> None: ...


of_list(results)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
of_list([plain(1), plain(2)])
total(results, "a")
of_none(plain(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
cs.task(lambda *args: args[0] + 1)  # pyright: ignore[reportOperatorIssue]
cs.task(Path)(1, 2, nonsense=3)


class Static:
    @cs.task
    @staticmethod
    def static(x: int) -> int:
        return x

    @cs.task
    @classmethod
    def of_class(cls, x: int) -> int:
        return x


Static.static(1)
Static().of_class(1)
Static().static(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Static.of_class(1)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
unknown = cs.run(first.map(items=[[1]]))
assert_type(unknown, list[int])  # type: ignore[assert-type]  # pyright: ignore[reportAssertTypeFailure]

# Maps
assert_type(total.map(numbers=[[1]], label=asynchronous.map(x=[1])), MappedLazyResult[int])
plain.map(m=[1])  # type: ignore[call-arg]  # with the plugin for mypy
plain.map(x=["1"])  # type: ignore[list-item]  # with the plugin for mypy
plain.map(x=asynchronous(1))  # type: ignore[arg-type]  # with the plugin for mypy
plain.map(x=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain.map([1])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

first.map(items=[[1], (2,)])
first.map(items=[1], label=["a"])  # type: ignore[call-arg]


# Unmapped arguments of a map
assert_type(plain.map(x=[1], y=cs.unmapped("a")), MappedLazyResult[float])
assert_type(total.map(numbers=cs.unmapped(named(1)), label=["a"]), MappedLazyResult[int])
assert_type(
    total.map(numbers=[[1]], label=cs.unmapped(cs.Param("label")), key=cs.unmapped(None)), MappedLazyResult[int]
)
plain.map(x=[1], y=cs.unmapped(5))  # type: ignore[arg-type]  # with the plugin for mypy
plain.map(x=[1], z=cs.unmapped(5))  # type: ignore[call-arg]  # with the plugin for mypy

# Options of a task
assert_type(with_options(1, y="a"), LazyResult[float])
assert_type(with_options.map(x=[1]), MappedLazyResult[float])
assert_type(asynchronous_with_options(1), LazyResult[str])
with_options("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
cs.task(is_busy, retry=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
cs.task(is_busy, retries="3")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
cs.task(retries="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
cs.task(is_busy, tags="etl")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
cs.task(is_busy, cache="dir")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
cs.task(is_busy, retries=3, retry_on=SystemExit)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


# A user-defined decorator
def my_task(function: Callable[P, T]) -> Task[P, T]:
    return cs.task(function)


@my_task
def decorated(x: int) -> str:
    return str(x)


assert_type(decorated(1), LazyResult[str])
decorated("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Chain methods
assert_type(plain(1).with_retry(3).run_if(plain(2)), LazyResult[float])
assert_type(plain(1).with_label("one"), LazyResult[float])
assert_type(plain.map(x=[1]).with_label(lambda x: f"{x}"), MappedLazyResult[float])
assert_type(labelled(1, y="a"), LazyResult[float])
assert_type(cs.task(plain.func, label="text"), Task[..., Any])
assert_type(plain(1).with_timeout(2.5), LazyResult[float])
assert_type(plain(1).allow_failure(), LazyResult[float | cs.Failure])
assert_type(plain.map(x=[1]).with_timeout(1).allow_failure(), MappedLazyResult[float | cs.Failure])
assert_type(cs.run(plain(1).allow_failure().with_retry(1)), float | cs.Failure)
assert_type(cs.run(plain.map(x=[1]).allow_failure()), list[float | cs.Failure])
plain(named(1).allow_failure())  # type: ignore[arg-type]  # with the plugin for mypy
plain(1).with_timeout("30")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
assert_type(plain(1).with_tags("a", "b").with_timeout(None).with_cache(None), LazyResult[float])
assert_type(plain(1).with_retry(3, retry_on=[OSError, is_busy]), LazyResult[float])
assert_type(plain.map(x=[1]).with_label(None).with_tags(), MappedLazyResult[float])
plain(1).with_tags(["a"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain(1).with_retry(3, retry_on=KeyboardInterrupt)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain(1).with_label(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
labelled("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
assert_type(plain.map(x=[1]).with_constraints(cpu=named(1)), MappedLazyResult[float])
plain(1).with_retry("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain(1).run_if(True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain(1).with_retries(3)  # type: ignore[misc]  # pyright has no error here: see docs/types.md
cs.Router("a", {})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Runs
assert_type(cs.run(named(1)), list[int])
assert_type(cs.run(named.map(x=[1])), list[list[int]])
assert_type(cs.run(asynchronous(1), params={"a": 1}), str)
assert_type(cs.run(cs.shell("ls")), str)
cs.run(named)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
cs.run(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
cs.run(named(1), nmae="x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
cs.run(named(1), {}, {"cpu": 1}, "INFO", "json", None, resources=[], run_id="a", name="b", tags=["c"])
assert_type(cs.run(target=named(1)), list[int])

# Several targets
assert_type(cs.run([named(1), named(2)]), list[list[int]])
assert_type(cs.run(results), list[float])
assert_type(cs.run((named(1), asynchronous(1))), tuple[list[int], str])
assert_type(cs.run((plain(1), asynchronous(1), named.map(x=[1]))), tuple[float, str, list[list[int]]])
assert_type(cs.run((plain(1), plain(1), plain(1), plain(1))), tuple[float, float, float, float])
assert_type(cs.run((plain(1),) * 9), tuple[float, ...])
assert_type(cs.run({"x": plain(1), "y": plain(2)}), dict[str, float])
assert_type(cs.run([[plain(1)], 5]), Any)


wrong: list[str] = cs.run(named(1))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
wrong_lists: list[str] = cs.run(named.map(x=[1]))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


async def runs(engine: Engine) -> None:
    assert_type(await cs.run_async(named(1)), list[int])
    assert_type(await cs.run_async(named.map(x=[1])), list[list[int]])
    assert_type(await engine.run(named(1)), list[int])
    await plain(1)  # type: ignore[misc]
    _a: list[str] = await cs.run_async(named(1))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    _b: list[str] = await engine.run(named(1))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


# Results of runs
assert_type(cs.execute(named(1)), cs.RunResult[list[int]])
assert_type(cs.execute(named(1)).unwrap(), list[int])
assert_type(cs.execute(named(1)).value, list[int] | None)
assert_type(cs.execute((plain(1), asynchronous(1))).unwrap(), tuple[float, str])
assert_type(cs.execute([plain(1)], run_id="a", tags=["b"]).unwrap(), list[float])
assert_type(cs.execute({"x": asynchronous(1)}).unwrap(), dict[str, str])
cs.execute(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
wrong_result: cs.RunResult[list[str]] = cs.execute(named(1))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


async def results_of_runs() -> None:
    assert_type(await cs.execute_async(named(1)), cs.RunResult[list[int]])
    assert_type((await cs.execute_async([asynchronous(1)])).unwrap(), list[str])


# A lazy result has no value before the run.
for _ in named(1):  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    pass
_ = named(1)[0]  # type: ignore[misc]  # pyright: ignore[reportIndexIssue]
_ = 1 in named(1)  # type: ignore[misc]  # pyright: ignore[reportOperatorIssue]


def takes_a_task(task: Task[[int], list[int]]) -> None: ...


def takes_a_lazy_result(lazy: LazyResult[Sequence[float]]) -> None: ...


takes_a_lazy_result(named(1))
takes_a_task(named)
takes_a_task(plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Inputs
assert_type(cs.Param("p"), LazyResult[Any])
assert_type(cs.Param("p", 5, int), LazyResult[int])
assert_type(cs.Param("p", type=Path), LazyResult[Path])
assert_type(cs.Param("p", type=Order), LazyResult[Order])
assert_type(cs.Param("p", Order.NAME, Order, "order of the lines"), LazyResult[Order])
assert_type(cs.Param("p", type=list[str]), LazyResult[list[str]])
assert_type(cs.Param("p", [1], type=list[int]), LazyResult[list[int]])
assert_type(cs.Param("p", type=Literal["a", "b"]), LazyResult[Any])
assert_type(cs.Param("p", type=int | None), LazyResult[Any])
assert_type(cs.Env("E"), LazyResult[str])
assert_type(cs.Env("E", default=5), LazyResult[str | int])

# Names of the package
cs.tsak(plain)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
cs.shel("ls")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
cs.shell()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
assert_type(cs.subflow("other.py", "target"), LazyResult[Any])
assert_type(cs.graph.model.Graph(), Graph)
assert_type(cs.run(cs.from_json("")), Any)
assert_type(cs.to_json(plain(1)), str)
assert_type(cs.visualize([plain(1), some], format="mermaid"), str)
cs.visualize(plain(1), format="svg")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Resources and constraints
@cs.resource
def database() -> Iterator[str]:
    yield "db"


cs.resource(lambda: 5)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportCallIssue, reportArgumentType]
plain(1).with_constraints(cpu=named(1), memory_gb=0.5)
plain(1).with_constraints(cpu="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain(1).with_cache(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


assert_type(cs.get_logger(), logging.LoggerAdapter[logging.Logger])
assert_type(cs.get_logger("app"), logging.LoggerAdapter[logging.Logger])
cs.get_logger(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Caches
class NamedPolicy:
    def check(self, task_id: str, inputs: dict[str, Any], *, task_name: str) -> Any: ...
    def save(self, task_id: str, inputs: dict[str, Any], output: Any, *, task_name: str) -> None: ...


assert_type(plain(1).with_cache(cs.DiskCache("results", version="1", ttl=60, max_bytes=1_000)), LazyResult[float])
plain(1).with_cache(None).with_cache(NamedPolicy()).with_cache(FileExistenceCache("out"))
cs.run(plain(1), cache=cs.DiskCache())
cs.run(plain(1), cache=".cascade")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
assert_type(cs.DiskCache().clear(), int)
assert_type(cs.DiskCache().stats().bytes, int)
