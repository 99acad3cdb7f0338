"""The engine calls no method of a value: a method of a data frame or a query may be expensive or have side effects."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.engine import run_nested
from cascade.testing import record_run

calls: list[str] = []


def _raising(name: str) -> Callable[..., Any]:
    def method(self: object, *args: object) -> Any:
        calls.append(f"{name}{args[:1] if name == '__getattribute__' else ''}")
        raise AssertionError(f"{name} was called")

    return method


_OF_A_CLASS = {"__new__", "__init__", "__init_subclass__", "__subclasshook__", "__class_getitem__"}
_SPECIAL = {
    name
    for kind in (int, float, complex, str, bytes, list, dict, set, memoryview)
    for name in dir(kind)
    if name.startswith("__") and callable(getattr(kind, name)) and name not in _OF_A_CLASS | {"__class__"}
} | {
    "__call__",
    "__next__",
    "__missing__",
    "__enter__",
    "__copy__",
    "__deepcopy__",
    "__fspath__",
    "__array__",
    "__getattr__",
}

Hostile = type("Hostile", (), {name: _raising(name) for name in _SPECIAL})
"""A class whose special methods, and each access to an attribute, are recorded and raise."""


def _class_of_a_proxy(self: object) -> type:
    calls.append("__class__")
    return list


Proxy = type("Proxy", (), {"__class__": property(_class_of_a_proxy), "__getattr__": _raising("__getattr__")})
"""A proxy as of Django or werkzeug: `isinstance` reads `__class__`, which runs the query."""


@dataclass
class Holder:
    """A dataclass that holds a value."""

    value: Any


def plain(function: Callable[..., Any]) -> Any:
    return cs.task(function, name="task")


def in_the_loop(function: Callable[..., Any]) -> Any:
    return cs.task(threaded=False, name="task")(function)


def coroutine(function: Callable[..., Any]) -> Any:
    async def call(*args: Any, **named: Any) -> Any:
        return function(*args, **named)

    return cs.task(call, name="task")


Task = Callable[[Callable[..., Any]], Any]


def result(task: Task, value: Any) -> Any:
    return task(lambda: value)()


def arguments(task: Task, value: Any) -> Any:
    same = task(lambda x, *, y: x)
    return same(value, y=value)


def consumed(task: Task, value: Any) -> Any:
    return task(lambda x, *, y: y)(result(task, value), y=result(task, value))


def nested_values(task: Task, value: Any) -> Any:
    lazy = result(task, value)
    things = [value, {"key": value, "lazy": lazy}, (lazy, value), Holder(value)]
    return task(lambda x: x[1]["lazy"])(things)


def mapped(task: Task, value: Any) -> Any:
    items = task(lambda x: x).map(x=[value, value])
    return task(lambda xs: xs[1])(items)


def mapped_over_a_result(task: Task, value: Any) -> Any:
    items = task(lambda x: x).map(x=task(lambda: [value, value])())
    return task(lambda xs: xs[1])(items)


def retried(task: Task, value: Any) -> Any:
    attempts: list[int] = []

    def fail_once(x: Any) -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("again")
        return x

    return task(fail_once)(value).with_retry(2)


def cached(task: Task, value: Any) -> Any:
    class Policy:
        def check(self, _node_id: str, _inputs: dict[str, Any]) -> Any:
            return value

        def save(self, _node_id: str, _inputs: dict[str, Any], _output: Any) -> None:
            raise AssertionError

    return task(lambda x: x)(value).with_cache(Policy())


def saved(task: Task, value: Any) -> Any:
    class Policy:
        def check(self, _node_id: str, _inputs: dict[str, Any]) -> Any:
            return None

        def save(self, _node_id: str, _inputs: dict[str, Any], _output: Any) -> None:
            pass

    return task(lambda x: x)(value).with_cache(Policy())


def param(task: Task, value: Any) -> Any:
    return task(lambda x, y: x)(cs.Param("given"), cs.Param("default", default=value))


def resource(task: Task, value: Any) -> Any:
    @cs.resource
    def one() -> Iterator[Any]:
        yield value

    @cs.resource
    async def two(one: Any = cs.inject(one)) -> AsyncIterator[Any]:
        yield one

    return task(lambda a, b: b)(cs.inject(one), cs.inject(two))


def default_resource(task: Task, value: Any) -> Any:
    @cs.resource
    def one() -> Iterator[Any]:
        yield value

    return cs.task(lambda a=cs.inject(one): a, name="task")()


def routed(task: Task, value: Any) -> Any:
    choose = task(lambda: "a")()
    return task(lambda x: x)(cs.Router(choose, {"a": result(task, value), "b": result(task, value)}))


def conditional(task: Task, value: Any) -> Any:
    return task(lambda x: x)(value).run_if(task(lambda: True)())


def constrained(task: Task, value: Any) -> Any:
    return task(lambda x: x)(value).with_constraints(cpu=task(lambda: 1)())


def nested_run(task: Task, value: Any) -> Any:
    async def run(x: Any) -> Any:
        return await run_nested(arguments(task, x))

    return cs.task(run, name="task")(value)


SHAPES = (
    result,
    arguments,
    consumed,
    nested_values,
    mapped,
    mapped_over_a_result,
    retried,
    cached,
    saved,
    param,
    resource,
    default_resource,
    routed,
    conditional,
    constrained,
    nested_run,
)


@pytest.fixture(autouse=True)
def _no_calls() -> Iterator[None]:
    calls.clear()
    yield
    calls.clear()


def run(shape: Any, task: Task, kind: Any, **options: Any) -> None:
    value = kind()
    returned = cs.run(shape(task, value), params={"given": value} if shape is param else None, **options)
    assert type(returned) is kind
    assert returned is value
    assert calls == []


@pytest.mark.parametrize("kind", [Hostile, Proxy])
@pytest.mark.parametrize("task", [plain, in_the_loop, coroutine])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_no_method_of_a_value_is_called(shape: Any, task: Task, kind: Any) -> None:
    run(shape, task, kind, log_level="DEBUG")


@pytest.mark.parametrize("kind", [Hostile, Proxy])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_no_method_of_a_value_is_called_with_a_connector_that_captures(shape: Any, kind: Any) -> None:
    class Capturing(MemoryConnector):
        capture = frozenset({"params", "arguments", "results"})

    run(shape, plain, kind, connector=Capturing(), log_format="json", log_level="DEBUG")


@pytest.mark.parametrize("kind", [Hostile, Proxy])
def test_no_method_of_a_value_is_called_in_a_record(kind: Any) -> None:
    value = kind()
    record = record_run(arguments(plain, value), spans=False)
    assert record.value is value
    assert calls == []


async def test_no_method_of_a_value_is_called_in_asyncios_debug_mode() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0  # each step of the loop is slow, and logged with its handle
    value = Hostile()
    for shape in (result, arguments, mapped, resource):
        assert await cs.run_async(shape(plain, value), log_level="OFF") is value
    assert calls == []
