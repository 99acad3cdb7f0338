import functools
from typing import Any

import pytest

import cascade as cs
from cascade.spec.constraint import ResourceConstraint
from cascade.spec.lazy_types import LazyResult, MappedLazyResult, RetryPolicy
from cascade.spec.task import Task


def plain(x: int) -> int:
    return x


async def asynchronous() -> None: ...


def test_the_three_ways_to_create_a_task() -> None:
    assert cs.task(plain).name == "plain"
    assert cs.task()(plain).name == "plain"
    assert cs.task(name="other")(plain).name == "other"
    assert cs.task(lambda: 1, name="x").name == "x"
    assert repr(cs.task(plain)) == "<Task plain>"


def test_a_callable_without_a_name_has_the_name_of_its_type() -> None:
    assert cs.task(functools.partial(plain, 1)).name == "partial"


def test_is_async_follows_the_function() -> None:
    task: Task[..., object] = cs.task(plain)
    assert not task.is_async
    task.func = asynchronous
    assert task.is_async


def test_only_callables_are_tasks() -> None:
    with pytest.raises(TypeError, match="needs a function, got 5"):
        cs.task(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_calling_runs_nothing() -> None:
    result = cs.task(plain)(1)
    assert isinstance(result, LazyResult)
    assert (result.args, result.kwargs) == ((1,), {})


def test_chain_methods_change_and_return_the_lazy_result() -> None:
    condition = cs.task(plain)(1)
    for lazy in (cs.task(plain)(1), cs.task(plain).map(x=[1])):
        chained = lazy.with_retry(2, delay=1.0, backoff=3.0).with_constraints(cpu=1).run_if(condition)
        assert chained is lazy
        assert lazy._retry_policy == RetryPolicy(2, 1.0, 3.0)
        assert lazy._constraints == ResourceConstraint({"cpu": 1})
        assert lazy._condition is condition


def test_lazy_results_hash_by_their_id() -> None:
    first = LazyResult[None](None, (), {}, "id")
    assert hash(first) == hash("id")
    assert hash(MappedLazyResult(cs.task(plain), {}, "id")) == hash("id")
    assert first == LazyResult[None](None, (1,), {}, "id")


def test_constraints_are_true_unless_empty() -> None:
    assert cs.with_constraints(cpu=1)
    assert not ResourceConstraint()
    assert ResourceConstraint().is_empty()


def test_resources_must_be_generators() -> None:
    with pytest.raises(TypeError, match="must be a generator"):
        cs.resource(plain)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_inject_takes_a_name_or_a_definition() -> None:
    @cs.resource(name="db")
    def database():  # type: ignore[no-untyped-def]
        yield 1

    assert database.name == "db"
    assert cs.inject("db") == cs.inject(database)


@pytest.mark.parametrize("value", [None, plain, cs.task(plain), cs.task(plain)(1), lambda: 1])
def test_only_a_resource_or_its_name_is_injected(value: Any) -> None:
    with pytest.raises(
        TypeError, match=r"inject\(\) needs a resource or its name, got .*; declare it with @cs\.resource"
    ):
        cs.inject(value)
