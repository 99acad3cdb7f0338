"""A rate is only what was measured while the broker always had something to do."""

import math
import time

import pytest

from cascade.connectors.mqtt._outbox import Letter, Outbox
from cascade.connectors.mqtt._rate import FLOOR, REMEMBERED, Gate, Rate


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_it_is_not_known_before_a_window_is_over(now: list[float]) -> None:
    rate = Rate()
    assert not rate.look(0, is_saturated=True)
    now[0] += 0.2
    assert not rate.look(100, is_saturated=True)
    assert rate.value == math.inf
    now[0] += 0.3
    assert rate.look(200, is_saturated=True)
    assert rate.value == pytest.approx(400)


def test_a_window_in_which_nothing_waited_does_not_count(now: list[float]) -> None:
    rate = Rate()
    for step in range(20):
        now[0] += 0.2
        assert not rate.look(step, is_saturated=step % 2 == 0)
    assert rate.value == math.inf


def test_nor_does_one_in_which_the_connection_was_lost(now: list[float]) -> None:
    rate = Rate()
    rate.look(0, is_saturated=True)
    now[0] += 60.0
    rate.restart()
    assert not rate.look(1, is_saturated=True)
    now[0] += 0.5
    rate.look(1_001, is_saturated=True)
    assert rate.value == pytest.approx(2_000)


def test_the_best_of_the_last_windows_counts(now: list[float]) -> None:
    rate, done = Rate(), 0
    rate.look(done, is_saturated=True)
    seen = []
    for speed in (100, 900, *[100] * REMEMBERED):
        now[0] += 1.0
        done += speed
        rate.look(done, is_saturated=True)
        seen.append(round(rate.value))
    assert seen == [100, *[900] * REMEMBERED, 100]


@pytest.mark.parametrize(("speed", "most"), [(4_000, 8_000), (10, FLOOR)])
def test_as_much_may_wait_as_half_a_flush_can_bring_over(now: list[float], speed: int, most: int) -> None:
    outbox = Outbox()
    gate = Gate(outbox, flush_timeout=4.0)
    for _ in range(speed + most + 1):
        outbox.put(Letter("t", b"x", 1))
    assert not gate.is_full, "nothing is known yet"
    gate.measure()
    now[0] += 1.0
    outbox.settle(outbox.take(speed, speed))
    gate.measure()
    assert (outbox.backlog, gate.is_full, gate.is_tight) == (most + 1, True, True)
    outbox.settle(outbox.take(1, 1))
    assert (gate.is_full, gate.is_tight) == (False, True)
    outbox.settle(outbox.take(most // 2, most // 2))
    assert (gate.is_full, gate.is_tight) == (False, False)
