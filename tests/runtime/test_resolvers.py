import functools
from collections.abc import Iterator
from typing import Any

import pytest

import cascade as cs
from cascade.runtime.engine import run_nested
from cascade.spec.lazy_types import MappedLazyResult
from tests.runtime.conftest import RecordedEngine


@cs.task(threaded=False)
def load(x: Any) -> Any:
    return x


def in_thread(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


async def in_loop(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


IN_THREAD = cs.task(in_thread)
IN_LOOP = cs.task(in_loop)

SHAPES = pytest.mark.parametrize(
    "collect", [IN_THREAD, cs.task(in_thread, threaded=False), IN_LOOP], ids=["thread", "loop", "async"]
)
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {"2024": 1, "2025": 2}),
    (("a",), {"0": "b"}),
    (("a",), {"1": "b", "2": "c"}),
    ((), {"0": "a", "1": "b"}),
    (("a", "b"), {"**0": "c", "0": "d", "****0": "e"}),
    (("x", "y"), {"²": 1, "\u0661": 2, "007": 3, "self": 4, "_condition": 5}),
    (tuple(range(12)), {"11": "last", "x": "y"}),
]


@SHAPES
@pytest.mark.parametrize("wrap", [lambda x: x, load], ids=["literal", "lazy"])
async def test_keywords_of_digits_arrive_as_keywords(recorded: RecordedEngine, collect: Any, wrap: Any) -> None:
    for args, kwargs in CALLS:
        target = collect(*map(wrap, args), **{name: wrap(value) for name, value in kwargs.items()})
        assert await recorded.run(target) == (args, kwargs)
        assert await recorded.run(target.with_retry(1)) == (args, kwargs)


@SHAPES
async def test_keywords_of_digits_arrive_from_a_map(recorded: RecordedEngine, collect: Any) -> None:
    target = collect.map(**{"0": [1, 2], "2024": load([3, 4]), "self": [load(5), 6]})
    assert await recorded.run(target) == [((), {"0": 1, "2024": 3, "self": 5}), ((), {"0": 2, "2024": 4, "self": 6})]


async def test_keywords_of_digits_arrive_in_a_nested_run(recorded: RecordedEngine) -> None:
    @cs.task
    async def outer() -> Any:
        return await run_nested(IN_LOOP("a", **{"0": load("b")}))

    assert await recorded.run(outer()) == (("a",), {"0": "b"})


async def test_keywords_keep_their_order(recorded: RecordedEngine) -> None:
    @cs.task(threaded=False)
    def order(*args: Any, **kwargs: Any) -> list[str]:
        return list(kwargs)

    expected = ["z", "0", "a", "m"]
    assert await recorded.run(order(z=1, **{"0": load(4)}, a=[load(1)], m=load(2))) == expected
    assert await recorded.run(order(load(1), 2, z=load(1), **{"0": 4}, a=load(1), m=2)) == expected
    assert await recorded.run(order.map(z=[1], **{"0": load([4])}, a=[load(1)], m=load([2]))) == [expected]


async def test_sources_in_a_position_and_in_a_keyword_of_the_same_name_are_replaced(recorded: RecordedEngine) -> None:
    target = IN_LOOP([load(1), load(2)], **{"0": [load(3), load(4)]})
    assert await recorded.run(target) == (([1, 2],), {"0": [3, 4]})


async def test_a_factory_that_is_not_a_task_receives_them(recorded: RecordedEngine) -> None:
    class Factory:
        name = "factory"

        def __call__(self, **kwargs: Any) -> Any:
            return IN_LOOP("a", **kwargs)

        def map(self, **kwargs: Any) -> Any:
            return MappedLazyResult(self, kwargs)

    assert await recorded.run(Factory().map(**{"0": [1], "7": [2]})) == [(("a",), {"0": 1, "7": 2})]


@pytest.mark.parametrize("collect", [IN_THREAD, IN_LOOP])
async def test_a_restored_graph_has_the_same_arguments(collect: Any) -> None:
    for args, kwargs in CALLS:
        target = collect(*map(LOAD, args), **kwargs)
        engine = cs.Engine(cs.NativeSolver(), cs.LocalExecutor(), cs.MessageBus())
        assert await engine.run(cs.from_json(cs.to_json(target))) == (args, kwargs)


LOAD = load


async def test_a_cache_receives_every_argument_by_name(recorded: RecordedEngine) -> None:
    seen: list[dict[str, Any]] = []

    class Cache:
        def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
            seen.append(inputs)

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...

    await recorded.run(IN_LOOP("a", load("b"), **{"0": "c", "2024": load("d"), "x": "e"}).with_cache(Cache()))
    await recorded.run(IN_LOOP.map(**{"0": ["a"], "x": ["b"]}).with_cache(Cache()))
    assert seen == [{"0": "a", "1": "b", "**0": "c", "2024": "d", "x": "e"}, {"**0": "a", "x": "b"}]


@cs.resource
def one() -> Iterator[str]:
    yield "one"


@cs.resource
def two(first: str = cs.inject(one), /) -> Iterator[str]:
    yield f"{first} and two"


def only(db: str = cs.inject(one), /) -> Any:
    return db


def after_a_default(x: int = 1, db: str = cs.inject(two), y: int = 2, /, *rest: int, z: str = cs.inject(one)) -> Any:
    return x, db, y, rest, z


async def test_a_positional_only_parameter_receives_its_resource(recorded: RecordedEngine) -> None:
    async def run(function: Any, *args: Any) -> Any:
        return await recorded.run(cs.task(function)(*args))

    assert await run(only) == "one"
    assert await run(only, "mine") == "mine"
    assert await run(functools.partial(after_a_default, 9)) == (9, "one and two", 2, (), "one")
    assert await run(after_a_default) == (1, "one and two", 2, (), "one")
    assert await run(after_a_default, 5, cs.inject(one), 6, 7) == (5, "one", 6, (7,), "one")
