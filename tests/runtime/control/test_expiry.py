import asyncio
import tracemalloc
from typing import Any

import pytest

from cascade.runtime.control.constraint import ConstraintKey
from cascade.runtime.control.expiry import LONGEST_TIMER, ExpiryTimer
from tests.lab.waiting import with_timeout


class Expired:
    """A timer with a clock that the test sets, and the keys that have expired."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.keys: list[ConstraintKey] = []
        self._more = asyncio.Event()
        self.timer = ExpiryTimer(lambda: self.now, self._expire)

    def _expire(self, key: ConstraintKey) -> None:
        self.keys.append(key)
        self._more.set()

    async def count(self, count: int) -> None:
        while len(self.keys) < count:
            self._more.clear()
            await with_timeout(self._more.wait())


def key(number: int) -> ConstraintKey:
    return f"task/t{number}", "pause"


def record_timers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that gets the delays of all timers that are started in the event loop."""
    delays: list[float] = []
    call_later = asyncio.get_running_loop().call_later

    def counted(delay: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
        delays.append(delay)
        return call_later(delay, *args, **options)

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", counted)
    return delays


async def test_many_keys_have_one_timer_and_expire_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expired, timers = Expired(), record_timers(monkeypatch)
    for number in range(1_000):
        expired.timer.set(key(number), 1_001.0 + number)
    assert len(timers) == 1
    expired.now += 500
    expired.timer.set(key(1_000), 999.0)  # the clock was set: this one starts the timer again
    await expired.count(501)
    assert expired.keys == [key(1_000), *(key(number) for number in range(500))]


async def test_a_replaced_or_removed_time_has_no_effect() -> None:
    expired = Expired()
    expired.timer.set(key(1), 1_000.01)
    expired.timer.set(key(2), 1_000.01)
    expired.timer.set(key(3), 1_000.02)
    expired.timer.set(key(1), 2_000.0)
    expired.timer.set(key(2), None)
    expired.now = 1_000.02
    await expired.count(1)
    assert expired.keys == [key(3)]
    expired.timer.set(key(1), 1_000.01)
    await expired.count(2)
    assert expired.keys == [key(3), key(1)]


async def test_an_earlier_time_starts_the_timer_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expired, timers = Expired(), record_timers(monkeypatch)
    expired.timer.set(key(1), 1_009.0)
    expired.timer.set(key(2), 1_003.0)
    expired.timer.set(key(3), 1_005.0)
    assert timers == [9.0, 3.0]
    expired.timer.clear()
    expired.timer.set(key(4), 10_000.0)
    assert timers[2:] == [LONGEST_TIMER], "the wall clock may be set"


async def test_many_changes_of_one_key_do_not_use_memory() -> None:
    expired = Expired()
    expired.timer.set(key(1), 5_000.0)
    tracemalloc.start()
    try:
        for number in range(10_000):
            expired.timer.set(key(2), 6_000.0 + number)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 100_000, "bytes; those of 10,000 entries are ten times as many"
    expired.now = 5_000.0
    expired.timer.set(key(3), 4_000.0)
    await expired.count(2)
    assert expired.keys == [key(3), key(1)]


async def test_many_expiries_do_not_block_the_event_loop() -> None:
    expired, turns = Expired(), 0
    expired.now = 3_000.0
    for number in range(1_000):
        expired.timer.set(key(number), 2_000.0)
    while len(expired.keys) < 1_000:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 1_000 // 100, "at most 100 in one turn"
