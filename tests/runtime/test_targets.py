"""Runs of several targets: the value has the shape of the target, and the container is no task."""

import asyncio
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.engine import run_nested
from cascade.runtime.events import Event, RunFinished, RunStarted, TaskExecutionFinished, TaskSkipped
from tests.runtime.conftest import RecordedEngine


@cs.task(threaded=False)
def echo(value: Any) -> Any:
    return value


@cs.task
def in_a_thread(value: Any) -> Any:
    return value


@cs.task
async def divide(x: int) -> float:
    await asyncio.sleep(0)
    return 1 / x


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True)
class Report:
    total: Any
    unit: str


def nested_shapes(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(st.text(max_size=3), inner, max_size=4),
            st.builds(Pair, inner, inner),
            st.builds(Report, inner, st.just("m")),
            st.lists(inner, max_size=3).map(deque),
        ),
        max_leaves=12,
    )


def with_lazy_results(value: Any) -> Any:
    """Return a shape whose leaves, which are integers, are lazy results of three kinds, or themselves."""
    match value:
        case int():
            kinds = (lambda: echo(value), lambda: in_a_thread(value), lambda: value)
            return kinds[value % 3]()
        case Pair(left, right):
            return Pair(with_lazy_results(left), with_lazy_results(right))
        case Report(total, unit):
            return Report(with_lazy_results(total), unit)
        case dict():
            return {key: with_lazy_results(item) for key, item in value.items()}
        case _:
            return type(value)(with_lazy_results(item) for item in value)


@given(
    st.one_of(
        st.lists(nested_shapes(st.integers(0, 99)), max_size=4),
        st.dictionaries(st.text(), nested_shapes(st.integers(0, 99)), max_size=3),
    )
)
def test_the_value_has_the_shape_of_the_target(shape: Any) -> None:
    value = cs.run(with_lazy_results(shape), log_level="OFF")
    assert value == shape
    assert type(value) is type(shape)


@pytest.mark.parametrize("entry", ["run", "run_async", "Engine.run", "run_nested", "subflow"])
def test_all_entry_points_accept_several_targets(entry: str, tmp_path: Path) -> None:
    a = echo(1)
    target = {"a": a, "b": [divide(2), a]}
    file = tmp_path / "flow.py"
    file.write_text(
        "import cascade as cs\ntask = cs.task(lambda x: x, name='x')\na = task(1)\nboth = {'a': a, 'b': [task(0.5), a]}\n"
    )

    @cs.task
    async def outer() -> Any:
        return await run_nested(target)

    async def run_async() -> Any:
        return await cs.run_async(target, log_level="OFF")

    async def engine_run() -> Any:
        return await RecordedEngine().run(target)

    values = {
        "run": lambda: cs.run(target, log_level="OFF"),
        "run_async": lambda: asyncio.run(run_async()),
        "Engine.run": lambda: asyncio.run(engine_run()),
        "run_nested": lambda: cs.run(outer(), log_level="OFF"),
        "subflow": lambda: cs.run(cs.subflow(str(file), "both"), log_level="OFF"),
    }
    assert values[entry]() == {"a": 1, "b": [0.5, 1]}


def test_a_lazy_result_that_occurs_twice_runs_once() -> None:
    calls: list[int] = []

    @cs.task
    def count() -> object:
        calls.append(1)
        return object()

    counted = count()
    first, second = cs.run([counted, counted], log_level="OFF")
    assert first is second
    assert calls == [1]


def test_targets_may_depend_on_each_other() -> None:
    first = echo([1])
    second = echo([first, 2])
    assert cs.run((second, first), log_level="OFF") == ([[1], 2], [1])


def test_the_container_is_not_visible(capsys: pytest.CaptureFixture[str]) -> None:
    connector = MemoryConnector()
    cs.run([echo(1), in_a_thread(2), 3], connector=connector)
    bodies = [payload["body"] for payload in connector.payloads]
    assert {body["task_name"] for body in bodies if "task_name" in body} == {"echo", "in_a_thread"}
    started, stopped = bodies[0]["metadata"], bodies[-1]["metadata"]
    assert (started["target"], started["tasks"]) == ("echo, in_a_thread", {"echo": 1, "in_a_thread": 1})
    assert stopped["counts"] == {"completed": 2}
    assert "for target(s): ['echo', 'in_a_thread']" in capsys.readouterr().err


async def test_an_empty_list_is_a_run(recorded: RecordedEngine) -> None:
    assert await recorded.run([]) == []
    (started,), (finished,) = recorded.of(RunStarted), recorded.of(RunFinished)
    assert (started.target_tasks, finished.status) == ([], "Succeeded")
    assert {type(event) for event in recorded.of(Event)} == {RunStarted, RunFinished}


async def test_a_skipped_target_is_an_error_after_the_others_have_run(recorded: RecordedEngine) -> None:
    skipped = echo(2).run_if(cs.Param("never", default=False, type=bool))
    with pytest.raises(
        cs.DependencyMissingError, match="'echo' was skipped: its condition Param 'never' was false"
    ) as caught:
        await recorded.run([divide(1), skipped, divide(2)])
    assert (caught.value.arg_name, caught.value.dependency_id) == ("<Target Output>", skipped._uuid)
    assert [event.task_name for event in recorded.of(TaskExecutionFinished)] == ["divide", "divide"]
    assert [event.task_name for event in recorded.of(TaskSkipped)] == ["echo"]


async def test_the_first_failed_target_is_raised(recorded: RecordedEngine) -> None:
    with pytest.raises(ZeroDivisionError):
        await recorded.run([echo(1), divide(0)])
    assert recorded.of(RunFinished)[0].status == "Failed"


async def test_a_router_may_choose_one_of_the_targets(recorded: RecordedEngine) -> None:
    one, two = echo("one"), echo("two")
    chosen = echo(cs.Router(echo("a"), {"a": one, "b": two}))
    assert await recorded.run([chosen, two]) == ["one", "two"]
    assert recorded.of(TaskSkipped) == []


def test_a_thousand_targets_in_a_list() -> None:
    assert cs.run([echo(x) for x in range(3_000)], log_level="OFF") == list(range(3_000))
