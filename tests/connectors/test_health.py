"""How long a run waits for its broker, with a clock of the test."""

import time

import pytest

from cascade.connectors._health import REFUSED_DELAY, SHORT_TIMEOUT, ConnectionHealth

pytestmark = pytest.mark.usefixtures("real_limits")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def peer(real_limits: None) -> ConnectionHealth:
    return ConnectionHealth()


def is_hopeless_after(peer: ConnectionHealth, now: list[float], seconds: float) -> bool:
    start, now[0] = now[0], now[0] + seconds
    return peer.should_stop_waiting(start)


def test_the_first_wait_for_an_answer_is_long_and_later_ones_are_short(
    peer: ConnectionHealth, now: list[float]
) -> None:
    assert not is_hopeless_after(peer, now, 0.9)
    assert is_hopeless_after(peer, now, 1.1)
    peer.record_failed_wait()
    assert peer.wait_limit == SHORT_TIMEOUT
    assert is_hopeless_after(peer, now, 0.2)
    peer.record_connected()
    assert peer.wait_limit == 1.0


def test_a_connected_broker_without_activity_has_one_second(peer: ConnectionHealth, now: list[float]) -> None:
    peer.record_connected()
    assert not is_hopeless_after(peer, now, 60.0)
    peer.record_silence(0.9)
    assert not is_hopeless_after(peer, now, 60.0)
    peer.record_silence(0.2)
    assert is_hopeless_after(peer, now, 1.1)
    peer.record_activity()
    assert not is_hopeless_after(peer, now, 60.0)


def test_there_is_no_wait_after_a_refusal(peer: ConnectionHealth, now: list[float]) -> None:
    start, now[0] = now[0], now[0] + 0.01
    peer.record_failure("connection refused", is_refused=False)
    assert peer.should_stop_waiting(start)
    assert peer.is_dead


def test_there_is_a_wait_of_one_second_after_a_lost_connection(peer: ConnectionHealth, now: list[float]) -> None:
    peer.record_connected()
    peer.record_loss("gone")
    start, now[0] = now[0], now[0] + 0.9
    peer.record_failure("connection refused", is_refused=False)
    assert not peer.should_stop_waiting(start)
    now[0] += 0.2
    assert peer.should_stop_waiting(start)


def test_delays_grow_and_are_longest_after_a_refusal(peer: ConnectionHealth, now: list[float]) -> None:
    assert [peer.next_delay() for _ in range(2)] == [0.0, 0.0]
    assert all(0.0 <= peer.next_delay() <= min(10.0, 0.1 * 2**number) for number in range(20))
    peer.record_failure("not authorized", is_refused=True)
    assert peer.next_delay() == REFUSED_DELAY
