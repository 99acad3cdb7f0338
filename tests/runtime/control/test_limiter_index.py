"""Admission control with very many constraints. The tests count evaluations and do not measure time."""

from collections import Counter
from typing import Any

import pytest

from cascade.runtime.control import admission, limiters
from cascade.runtime.control.admission import Admission
from cascade.runtime.control.constraint import Concurrency, Constraint, Matcher, Pause, RateLimit, Scope
from cascade.runtime.control.limiters import AdmissionKey

MANY = 20_000
RUN = "r"


def key(name: str) -> AdmissionKey:
    return AdmissionKey((RUN,), name)


def task(name: str) -> Scope:
    return Scope("task", name)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the scopes that are compared with a task, and the limiters that are created."""
    counts: Counter[str] = Counter()
    make = limiters.limiter_of

    class Counted(Matcher):
        def __call__(self, run_ids: tuple[str, ...], name: str) -> bool:
            counts["compared"] += 1
            return super().__call__(run_ids, name)

    def created(*args: Any) -> Any:
        counts["created"] += 1
        return make(*args)

    monkeypatch.setattr(limiters, "Matcher", Counted)
    monkeypatch.setattr(admission, "limiter_of", created)
    return counts


def with_many_constraints(own: Constraint | None = None) -> Admission:
    """Return admission control with very many constraints for single tasks, nine for patterns, one for a run, and `own`."""
    control = Admission()
    for number in range(MANY // 3):
        control.put(Pause(task(f"other-{number}"), "p", None))
        control.put(Concurrency(task(f"other-{number}"), "c", None, 1))
        control.put(RateLimit(task(f"other-{number}"), "r", None, 1.0, 1.0, "1/s"))
    for number in range(9):
        control.put(Pause(task(f"part-{number}-*"), "p", None))
    control.put(Concurrency(Scope("run", "another"), "c", None, 1))
    if own is not None:
        control.put(own)
    return control


def test_constraints_for_other_tasks_are_not_evaluated(work: Counter[str]) -> None:
    control = with_many_constraints()
    assert work == {"created": 10}, "those of the patterns and of the run"
    for _ in range(100):
        assert control.try_acquire(key("a"))
    assert work == {"created": 10, "compared": 10}
    for number in range(MANY // 3, MANY // 3 + 1_000):
        control.put(Pause(task(f"other-{number}"), "p", None))
        assert control.try_acquire(key("a"))
    for _ in range(1_100):
        control.release(key("a"))
    assert work == {"created": 10, "compared": 10}


def test_a_pattern_is_compared_once_with_each_name(work: Counter[str]) -> None:
    control = with_many_constraints()
    for number in range(50):
        for _ in range(10):
            assert control.try_acquire(key(f"name-{number}"))
    assert work["compared"] == 50 * 10
    control.put(Pause(task("name-1?"), "p", None))
    assert not control.try_acquire(key("name-12"))
    assert control.try_acquire(key("name-2"))
    assert work["compared"] == 50 * 10 + 2 * 11


@pytest.mark.parametrize(
    "own",
    [Pause(task("a"), "p", None), Concurrency(task("a"), "c", None, 2), RateLimit(task("a"), "r", None, 1e-9, 2, "")],
)
def test_the_constraint_for_a_task_is_found_among_many(own: Constraint, work: Counter[str]) -> None:
    control = with_many_constraints(own)
    started = sum(control.try_acquire(key("a")) is not None for _ in range(5))
    assert started == (0 if isinstance(own, Pause) else 2)
    assert work["created"] == 11
    control.remove(own)
    assert control.try_acquire(key("a"))


def test_several_types_for_one_name_apply_together_and_end_one_by_one() -> None:
    pause, limit = Pause(task("a"), "p", None), Concurrency(task("a"), "c", None, 1)
    control = Admission()
    control.put(limit)
    control.put(pause)
    assert not control.try_acquire(key("a"))
    control.remove(pause)
    assert control.try_acquire(key("a"))
    assert not control.try_acquire(key("a"))
    control.put(Concurrency(task("a"), "c", None, 2))
    assert control.try_acquire(key("a"))
    control.remove(limit)
    control.remove(limit)
    assert control.try_acquire(key("a"))


def test_a_name_with_a_wildcard_is_a_pattern_and_a_name() -> None:
    control = Admission()
    control.put(Pause(task("part-[0-9]"), "p", None))
    assert not control.try_acquire(key("part-[0-9]"))
    assert not control.try_acquire(key("part-7"))
    assert control.try_acquire(key("part-x"))


def test_a_limit_counts_the_tasks_that_ran_before_its_first_use() -> None:
    control = Admission()
    for _ in range(3):
        assert control.try_acquire(key("a"))
    control.put(Concurrency(task("a"), "c", None, 3))
    control.release(key("a"))
    assert control.try_acquire(key("a"))
    assert not control.try_acquire(key("a"))
    control.release(key("a"))
    control.reacquire(key("a"))
    assert not control.try_acquire(key("a"))


def test_close_ends_all_constraints() -> None:
    control = with_many_constraints(Pause(Scope("global"), "p", None))
    assert not control.try_acquire(key("other-1"))
    control.close()
    assert control.try_acquire(key("other-1"))
    assert control.try_acquire(key("part-1-x"))
