import asyncio
import pickle
import traceback
from dataclasses import dataclass
from typing import Any

import pytest

import cascade as cs
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.runtime.engine import run_nested
from cascade.runtime.exceptions import MAX_NOTES, add_later_error, add_note, add_task_note


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


@dataclass(frozen=True, slots=True)
class FrozenSlotsError(Exception):
    code: int


class NoAttributesError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} is read-only")

    @property
    def args(self) -> tuple[object, ...]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        raise RuntimeError("args are private")

    def add_note(self, note: str, /) -> None:
        raise RuntimeError(note)


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), FrozenError(7), FrozenSlotsError(7), NoAttributesError("x")],
    ids=lambda e: type(e).__name__,
)
def test_an_exception_of_any_class_takes_the_later_error_as_a_note(error: BaseException) -> None:
    add_later_error(error, RuntimeError("rollback failed"), "the teardown of resource 'db'")
    text = "Later, the teardown of resource 'db' failed: RuntimeError: rollback failed"
    assert error.__notes__ == [text]
    assert traceback.format_exception_only(error)[-1] == f"{text}\n"


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), FrozenError(7), FrozenSlotsError(7), NoAttributesError("x")],
    ids=lambda e: type(e).__name__,
)
def test_an_exception_of_any_class_takes_the_note_of_its_task(error: BaseException) -> None:
    add_task_note(error, "task 'a'", attempt_start_ns=5, now_ns=10)
    add_task_note(error, "task 'around a'", attempt_start_ns=4, now_ns=11)
    assert error.__notes__ == ["task 'a'", "task 'around a'"]
    add_task_note(error, "task 'later'", attempt_start_ns=12, now_ns=13)
    assert error.__notes__ == ["task 'later'"]


def test_a_copy_in_another_process_keeps_its_notes() -> None:
    error = ValueError("x")
    add_task_note(error, "task 'a'", attempt_start_ns=5, now_ns=10)
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    add_task_note(copied, "task 'around a'", attempt_start_ns=4, now_ns=11)
    assert copied.__notes__ == ["task 'a'", "task 'around a'"]
    add_task_note(copied, "task 'later'", attempt_start_ns=12, now_ns=13)
    assert copied.__notes__ == ["task 'later'"]


def test_notes_of_the_user_stay_and_the_same_note_is_added_once() -> None:
    error = ValueError("x")
    error.add_note("mine")
    add_note(error, "ours")
    add_note(error, "ours")
    assert error.__notes__ == ["mine", "ours"]


def test_the_number_of_notes_is_bounded() -> None:
    error = ValueError("x")
    for number in range(1_000):
        add_later_error(error, KeyError(number), f"task {number}")
    add_task_note(error, "task 'a'", attempt_start_ns=5, now_ns=10)
    assert len(error.__notes__) == MAX_NOTES


def test_neither_the_error_itself_nor_a_cancellation_is_a_later_error() -> None:
    error = ValueError("x")
    add_later_error(error, error, "task 'a'")
    add_later_error(error, asyncio.CancelledError(), "task 'b'")
    assert not hasattr(error, "__notes__")


def test_notes_that_are_no_list_stay_as_they_are() -> None:
    error = ValueError("x")
    error.__notes__ = ("fixed",)  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    add_note(error, "ours")
    assert error.__notes__ == ("fixed",)  # type: ignore[comparison-overlap]


def notes_of(target: Any, **options: Any) -> list[str]:
    """The notes of the exception that the run raises."""
    try:
        cs.run(target, log_level="OFF", **options)
    except (ValueError, ArithmeticError, TypeError) as error:
        return list(error.__notes__)
    return []


def fail(x: int = 0) -> None:
    raise ValueError(x)


async def fail_async(x: int = 0) -> None:
    raise ValueError(x)


@dataclass(frozen=True, slots=True)
class FrozenValueError(ValueError):
    code: int


def fail_frozen(x: int = 0) -> None:
    raise FrozenValueError(x)


async def fail_frozen_async(x: int = 0) -> None:
    raise FrozenValueError(x)


SHAPES = {
    "thread": cs.task(fail, name="convert"),
    "loop": cs.task(fail, name="convert", threaded=False),
    "async": cs.task(fail_async, name="convert"),
    "frozen exception": cs.task(fail_frozen, name="convert"),
    "frozen exception, loop": cs.task(fail_frozen, name="convert", threaded=False),
    "frozen exception, async": cs.task(fail_frozen_async, name="convert"),
}


@pytest.mark.parametrize("task", SHAPES.values(), ids=SHAPES)
def test_the_exception_of_a_run_names_task_item_and_attempt(task: Any) -> None:
    assert notes_of(task()) == ["task 'convert'"]
    assert notes_of(task().with_retry(3)) == ["task 'convert', attempt 4 of 4"]
    assert notes_of(task.map(x=[17])) == ["task 'convert', item 0"]
    assert notes_of(task.map(x=[17]).with_retry(1)) == ["task 'convert', item 0, attempt 2 of 2"]


def test_the_note_names_the_item_that_failed_first() -> None:
    @cs.task
    def convert(x: int) -> int:
        return 10 // x

    assert notes_of(convert.map(x=[3, 2, 0, 1])) == ["task 'convert', item 2"]


def test_an_engine_without_run_adds_the_note_too() -> None:
    engine = cs.Engine(NativeSolver(), LocalExecutor(), cs.MessageBus())
    with pytest.raises(ValueError, match="0") as caught:
        asyncio.run(engine.run(SHAPES["thread"]()))
    assert traceback.format_exception(caught.value)[-2:] == ["ValueError: 0\n", "task 'convert'\n"]


@pytest.mark.parametrize("nested", ["the same engine", "cs.run", "cs.run_async"])
def test_the_notes_of_a_nested_run_name_the_inner_and_the_outer_task_once(nested: str) -> None:
    inner = SHAPES["thread"]

    @cs.task
    async def same_engine(x: int = 0) -> None:
        await run_nested(inner.map(x=[x]))

    @cs.task
    def run_in_thread(x: int = 0) -> None:
        cs.run(inner.map(x=[x]), log_level="OFF")

    @cs.task
    async def run_async(x: int = 0) -> None:
        await cs.run_async(inner.map(x=[x]), log_level="OFF")

    outer: Any = {"the same engine": same_engine, "cs.run": run_in_thread, "cs.run_async": run_async}[nested]
    inner_note = "task 'convert', item 0"
    assert notes_of(outer()) == [inner_note, f"task '{outer.name}'"]
    assert notes_of(outer.map(x=[5]).with_retry(1)) == [inner_note, f"task '{outer.name}', item 0, attempt 2 of 2"]


def test_one_exception_object_names_the_task_that_raised_it_last() -> None:
    cached = ValueError("unavailable")
    cached.add_note("mine")

    def fail_again(x: int = 0) -> None:
        raise cached

    assert notes_of(cs.task(fail_again, name="a")().with_retry(5)) == ["mine", "task 'a', attempt 6 of 6"]
    notes = notes_of(cs.task(fail_again, name="b").map(x=[1, 2]))
    assert notes in (["mine", "task 'b', item 0"], ["mine", "task 'b', item 1"])  # their threads raise in either order


def test_one_exception_object_that_several_tasks_raise_names_the_first_one() -> None:
    shared = ValueError("the server is gone")

    async def fail_together(x: int) -> None:
        raise shared

    assert notes_of(cs.task(fail_together).map(x=[1, 2, 3])) == ["task 'fail_together', item 0"]


def test_one_exception_object_of_a_cache_names_the_item_of_the_latest_run() -> None:
    class Broken:
        error = ValueError("no cache")

        def check(self, task_id: str, inputs: dict[str, Any]) -> None:
            raise self.error

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...

    cache = Broken()
    for name in ("a", "b"):
        assert notes_of(cs.task(fail, name=name).map(x=[1]).with_cache(cache)) == [f"task '{name}', item 0"]


def test_a_task_that_fails_before_it_starts_is_named() -> None:
    add = cs.task(lambda a, b: a + b, name="add")
    assert notes_of(add.map(a=[1], b=[1, 2])) == ["task 'map(add)'"]
    assert notes_of(add.map(a=cs.task(lambda: [1], name="load")(), b=[1, 2])) == ["task 'map(add)'"]
    assert notes_of(add(1, 2).with_constraints(cpu=9), system_resources={"cpu": 1}) == ["task 'add'"]


def test_a_condition_whose_truth_value_raises_is_named() -> None:
    class Ambiguous:
        def __bool__(self) -> bool:
            raise ValueError("the truth value of an array is ambiguous")

    condition = cs.task(Ambiguous, name="mask")()
    assert notes_of(SHAPES["thread"]().run_if(condition)) == ["the condition of task 'convert'"]


def test_control_characters_of_a_name_are_escaped_in_the_note() -> None:
    assert notes_of(cs.task(fail, name="a\x1b[2J\nb")()) == ["task 'a\\x1b[2J\\nb'"]


def test_a_cancellation_has_no_note() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError) as caught:
        cs.run(cs.task(cancelled)(), log_level="OFF")
    assert not hasattr(caught.value, "__notes__")
