"""Measurement of the rate, throttling, and the limits of queued messages."""

import math
import time

import pytest

from cascade.connectors.mqtt.backpressure import FLOOR, MAX_DELAY, RATE_WINDOWS, Backpressure, Rate, Throttle
from cascade.connectors.mqtt.outbox import Outbox, OutgoingMessage


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_rate_is_unknown_before_the_first_interval_ends(now: list[float]) -> None:
    rate = Rate()
    seen = []
    for seconds, done in ((0.0, 0), (0.2, 100), (0.3, 200)):
        now[0] += seconds
        rate.measure(done, is_saturated=True)
        seen.append(rate.value)
    assert seen == [math.inf, math.inf, pytest.approx(400)]


def test_an_interval_without_queued_messages_is_ignored(now: list[float]) -> None:
    rate = Rate()
    for step in range(20):
        now[0] += 0.2
        rate.measure(step, is_saturated=step % 2 == 0)
    assert rate.value == math.inf


def test_the_highest_rate_of_the_last_intervals_counts(now: list[float]) -> None:
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
def test_the_limit_is_the_number_of_messages_sent_in_half_a_flush(now: list[float], speed: int, most: int) -> None:
    outbox = Outbox()
    backpressure = Backpressure(outbox, flush_timeout=4.0)
    for _ in range(speed + most + 1):
        outbox.put(OutgoingMessage("t", b"x", 1))
    assert not backpressure.is_full, "the rate is unknown"
    backpressure.measure()
    now[0] += 1.0
    outbox.settle(outbox.take(speed, speed))
    backpressure.measure()
    assert (outbox.backlog, backpressure.is_full, backpressure.is_above_low_mark) == (most + 1, True, True)
    outbox.settle(outbox.take(1, 1))
    assert (backpressure.is_full, backpressure.is_above_low_mark) == (False, True)
    outbox.settle(outbox.take(most // 2, most // 2))
    assert (backpressure.is_full, backpressure.is_above_low_mark) == (False, False)


@pytest.fixture
def throttle(now: list[float], monkeypatch: pytest.MonkeyPatch) -> Throttle:
    monkeypatch.setattr("cascade.connectors.mqtt.backpressure.random_factor", lambda: 1.0)
    return Throttle()


def send_round(throttle: Throttle, now: list[float], *, accepted: int) -> tuple[float, float]:
    """Send the allowed messages, of which the broker accepts `accepted`. Return their number, and the pause after them."""
    room = throttle.room()
    throttle.record_sent(int(min(room, 1_000)))
    throttle.record_accepted(accepted, is_acknowledged=accepted > 0)
    if accepted < room:
        throttle.record_refusal()
        throttle.record_refusal()
    pause = throttle.pause
    now[0] += pause + 0.001
    return room, round(pause, 3)


def test_pauses_grow_until_a_message_is_accepted(throttle: Throttle, now: list[float]) -> None:
    seen = [send_round(throttle, now, accepted=0) for _ in range(10)]
    assert seen[0] == (math.inf, 0.1)
    assert [room for room, _ in seen[1:]] == [8] * 9
    assert [pause for _, pause in seen[1:]] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, *[MAX_DELAY] * 4], rel=0.05)
    assert send_round(throttle, now, accepted=1) == (8, 0.1), "the pauses begin again"


def test_each_round_grows_by_a_quarter_up_to_500_messages(throttle: Throttle, now: list[float]) -> None:
    send_round(throttle, now, accepted=0)
    seen = [send_round(throttle, now, accepted=min(50, int(throttle.room())))[0] for _ in range(9)]
    assert seen == [8, 18, 30, 45, 64, 70, 70, 70, 70]
    while (room := throttle.room()) < math.inf:
        assert send_round(throttle, now, accepted=int(room)) == (room, 0.1), "a round has a fixed duration"
    assert room == math.inf
    assert not throttle.is_active


def test_a_broker_that_refuses_all_messages_delays_tasks_for_flush_timeout(now: list[float]) -> None:
    outbox = Outbox()
    backpressure = Backpressure(outbox, flush_timeout=4.0)
    for _ in range(FLOOR):
        outbox.put(OutgoingMessage("t", b"x", 1))
    backpressure.record_refusal()
    assert not backpressure.is_full, "the present number may be queued"
    outbox.put(OutgoingMessage("t", b"x", 1))
    seen = []
    for _ in range(3):
        seen.append((backpressure.is_full, backpressure.is_above_low_mark))
        now[0] += 2.1
        backpressure.record_refusal()
    assert seen == [(True, True), (True, True), (False, False)]
    backpressure.throttle.record_accepted(1, is_acknowledged=True)
    assert backpressure.is_full


@pytest.mark.parametrize(("is_refused", "most"), [(True, 200), (False, math.inf)])
def test_time_without_a_connection_counts_only_after_a_refusal(is_refused: bool, most: float, now: list[float]) -> None:
    outbox = Outbox()
    backpressure = Backpressure(outbox, flush_timeout=4.0)
    for _ in range(10_000):
        outbox.put(OutgoingMessage("t", b"x", 1))
    backpressure.measure()
    if is_refused:
        backpressure.record_refusal()
    now[0] += 1.0
    backpressure.restart()
    outbox.settle(outbox.take(100, 100))
    backpressure.measure()
    assert backpressure.is_full == (outbox.backlog > most), "at 100 per second, two seconds may be queued"
