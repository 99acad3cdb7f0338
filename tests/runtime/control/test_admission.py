import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.runtime.bus import CombinedBackpressure
from cascade.runtime.control.admission import Admission
from cascade.runtime.control.constraint import Concurrency, Constraint, Matcher, Pause, RateLimit, Scope
from cascade.runtime.control.limiters import AdmissionKey
from tests.lab.waiting import NEVER, until

GLOBAL = Scope("global")
A, B = AdmissionKey(("r",), "a"), AdmissionKey(("r",), "b")


def limit(count: int, scope: Scope = GLOBAL) -> Concurrency:
    return Concurrency(scope, "c", None, count)


def pause(scope: Scope = GLOBAL) -> Pause:
    return Pause(scope, "p", None)


def rate(per_second: float, burst: float = 1.0, scope: Scope = GLOBAL) -> RateLimit:
    return RateLimit(scope, "r", None, per_second, burst, "")


class Start:
    """A task that requests a permit. `by` has the reasons that it was blocked for."""

    def __init__(self, admission: Admission, key: AdmissionKey) -> None:
        self.key = key
        self.by: list[str] = []
        self.counted = False
        self.task = asyncio.ensure_future(admission.acquire(key, self._blocked, time.time_ns))

    def _blocked(self, reason: str, **_: Any) -> None:
        self.by.append(reason)

    def cancel(self) -> None:
        self.task.cancel()

    @property
    def has_started(self) -> bool:
        return self.task.done() and not self.task.cancelled()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_without_constraints_all_tasks_start() -> None:
    admission = Admission()
    assert all(admission.try_acquire(A) for _ in range(1_000))


async def test_a_pause_blocks_until_it_is_removed() -> None:
    admission = Admission()
    admission.put(pause())
    assert not admission.try_acquire(A)
    starts = [Start(admission, A) for _ in range(200)]
    await settle()
    assert not any(start.has_started for start in starts)
    admission.remove(pause())
    await settle()
    assert all(start.has_started for start in starts)
    assert starts[0].by == ["paused"]


async def test_a_limit_counts_the_tasks_that_were_running_before() -> None:
    admission = Admission()
    assert all(admission.try_acquire(A) for _ in range(3))
    admission.put(limit(2))
    first, second = Start(admission, A), Start(admission, B)
    for _ in range(2):
        admission.release(A)
    await settle()
    assert (first.has_started, second.has_started) == (True, False)
    admission.release(A)
    await settle()
    assert second.has_started


async def test_tasks_start_in_the_order_of_their_arrival() -> None:
    admission = Admission()
    admission.put(limit(1))
    assert admission.try_acquire(A)
    first, second = Start(admission, A), Start(admission, A)
    await settle()
    admission.release(A)
    assert not admission.try_acquire(A), "other tasks wait"
    await settle()
    assert (first.has_started, second.has_started) == (True, False)


async def test_waiting_tasks_keep_their_order_when_the_limit_changes() -> None:
    admission = Admission()
    admission.put(limit(1))
    assert admission.try_acquire(A)
    starts = [Start(admission, A) for _ in range(4)]
    await settle()
    admission.put(limit(3))
    await settle()
    assert [start.has_started for start in starts] == [True, True, False, False]


async def test_all_matching_constraints_apply_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade.runtime.control.wait_queue.RENOTIFY", 0)
    admission = Admission()
    admission.put(limit(2))
    admission.put(limit(1, Scope("task", "a")))
    admission.put(pause(Scope("task", "b")))
    assert admission.try_acquire(A)
    second_a, b, c = Start(admission, A), Start(admission, B), Start(admission, AdmissionKey(("r",), "c"))
    await settle()
    assert (second_a.has_started, b.has_started, c.has_started) == (False, False, True)
    admission.release(A)
    await settle()
    assert second_a.has_started
    admission.remove(pause(Scope("task", "b")))
    await settle()
    assert (b.has_started, b.by) == (False, ["paused", "concurrency"])
    admission.release(A)
    await settle()
    assert b.has_started


class SmallQueue:
    """Backpressure that is full after ten starts, and has room again after a call of `room`."""

    def __init__(self) -> None:
        self.left, self.calls = 10, 0

    def is_full(self) -> bool:
        self.left -= 1
        return self.left <= 0

    async def room(self) -> None:
        await asyncio.sleep(0)
        self.left, self.calls = 10, self.calls + 1


async def test_backpressure_delays_the_start_of_waiting_tasks() -> None:
    source = SmallQueue()
    admission = Admission(CombinedBackpressure(source))
    admission.put(pause())
    starts = [Start(admission, A) for _ in range(100)]
    await settle()
    admission.remove(pause())
    await asyncio.gather(*(one.task for one in starts))
    assert source.calls >= 10
    admission.put(pause())
    late = Start(admission, A)
    await settle()
    source.left = 0
    admission.remove(pause())
    await asyncio.sleep(0)
    admission.close()
    await settle()
    assert not late.has_started
    late.cancel()


async def test_queues_take_turns() -> None:
    admission, order = Admission(), list[AdmissionKey]()
    admission.put(limit(1))
    assert admission.try_acquire(A)
    starts = [Start(admission, key) for key in (A, A, A, B, B)]
    await settle()
    last = A
    while len(order) < len(starts):
        admission.release(last)
        await settle()
        (fresh,) = [one for one in starts if one.has_started and not one.counted]
        fresh.counted = True
        last = fresh.key
        order.append(last)
    assert order == [A, B, A, B, A]


async def test_frequent_changes_notify_each_waiting_task_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade.runtime.control.wait_queue.RENOTIFY", NEVER)
    monkeypatch.setattr("cascade.runtime.control.wait_queue.RENOTIFY_PAUSE", 0)
    admission = Admission()
    admission.put(limit(1))
    assert admission.try_acquire(A)
    starts = [Start(admission, A) for _ in range(300)]
    await settle()
    admission.release(A)
    for _ in range(50):
        admission.put(pause())
        await settle()
        admission.remove(pause())
        await asyncio.sleep(0)
        for one in [one for one in starts if one.has_started and not one.counted]:
            one.counted = True
            admission.release(A)
    admission.put(pause())
    await settle()
    waiting = [one for one in starts if not one.has_started]
    assert waiting
    assert all(one.by == ["concurrency"] for one in waiting)
    loop = asyncio.get_running_loop()
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + NEVER)
    await until(lambda: all(len(one.by) > 1 for one in waiting))
    assert all(one.by == ["concurrency", "paused"] for one in waiting)
    for constraint in (pause(), limit(1)):
        admission.remove(constraint)
    _, waits = await waiting[0].task
    assert waits[0].reason == "concurrency"
    assert {wait.reason for wait in waits} == {"concurrency", "paused"}
    assert all(one.end_ns == other.start_ns for one, other in itertools.pairwise(waits))


async def test_a_change_for_many_queues_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade.runtime.control.wait_queue.RENOTIFY", 0)
    monkeypatch.setattr("cascade.runtime.control.wait_queue.RENOTIFY_PAUSE", 0)
    admission = Admission()
    admission.put(pause())
    starts = [Start(admission, AdmissionKey(("r",), f"t{number}")) for number in range(1_000)]
    await settle()
    admission.put(Pause(GLOBAL, "another", None))
    notified = [1_000]
    while notified[-1] < 2_000:
        await asyncio.sleep(0)
        notified.append(sum(len(one.by) for one in starts))
    assert max(after - before for before, after in itertools.pairwise(notified)) <= 100, "in one turn of the event loop"
    admission.remove(pause())
    await asyncio.gather(*(one.task for one in starts))


async def test_a_rate_admits_tasks_over_time_and_the_first_one_at_once() -> None:
    admission = Admission()
    admission.put(rate(1 / 3600))
    assert admission.try_acquire(A)
    late = Start(admission, A)
    await settle()
    assert not late.has_started
    admission.put(rate(1_000))
    await late.task
    assert late.by == ["rate_limit"]


async def test_a_task_that_did_not_start_uses_no_token_of_a_rate() -> None:
    admission = Admission()
    admission.put(rate(1 / 3600))
    assert admission.try_acquire(A)
    admission.release(A, unused=True)
    assert admission.try_acquire(A)
    admission.release(A)
    assert not admission.try_acquire(A)


async def test_a_cancelled_task_leaves_the_queue_and_returns_its_grant() -> None:
    admission = Admission()
    admission.put(limit(1))
    assert admission.try_acquire(A)
    gone, next_one = Start(admission, A), Start(admission, A)
    await settle()
    gone.task.cancel()
    await settle()
    admission.release(A)
    await settle()
    assert next_one.has_started
    last = Start(admission, A)
    await settle()
    admission.release(A)
    # The task is granted in a callback of the loop, and cancelled before it continues.
    asyncio.get_running_loop().call_soon(last.task.cancel)
    await settle()
    assert last.task.cancelled()
    assert admission.try_acquire(A)


async def test_a_pause_applies_to_a_map_and_limits_to_its_items_only() -> None:
    admission = Admission()
    whole = AdmissionKey(("r",), "map(a)", is_map=True)
    admission.put(limit(1))
    admission.put(rate(1 / 3600))
    assert all(admission.try_acquire(whole) for _ in range(3))
    assert admission.try_acquire(A)
    admission.put(pause())
    assert not admission.try_acquire(whole)


async def test_a_suspended_task_continues_with_or_without_room() -> None:
    admission = Admission()
    admission.put(limit(1))
    assert admission.try_acquire(A)
    admission.release(A)
    assert admission.try_acquire(B)
    admission.reacquire(A)
    waiting = Start(admission, A)
    admission.release(B)
    await settle()
    assert not waiting.has_started
    admission.release(A)
    await settle()
    assert waiting.has_started


async def test_many_starts_do_not_block_the_event_loop() -> None:
    admission, turns = Admission(), 0
    admission.put(pause())
    starts = [Start(admission, A) for _ in range(2_000)]
    await settle()
    admission.remove(pause())
    while not all(start.has_started for start in starts):
        turns += 1
        await asyncio.sleep(0)
    assert turns > 20


_scopes = st.sampled_from([GLOBAL, Scope("run", "r"), Scope("task", "a"), Scope("task", "?"), Scope("task", "b*")])
_constraints: st.SearchStrategy[Constraint] = st.builds(limit, st.integers(1, 4), _scopes) | st.builds(pause, _scopes)
_keys = st.sampled_from([A, B, AdmissionKey(("s",), "a")])
_steps = st.one_of(
    st.tuples(st.just("put"), _constraints),
    st.tuples(st.just("remove"), _constraints),
    st.tuples(st.just("start"), _keys),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
)


@settings(max_examples=150)
@given(st.lists(_steps, max_size=50))
def test_in_any_order_of_steps_limits_hold_and_all_tasks_start(steps: list[tuple[str, Any]]) -> None:
    asyncio.run(_run_steps(steps))


async def _run_steps(steps: list[tuple[str, Any]]) -> None:  # noqa: C901 - one branch per step
    admission, starts, running = Admission(), list[Start](), list[Start]()
    constraints: dict[tuple[str, str], Constraint] = {}

    def pick(among: list[Start], index: int, use: Callable[[Start], None]) -> None:
        if among:
            use(among[index % len(among)])

    def end(start: Start) -> None:
        running.remove(start)
        admission.release(start.key)

    for step, value in steps:
        before = list(running)
        if step == "put":
            admission.put(value)
            constraints[str(value.scope), value.type] = value
        elif step == "remove":
            admission.remove(value)
            constraints.pop((str(value.scope), value.type), None)
        elif step == "start":
            starts.append(Start(admission, value))
        elif step == "end":
            pick(running, value, end)
        else:
            pick([one for one in starts if not one.task.done()], value, Start.cancel)
        await settle()
        for one in [one for one in starts if one.has_started]:
            starts.remove(one)
            running.append(one)
        _check(constraints, before, running)
    for constraint in list(constraints.values()):
        admission.remove(constraint)
    await settle()
    assert all(one.task.done() for one in starts)


def _check(constraints: dict[tuple[str, str], Constraint], before: list[Start], now: list[Start]) -> None:
    fresh = [one for one in now if one not in before]
    for constraint in constraints.values():
        covers = Matcher(constraint.scope)
        covered = [one for one in now if covers(*one.key[:2])]
        started = [one for one in fresh if covers(*one.key[:2])]
        if isinstance(constraint, Pause):
            assert not started
        if isinstance(constraint, Concurrency) and started:
            assert len(covered) <= constraint.limit


@pytest.mark.parametrize("count", [1, 3, 7])
async def test_the_number_of_running_tasks_never_exceeds_the_limit(count: int) -> None:
    admission, running, most = Admission(), 0, 0
    admission.put(limit(count))

    async def work() -> None:
        nonlocal running, most
        await admission.acquire(A, lambda **_: None, time.time_ns)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        admission.release(A)

    await asyncio.gather(*(work() for _ in range(500)))
    assert most == count
