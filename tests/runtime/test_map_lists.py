import collections
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cascade as cs
from tests.runtime.conftest import RecordedEngine


@cs.task(threaded=False)
def same(x: Any, y: Any = 0) -> Any:
    return x


@cs.task(threaded=False)
def load(x: Any) -> Any:
    return x


class Column:
    """Ordered items without length, truth value and comparison, like a column of a data frame."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def refuse(self, *_: object) -> Any:
        raise AssertionError("not for the engine")

    __bool__ = __len__ = __eq__ = __repr__ = refuse
    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


class Sequence:
    def __getitem__(self, index: int) -> int:
        return [7, 8][index]


class Frame(Column):
    def iterrows(self) -> None: ...


class NoDimension(Column):
    def __iter__(self) -> Iterator[Any]:
        raise TypeError("iteration over a 0-d array")


ORDERED: list[tuple[Callable[[], Any], list[Any]]] = [
    (lambda: [7, 8], [7, 8]),
    (lambda: (7, 8), [7, 8]),
    (lambda: range(7, 9), [7, 8]),
    (lambda: collections.deque([7, 8]), [7, 8]),
    (lambda: (n for n in (7, 8)), [7, 8]),
    (lambda: map(int, "78"), [7, 8]),
    (lambda: zip("ab", "cd", strict=True), [("a", "c"), ("b", "d")]),
    (lambda: iter([7, 8]), [7, 8]),
    ({"a": 7, "b": 8}.values, [7, 8]),
    ({"a": 7, "b": 8}.keys, ["a", "b"]),
    ({"a": 7}.items, [("a", 7)]),
    (lambda: collections.UserList([7, 8]), [7, 8]),
    (lambda: Column(7, 8), [7, 8]),
    (Sequence, [7, 8]),
    (lambda: {7}, [7]),
    (lambda: frozenset([7]), [7]),
    (list, []),
    (lambda: iter(()), []),
]

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: "ab", r"got str: .*each character; .*cs\.unmapped\(\.\.\.\)"),
    (lambda: collections.UserString("ab"), "got UserString: .*each character"),
    (lambda: b"ab", "got bytes: .*each byte"),
    (lambda: bytearray(b"ab"), "got bytearray: .*each byte"),
    (lambda: memoryview(b"ab"), "got memoryview"),
    (lambda: {"a": 1}, r"got dict: .*list\(d\.values\(\)\)"),
    (lambda: collections.Counter("a"), "got Counter"),
    (lambda: types.MappingProxyType({"a": 1}), "got mappingproxy"),
    (lambda: collections.ChainMap({"a": 1}), "got ChainMap"),
    (lambda: Frame(1), "got Frame: which iterates over its columns"),
    (lambda: 5, r"got int: .*cs\.unmapped\(\.\.\.\)"),
    (lambda: None, "got NoneType"),
    (lambda: cs.task, "got function"),
]


@pytest.mark.parametrize(("make", "expected"), ORDERED)
async def test_any_ordered_iterable_is_a_list(
    recorded: RecordedEngine, make: Callable[[], Any], expected: list[Any]
) -> None:
    literal = same.map(x=make())
    assert await recorded.run(literal) == expected
    assert await recorded.run(literal) == expected
    assert await recorded.run(same.map(x=cs.task(make, name="make", threaded=False)())) == expected


@pytest.mark.parametrize(("make", "text"), REFUSED)
async def test_another_value_is_refused(recorded: RecordedEngine, make: Callable[[], Any], text: str) -> None:
    with pytest.raises(TypeError, match=rf"same\.map\(\): 'y' must be a list, {text}"):
        same.map(x=[1], y=make())
    with pytest.raises(TypeError, match=rf"map\(same\): 'y' must be a list, {text}"):
        await recorded.run(same.map(x=[1], y=cs.task(make, name="make", threaded=False)()))


async def test_a_value_that_cannot_be_iterated_names_the_reason(recorded: RecordedEngine) -> None:
    with pytest.raises(
        TypeError, match=r"map\(same\): 'x' must be a list, got NoDimension: iteration over a 0-d array"
    ):
        await recorded.run(same.map(x=load(NoDimension())))


async def test_the_order_of_a_set_matches_no_other_list(recorded: RecordedEngine) -> None:
    with pytest.raises(TypeError, match=r"'x' must be a list, got set: .*sorted"):
        same.map(x={1, 2}, y=[1, 2])
    with pytest.raises(TypeError, match=r"'x' must be a list, got set: .*sorted"):
        await recorded.run(same.map(x=load({1, 2}), y=[1, 2]))


def test_a_resource_for_all_calls_is_a_default() -> None:
    with pytest.raises(TypeError, match=r"'x' must be a list, got Inject: .*default of the parameter"):
        same.map(x=cs.inject("db"))


async def test_lazy_results_in_any_literal_list_are_resolved(recorded: RecordedEngine) -> None:
    for make in (list, tuple, collections.deque, iter, lambda lazies: (lazy for lazy in lazies)):
        assert await recorded.run(same.map(x=make([load(1), 2, load(3)]))) == [1, 2, 3]
    assert await recorded.run(same.map(x={"a": load(1)}.values())) == [1]
    assert await recorded.run(same.map(x={load(1)})) == [1]
    assert await recorded.run(same.map(x=load([1, 2]), y=(load(n) for n in (3, 4)))) == [1, 2]


async def test_an_iterator_that_a_factory_passes_is_read_once(recorded: RecordedEngine) -> None:
    target = cs.spec.lazy_types.MappedLazyResult[Any](same, {"x": iter([1, 2])})
    assert await recorded.run(target) == [1, 2]
    assert await recorded.run(target) == [1, 2]
