import asyncio
import traceback
from dataclasses import dataclass

import pytest

from cascade.runtime._outcome import MAX_NOTES, add_later_error, add_note


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
    def args(self) -> tuple[object, ...]:  # type: ignore[override]
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
    assert len(error.__notes__) == MAX_NOTES


def test_neither_the_error_itself_nor_a_cancellation_is_a_later_error() -> None:
    error = ValueError("x")
    add_later_error(error, error, "task 'a'")
    add_later_error(error, asyncio.CancelledError(), "task 'b'")
    assert not hasattr(error, "__notes__")


def test_notes_that_are_no_list_stay_as_they_are() -> None:
    error = ValueError("x")
    error.__notes__ = ("fixed",)  # type: ignore[assignment]
    add_note(error, "ours")
    assert error.__notes__ == ("fixed",)  # type: ignore[comparison-overlap]
