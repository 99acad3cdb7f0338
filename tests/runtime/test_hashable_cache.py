import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import cascade as cs
from cascade.spec.parameters import hashable_cache


class Data:
    """A value that a task's function holds."""

    def plain(self) -> int:
        return 1

    async def coroutine(self) -> int:
        return 1

    def __call__(self) -> int:
        return 1


def closure(data: Data) -> Any:
    @cs.task
    def size() -> int:
        return data.plain()

    return size()


def coroutine_closure(data: Data) -> Any:
    @cs.task
    async def size() -> int:
        return data.plain()

    return size()


def closure_in_the_loop(data: Data) -> Any:
    @cs.task(threaded=False)
    def size() -> int:
        return data.plain()

    return size()


def mapped_closure(data: Data) -> Any:
    @cs.task
    def size(i: int) -> int:
        return data.plain() + i

    return size.map(i=[1, 2])


def wrapped_closure(data: Data) -> Any:
    def inner() -> int:
        return data.plain()

    @cs.task
    @functools.wraps(inner)
    def size() -> int:
        return inner()

    return size()


def resource_closure(data: Data) -> Any:
    @cs.resource
    def held() -> Any:
        yield data

    @cs.task
    def size(held: Data = cs.inject(held)) -> int:
        return held.plain()

    return size()


SHAPES: dict[str, Callable[[Data], Any]] = {
    "closure": closure,
    "coroutine": coroutine_closure,
    "in the loop": closure_in_the_loop,
    "map": mapped_closure,
    "wrapped": wrapped_closure,
    "resource": resource_closure,
    "bound method": lambda data: cs.task(data.plain)(),
    "bound coroutine method": lambda data: cs.task(data.coroutine)(),
    "callable": lambda data: cs.task(data, name="data")(),
    "partial": lambda data: cs.task(functools.partial(Data.plain, data), name="partial")(),
    "lambda": lambda data: cs.task(lambda: data.plain() + 1, name="lambda")(),
    "argument": cs.task(Data.plain),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_keeps_no_function_alive(shape: str) -> None:
    alive = []
    for _ in range(3):
        data = Data()
        alive.append(weakref.ref(data))
        cs.run(SHAPES[shape](data), log_level="ERROR")
        del data
    gc.collect()

    assert [reference() for reference in alive] == [None, None, None]


def test_the_result_is_computed_once_per_function() -> None:
    computed = []
    name_of = hashable_cache(lambda function: computed.append(function) or function.__name__)  # type: ignore[func-returns-value]

    assert [name_of(closure), name_of(closure), name_of(mapped_closure)] == ["closure", "closure", "mapped_closure"]
    assert computed == [closure, mapped_closure]


def test_an_object_with_its_own_equality_is_neither_compared_nor_cached() -> None:
    class Unequal:
        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        def __hash__(self) -> int:
            raise AssertionError("hashed")

    name_of_class = hashable_cache(lambda function: type(function).__name__)

    assert name_of_class(Unequal()) == "Unequal"
