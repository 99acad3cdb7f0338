import copy
import operator
import pickle
from collections.abc import Callable, Iterable
from dataclasses import fields
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import ANY, MagicMock, call

import pytest

import cascade as cs
from cascade.spec.lazy_types import LazyResult, MappedLazyResult
from cascade.spec.resource import inject


@cs.task
def add(x: Any, y: Any = 0) -> Any:
    return x + y


class Color(Enum):
    RED = 1


LAZIES = pytest.mark.parametrize("lazy", [add(1), add.map(x=[1])], ids=repr)
ARGUMENTS = pytest.mark.parametrize("lazy", [add(1), add.map(x=[1]), cs.Router(add(1), {1: add(2)})], ids=repr)


def test_the_repr_has_the_name_and_no_value() -> None:
    assert repr(add("hunter2")) == str(add("hunter2")) == "<LazyResult add>"
    assert repr(add.map(x=["hunter2"])) == "<MappedLazyResult add>"
    router = cs.Router(add("hunter2"), {"hunter2": add(1)})
    assert repr(add([router])) == "<LazyResult add>"
    assert repr(router) == "<Router of <LazyResult add>, 1 routes>"


def test_the_repr_is_short_for_shared_and_for_long_graphs() -> None:
    shared = chain = add(1)
    for _ in range(60):
        shared = add(shared, shared)
    for _ in range(5_000):
        chain = add(chain)
    assert repr([shared, chain]) == "[<LazyResult add>, <LazyResult add>]"
    assert repr(cs.Router(shared, {"a": shared})) == "<Router of <LazyResult add>, 1 routes>"
    assert repr(cs.graph.build.build_graph(shared)) == "<Graph of 61 nodes, 120 edges>"


def test_a_resource_and_an_edge_have_short_reprs() -> None:
    @cs.resource(name="db")
    def database() -> Iterable[int]:
        yield 1

    graph = cs.graph.build.build_graph(add(add(1)))
    assert (repr(database), repr(inject(database))) == ("<ResourceDefinition db>", "Inject(resource_name='db')")
    assert repr(graph.edges) == "[<Edge add -> add (DATA 0)>]"
    assert repr(graph.nodes) == "[<Node add>, <Node add>]"


@ARGUMENTS
@pytest.mark.parametrize(
    "use",
    [
        bool,
        operator.not_,
        lambda lazy: lazy and 1,
        lambda lazy: 1 if lazy else 2,
        iter,
        list,
        sum,
        len,
        lambda lazy: lazy[0],
        lambda lazy: lazy["key"],
        lambda lazy: 1 in lazy,
        lambda lazy: [*lazy],
        lambda lazy: f"{lazy}",
        lambda lazy: f"{lazy:>10}",
        "{}".format,
        format,
        lambda lazy: lazy + 1,
        lambda lazy: 1 + lazy,
        lambda lazy: "a" + lazy,
        lambda lazy: lazy % 2,
        lambda lazy: sum([lazy, lazy]),
        lambda lazy: lazy < 1,
        lambda lazy: max(lazy, 1),
        lambda lazy: sorted([lazy, lazy]),
        lambda lazy: lazy == 1,
        lambda lazy: lazy != "a",
        lambda lazy: "a" == lazy,  # noqa: SIM300 - the case itself
        lambda lazy: lazy in ("fast", "slow"),
        lambda lazy: lazy == [],
        lambda lazy: lazy == date(2026, 1, 1),
        lambda lazy: lazy == Path(),
        lambda lazy: lazy == Color.RED,
        lambda lazy: Color.RED == lazy,  # noqa: SIM300 - the case itself
        lambda lazy: lazy == Decimal(1),
        lambda lazy: lazy.__array__(copy=False),  # numpy.array(lazy)
    ],
)
def test_an_operation_on_the_value_raises(use: Callable[[Any], Any], lazy: Any) -> None:
    with pytest.raises(TypeError):
        use(lazy)


@pytest.mark.parametrize("use", [bool, list, len, format, lambda lazy: 1 + lazy, lambda lazy: lazy == 1])
def test_the_error_names_the_task_and_the_fix(use: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"<LazyResult add>.*has no value yet.*Pass it to a task.*run_if"):
        use(add(1))


@LAZIES
def test_an_unknown_attribute_names_the_fix(lazy: Any) -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'shape': a lazy result .* Pass it to a task") as caught:
        _ = lazy.shape
    assert (caught.value.name, caught.value.obj) == ("shape", lazy)
    assert not hasattr(lazy, "_repr_html_")


@LAZIES
def test_operations_of_python_on_objects_work(lazy: Any) -> None:
    assert copy.copy(lazy) == lazy
    assert copy.deepcopy(add([1])).args == ([1],)
    assert lazy in [None, object(), int, lazy]
    assert {lazy: 1}[lazy] == 1
    assert lazy == ANY
    assert call(lazy) == call(lazy)
    assert lazy != add(1)
    assert lazy is not None
    assert "_uuid" in {field.name for field in fields(lazy)}
    assert not isinstance(lazy, (str, list, tuple, dict))


def test_a_router_is_equal_to_itself_only() -> None:
    router, other = (cs.Router(add(1), {1: add(2)}) for _ in range(2))
    assert [router].index(router) == 0
    assert router != other
    assert router != add(1)
    assert {router: 1}[router] == 1


def test_an_uninitialized_copy_has_a_repr() -> None:
    assert repr(object.__new__(LazyResult)) == "<LazyResult ?>"


def test_a_lazy_result_is_pickled() -> None:
    original: Any = LazyResult(None, (1,), {})
    assert pickle.loads(pickle.dumps(original)) == original  # noqa: S301 - its own bytes


@pytest.mark.parametrize("kind", [LazyResult, MappedLazyResult])
def test_a_mock_is_an_instance_of_a_lazy_result(kind: type) -> None:
    assert isinstance(MagicMock(spec=kind), kind)


@pytest.mark.parametrize("condition", [True, "yes", lambda: True, add])
def test_a_condition_must_be_lazy(condition: Any) -> None:
    with pytest.raises(TypeError, match=r"Task 'add': _condition must be a lazy result"):
        add(1).run_if(condition)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cs.Router("a", {"a": add(1)}),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: cs.Router(add(1), {"a": "hunter2"}),  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
        lambda: cs.Router(add(1), {"a": cs.Router(add(1), {})}),
        lambda: cs.Router(add(1), [add(1)]),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_router_requires_lazy_results(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"Router: .* must be a") as caught:
        make()
    assert "hunter2" not in str(caught.value)
