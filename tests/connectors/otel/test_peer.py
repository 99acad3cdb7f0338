"""For how many seconds a flush waits, by a clock that the test sets."""

import math

import pytest

from cascade.connectors.otel._peer import Peer
from cascade.connectors.otel._transport import Reply

DEAD = Reply("retry", "down", dead=True)

pytestmark = pytest.mark.usefixtures("real_limits")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answered(peer: Peer, clock: Clock, reply: Reply, *, after: float = 0.0) -> None:
    began = clock.now
    peer.ask(began)
    clock.now += after
    peer.record(reply, began)


def test_one_that_never_answered_gets_nine_tenths_of_a_second_from_the_first_request(clock: Clock) -> None:
    peer = Peer(clock)
    assert peer.patience(100.0) == math.inf
    peer.ask(103.0)
    assert peer.patience(100.0) == pytest.approx(103.9)
    assert peer.patience(105.0) == pytest.approx(105.9)


def test_one_that_answered_has_the_whole_time(clock: Clock) -> None:
    peer = Peer(clock)
    answered(peer, clock, Reply("accepted"), after=0.5)
    peer.ask(clock.now)
    assert peer.patience(100.0) == math.inf


def test_one_that_failed_gets_half_a_second_from_the_first_failure_or_the_start(clock: Clock) -> None:
    peer = Peer(clock)
    answered(peer, clock, Reply("accepted"))
    clock.now = 200.0
    answered(peer, clock, DEAD)
    assert peer.patience(100.0) == pytest.approx(200.5)
    assert peer.patience(300.0) == pytest.approx(300.5)


def test_two_failures_end_a_flush_that_began_before_the_second_request(clock: Clock) -> None:
    peer = Peer(clock)
    answered(peer, clock, DEAD)
    assert not peer.is_hopeless(100.0, 130.0)
    clock.now = 101.0
    answered(peer, clock, DEAD)
    assert peer.is_hopeless(100.0, 130.0)
    assert not peer.is_hopeless(102.0, 130.0)


def test_one_that_asks_to_be_tried_after_the_flush_ends_it(clock: Clock) -> None:
    peer = Peer(clock)
    answered(peer, clock, Reply("retry", "busy", retry_after=40.0, dead=True))
    assert peer.is_hopeless(100.0, 130.0)
    assert not peer.is_hopeless(100.0, 150.0)
    assert peer.patience(100.0) == pytest.approx(140.5)


def test_an_answer_that_takes_long_holds_back_no_task(clock: Clock) -> None:
    peer = Peer(clock)
    assert peer.is_alive
    peer.ask(100.0)
    clock.now = 100.8
    assert peer.is_alive
    clock.now = 100.9
    assert not peer.is_alive
    peer.record(Reply("accepted"), 100.0)
    assert peer.latency == pytest.approx(0.9)
    peer.ask(clock.now)
    clock.now += 2.6
    assert peer.is_alive
    clock.now += 0.2
    assert not peer.is_alive
