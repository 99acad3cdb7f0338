"""How long a run waits for its broker, with a clock of the test."""

import time

import pytest

from cascade.connectors.mqtt.health import REFUSED_DELAY, SHORT_TIMEOUT, ConnectionHealth

pytestmark = pytest.mark.usefixtures("real_limits")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def health(real_limits: None) -> ConnectionHealth:
    return ConnectionHealth()


def should_stop_after(health: ConnectionHealth, now: list[float], seconds: float) -> bool:
    start, now[0] = now[0], now[0] + seconds
    return health.should_stop_waiting(start)


def test_the_first_wait_for_an_answer_is_long_and_later_ones_are_short(
    health: ConnectionHealth, now: list[float]
) -> None:
    assert not should_stop_after(health, now, 0.9)
    assert should_stop_after(health, now, 1.1)
    health.record_failed_wait()
    assert health.wait_limit == SHORT_TIMEOUT
    assert should_stop_after(health, now, 0.2)
    health.record_connected()
    assert health.wait_limit == 1.0


def test_a_connected_broker_without_activity_has_one_second(health: ConnectionHealth, now: list[float]) -> None:
    health.record_connected()
    assert not should_stop_after(health, now, 60.0)
    health.record_silence(0.9)
    assert not should_stop_after(health, now, 60.0)
    health.record_silence(0.2)
    assert should_stop_after(health, now, 1.1)
    health.record_activity()
    assert not should_stop_after(health, now, 60.0)


def test_there_is_no_wait_after_a_refusal(health: ConnectionHealth, now: list[float]) -> None:
    start, now[0] = now[0], now[0] + 0.01
    health.record_failure("connection refused", is_refused=False)
    assert health.should_stop_waiting(start)
    assert health.is_dead


def test_there_is_a_wait_of_one_second_after_a_lost_connection(health: ConnectionHealth, now: list[float]) -> None:
    health.record_connected()
    health.record_loss("gone")
    start, now[0] = now[0], now[0] + 0.9
    health.record_failure("connection refused", is_refused=False)
    assert not health.should_stop_waiting(start)
    now[0] += 0.2
    assert health.should_stop_waiting(start)


def test_delays_grow_and_are_longest_after_a_refusal(health: ConnectionHealth, now: list[float]) -> None:
    assert [health.next_delay() for _ in range(2)] == [0.0, 0.0]
    assert all(0.0 <= health.next_delay() <= min(10.0, 0.1 * 2**number) for number in range(20))
    health.record_failure("not authorized", is_refused=True)
    assert health.next_delay() == REFUSED_DELAY
