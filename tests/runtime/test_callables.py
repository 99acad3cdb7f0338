import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import cascade as cs
from tests.runtime.conftest import RecordedEngine


@cs.resource
def database() -> Iterator[str]:
    yield "db"


class Store:
    def __init__(self, unit: int) -> None:
        self.unit = unit

    @cs.task
    def load(self, x: int, db: str = cs.inject(database)) -> Any:
        return self.unit + x, db

    @cs.task(threaded=False)
    def in_loop(self, x: int) -> int:
        return self.unit + x

    @cs.task
    async def asynchronous(self, x: int) -> int:
        return self.unit + x

    @cs.task
    @staticmethod
    def static(x: int) -> int:
        return x

    @staticmethod
    @cs.task
    def static_above(x: int) -> int:
        return x

    @classmethod
    @cs.task
    def of_class(cls, x: int) -> Any:
        return cls.__name__, x

    @cs.task
    def positional(self, a: int, b: int = 2, /, **kw: int) -> Any:
        return self.unit, a, b, kw

    def plain(self, x: int) -> int:
        return self.unit + x

    async def plain_asynchronous(self, x: int) -> int:
        return self.unit + x

    def __call__(self, x: int) -> int:
        return self.unit * x


async def test_a_task_in_a_class_is_a_method(recorded: RecordedEngine) -> None:
    store: Any = Store(10)
    assert await recorded.run(store.load(1)) == (11, "db")
    assert await recorded.run(Store.load(store, 1)) == (11, "db")
    assert await recorded.run(store.in_loop(1)) == 11
    assert await recorded.run(store.asynchronous(x=1)) == 11
    assert await recorded.run(store.static(1)) == await recorded.run(store.static_above(1)) == 1
    assert await recorded.run(store.of_class(1)) == await recorded.run(type(store).of_class(1)) == ("Store", 1)
    assert await recorded.run(store.asynchronous.map(x=[1, store.in_loop(2)])) == [11, 22]
    assert store.load.name == "load"
    assert Store.load is Store.load
    with pytest.raises(TypeError, match=r"Store\.load\(\) missing 1 required positional argument: 'x'"):
        store.load()
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        store.load.map(x=[1], y=[2])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Store(3).plain, 5),
        (Store(3).plain_asynchronous, 5),
        (Store(3), 6),
        (functools.partial(pow, 2), 4),
        (functools.partial(Store(3).plain_asynchronous), 5),
        (abs, 2),
        (str, "2"),
        (functools.lru_cache(Store(3).plain), 5),
    ],
)
async def test_any_callable_is_a_task(recorded: RecordedEngine, function: Callable[..., Any], expected: Any) -> None:
    task: Any = cs.task(function)
    assert await recorded.run(task(2)) == expected
    assert await recorded.run(task(cs.task(lambda: 2, name="two")()).with_retry(1)) == expected


async def test_a_map_passes_positional_only_parameters_by_position(recorded: RecordedEngine) -> None:
    def function(a: int, b: int = 5, /, c: int = 6, *, d: int = 7, **kw: Any) -> Any:
        return a, b, c, d, kw

    task: Any = cs.task(function)
    assert await recorded.run(task.map(a=[1, 2])) == [(1, 5, 6, 7, {}), (2, 5, 6, 7, {})]
    assert await recorded.run(task.map(**{"d": [4], "1": ["x"]}, c=[3], b=[2], a=[1])) == [(1, 2, 3, 4, {"1": "x"})]
    store: Any = Store(9)
    assert await recorded.run(store.positional.map(b=[2], a=[1], c=[3])) == [(9, 1, 2, {"c": 3})]

    @cs.task
    def injected(x: int, db: str = cs.inject(database), /) -> Any:
        return x, db

    assert await recorded.run(injected.map(x=[1, 2])) == [(1, "db"), (2, "db")]


async def test_a_wrong_call_starts_nothing(recorded: RecordedEngine) -> None:
    ran: list[int] = []
    first = cs.task(lambda: ran.append(1), name="first")

    def function(a: Any, b: Any) -> None: ...

    two: Any = cs.task(function)
    wrong_calls: list[Callable[[], Any]]
    wrong_calls = [lambda: two(first()), lambda: two(first(), 1, c=1), lambda: two.map(a=[first()])]
    for wrong in wrong_calls:
        with pytest.raises(TypeError):
            await recorded.run(wrong())
    assert ran == []


@cs.task
def numbers() -> Iterator[int]:
    yield from (1, 2)


@cs.task
async def async_numbers() -> AsyncIterator[int]:
    yield 1
    yield 2


as_list: Any = cs.task(list, name="as_list")
both = cs.task(lambda a, b=0: (a, b), name="both")


@cs.task
async def from_async(values: AsyncIterator[int]) -> list[int]:
    return [value async for value in values]


async def test_one_task_reads_a_generator(recorded: RecordedEngine) -> None:
    assert await recorded.run(as_list(numbers())) == [1, 2]
    assert await recorded.run(both.map(a=numbers())) == [(1, 0), (2, 0)]
    assert await recorded.run(from_async(async_numbers())) == [1, 2]
    assert list(await recorded.run(numbers())) == [1, 2]
    assert await recorded.run(as_list(numbers()).run_if(numbers())) == [1, 2]


def shared() -> Any:
    source = numbers()
    return both(as_list(source), as_list([source]))


class NoCache:
    def check(self, task_id: str, inputs: dict[str, Any]) -> None: ...
    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (shared, "argument of more than one task"),
        (lambda: both(*[numbers()] * 2), "argument of more than one task"),
        (lambda: as_list(numbers()).with_retry(1), "'as_list' is retried"),
        (lambda: both.map(a=numbers()).with_retry(1), "is retried"),
        (
            lambda: as_list(async_numbers()).with_retry(1),
            "'async_numbers' is a generator function.*'as_list' is retried",
        ),
        (lambda: numbers().with_cache(NoCache()), "a cache cannot keep its value: return a list"),
    ],
)
async def test_a_generator_is_not_read_twice(recorded: RecordedEngine, make: Callable[[], Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        await recorded.run(make())
    assert recorded.recorder.events == []
