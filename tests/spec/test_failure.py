import pickle
from dataclasses import FrozenInstanceError, fields

import pytest

import cascade as cs


def test_a_failure_is_false_and_frozen() -> None:
    failure = cs.Failure(ValueError("no"), "load", "id", 3, 2)
    assert not failure
    assert [field.name for field in fields(failure)] == ["error", "task_name", "task_id", "map_index", "attempts"]
    with pytest.raises(FrozenInstanceError):
        failure.attempts = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_failure_is_pickled() -> None:
    copy = pickle.loads(pickle.dumps(cs.Failure(ValueError("no"), "load", "id")))  # noqa: S301
    assert (str(copy.error), copy.task_name, copy.map_index, copy.attempts) == ("no", "load", None, 0)
