"""Admission control with very many constraints: counts of evaluations, not seconds."""

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
    """Number of scopes that were compared with a task, and of limiters that were made."""
    counts: Counter[str] = Counter()
    make = limiters.limiter_of

    class Counted(Matcher):
        def __call__(self, run_ids: tuple[str, ...], name: str) -> bool:
            counts["compared"] += 1
            return super().__call__(run_ids, name)

    def made(*args: Any) -> Any:
        counts["made"] += 1
        return make(*args)

    monkeypatch.setattr(limiters, "Matcher", Counted)
    monkeypatch.setattr(admission, "limiter_of", made)
    return counts


def full(own: Constraint | None = None) -> Admission:
    """Very many constraints for single tasks, ten for patterns and one for a run, and one more."""
    found = Admission()
    for number in range(MANY // 3):
        found.put(Pause(task(f"other-{number}"), "p", None))
        found.put(Concurrency(task(f"other-{number}"), "c", None, 1))
        found.put(RateLimit(task(f"other-{number}"), "r", None, 1.0, 1.0, "1/s"))
    for number in range(9):
        found.put(Pause(task(f"part-{number}-*"), "p", None))
    found.put(Concurrency(Scope("run", "another"), "c", None, 1))
    if own is not None:
        found.put(own)
    return found


def test_the_constraints_for_other_tasks_cost_a_start_nothing(work: Counter[str]) -> None:
    found = full()
    assert work == {"made": 10}, "of the patterns and of the run"
    for _ in range(100):
        assert found.try_acquire(key("a"))
    assert work == {"made": 10, "compared": 10}
    for number in range(MANY // 3, MANY // 3 + 1_000):
        found.put(Pause(task(f"other-{number}"), "p", None))
        assert found.try_acquire(key("a"))
    for _ in range(1_100):
        found.release(key("a"))
    assert work == {"made": 10, "compared": 10}


def test_a_pattern_is_compared_once_with_each_name(work: Counter[str]) -> None:
    found = full()
    for number in range(50):
        for _ in range(10):
            assert found.try_acquire(key(f"name-{number}"))
    assert work["compared"] == 50 * 10
    found.put(Pause(task("name-1?"), "p", None))
    assert not found.try_acquire(key("name-12"))
    assert found.try_acquire(key("name-2"))
    assert work["compared"] == 50 * 10 + 2 * 11


@pytest.mark.parametrize(
    "own",
    [Pause(task("a"), "p", None), Concurrency(task("a"), "c", None, 2), RateLimit(task("a"), "r", None, 1e-9, 2, "")],
)
def test_the_constraint_for_a_task_is_found_among_them(own: Constraint, work: Counter[str]) -> None:
    found = full(own)
    started = sum(found.try_acquire(key("a")) is not None for _ in range(5))
    assert started == (0 if isinstance(own, Pause) else 2)
    assert work["made"] == 11
    found.remove(own)
    assert found.try_acquire(key("a"))


def test_several_types_for_one_name_apply_together_and_end_one_by_one() -> None:
    pause, limit = Pause(task("a"), "p", None), Concurrency(task("a"), "c", None, 1)
    found = Admission()
    found.put(limit)
    found.put(pause)
    assert not found.try_acquire(key("a"))
    found.remove(pause)
    assert found.try_acquire(key("a"))
    assert not found.try_acquire(key("a"))
    found.put(Concurrency(task("a"), "c", None, 2))
    assert found.try_acquire(key("a"))
    found.remove(limit)
    found.remove(limit)
    assert found.try_acquire(key("a"))


def test_a_name_with_a_wildcard_is_a_pattern_and_a_name() -> None:
    found = Admission()
    found.put(Pause(task("part-[0-9]"), "p", None))
    assert not found.try_acquire(key("part-[0-9]"))
    assert not found.try_acquire(key("part-7"))
    assert found.try_acquire(key("part-x"))


def test_a_limit_counts_the_tasks_that_ran_before_its_first_use() -> None:
    found = Admission()
    for _ in range(3):
        assert found.try_acquire(key("a"))
    found.put(Concurrency(task("a"), "c", None, 3))
    found.release(key("a"))
    assert found.try_acquire(key("a"))
    assert not found.try_acquire(key("a"))
    found.release(key("a"))
    found.reacquire(key("a"))
    assert not found.try_acquire(key("a"))


def test_all_constraints_end_at_the_close() -> None:
    found = full(Pause(Scope("global"), "p", None))
    assert not found.try_acquire(key("other-1"))
    found.close()
    assert found.try_acquire(key("other-1"))
    assert found.try_acquire(key("part-1-x"))
