"""Checked by mypy, never run: what the public API promises to type checkers."""

from typing import Any, assert_type

import cascade as cs
from cascade.spec.lazy_types import LazyResult, MappedLazyResult
from cascade.spec.task import Task


@cs.task
def plain(x: int, *, y: str = "") -> float:
    return x / 2


@cs.task
async def asynchronous(x: int) -> str:
    return str(x)


@cs.task(name="other")
def named(x: int) -> list[int]:
    return [x]


assert_type(plain(1, y="a"), LazyResult[float])
assert_type(asynchronous(1), LazyResult[str])
assert_type(named(1), LazyResult[list[int]])
assert_type(plain.map(x=[1, 2]), MappedLazyResult[float])
assert_type(plain(1).with_retry(3).run_if(plain(2)), LazyResult[float])
assert_type(plain(asynchronous(1)), LazyResult[float])


def takes_a_task(task: Task[[int], list[int]]) -> None: ...


takes_a_task(named)
takes_a_task(plain)  # type: ignore[arg-type]  # another function's parameters

assert_type(cs.Param("p"), LazyResult[Any])
