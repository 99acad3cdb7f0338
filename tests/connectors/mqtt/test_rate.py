"""A rate is only what was measured while the broker always had something to do."""

import math
import time

import pytest

from cascade.connectors.mqtt.outbox import FLOOR, RATE_WINDOWS, Backpressure, Outbox, OutgoingMessage, Rate


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_it_is_not_known_before_a_window_is_over(now: list[float]) -> None:
    rate = Rate()
    assert not rate.measure(0, is_saturated=True)
    now[0] += 0.2
    assert not rate.measure(100, is_saturated=True)
    assert rate.value == math.inf
    now[0] += 0.3
    assert rate.measure(200, is_saturated=True)
    assert rate.value == pytest.approx(400)


def test_a_window_in_which_nothing_waited_does_not_count(now: list[float]) -> None:
    rate = Rate()
    for step in range(20):
        now[0] += 0.2
        assert not rate.measure(step, is_saturated=step % 2 == 0)
    assert rate.value == math.inf


def test_nor_does_one_in_which_the_connection_was_lost(now: list[float]) -> None:
    rate = Rate()
    rate.measure(0, is_saturated=True)
    now[0] += 60.0
    rate.restart()
    assert not rate.measure(1, is_saturated=True)
    now[0] += 0.5
    rate.measure(1_001, is_saturated=True)
    assert rate.value == pytest.approx(2_000)


def test_the_best_of_the_last_windows_counts(now: list[float]) -> None:
    rate, done = Rate(), 0
    rate.measure(done, is_saturated=True)
    seen = []
    for speed in (100, 900, *[100] * RATE_WINDOWS):
        now[0] += 1.0
        done += speed
        rate.measure(done, is_saturated=True)
        seen.append(round(rate.value))
    assert seen == [100, *[900] * RATE_WINDOWS, 100]


@pytest.mark.parametrize(("speed", "most"), [(4_000, 8_000), (10, FLOOR)])
def test_as_much_may_wait_as_half_a_flush_can_bring_over(now: list[float], speed: int, most: int) -> None:
    outbox = Outbox()
    backpressure = Backpressure(outbox, flush_timeout=4.0)
    for _ in range(speed + most + 1):
        outbox.put(OutgoingMessage("t", b"x", 1))
    assert not backpressure.is_full, "nothing is known yet"
    backpressure.measure()
    now[0] += 1.0
    outbox.settle(outbox.take(speed, speed))
    backpressure.measure()
    assert (outbox.backlog, backpressure.is_full, backpressure.is_tight) == (most + 1, True, True)
    outbox.settle(outbox.take(1, 1))
    assert (backpressure.is_full, backpressure.is_tight) == (False, True)
    outbox.settle(outbox.take(most // 2, most // 2))
    assert (backpressure.is_full, backpressure.is_tight) == (False, False)
