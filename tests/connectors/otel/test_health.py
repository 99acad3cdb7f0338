"""Deadlines of flushes, with a clock that the test sets."""

import math

import pytest

from cascade.connectors.otel.health import CollectorHealth
from cascade.connectors.otel.reply import Reply

UNANSWERED = Reply("retry", "down", unanswered=True)

pytestmark = pytest.mark.usefixtures("real_limits")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answered(health: CollectorHealth, clock: Clock, reply: Reply, *, after: float = 0.0) -> None:
    began = clock.now
    health.record_request(began)
    clock.now += after
    health.record(reply, began)


def test_without_any_response_a_flush_waits_nine_tenths_of_a_second_from_the_first_request(clock: Clock) -> None:
    health = CollectorHealth(clock)
    assert health.flush_deadline(100.0) == math.inf
    health.record_request(103.0)
    assert health.flush_deadline(100.0) == pytest.approx(103.9)
    assert health.flush_deadline(105.0) == pytest.approx(105.9)


def test_after_a_response_a_flush_has_no_earlier_deadline(clock: Clock) -> None:
    health = CollectorHealth(clock)
    answered(health, clock, Reply("accepted"), after=0.5)
    health.record_request(clock.now)
    assert health.flush_deadline(100.0) == math.inf


def test_after_a_failure_a_flush_waits_half_a_second(clock: Clock) -> None:
    health = CollectorHealth(clock)
    answered(health, clock, Reply("accepted"))
    clock.now = 200.0
    answered(health, clock, UNANSWERED)
    assert health.flush_deadline(100.0) == pytest.approx(200.5)
    assert health.flush_deadline(300.0) == pytest.approx(300.5)


def test_the_flush_at_the_exit_waits_for_an_unreachable_collector(clock: Clock) -> None:
    health = CollectorHealth(clock)
    answered(health, clock, UNANSWERED)
    assert health.record_failed_flush(100.0) == "down"
    assert health.flush_deadline(200.0) == pytest.approx(200.03)
    health.begin_exit()
    assert health.flush_deadline(200.0) == pytest.approx(200.9)


def test_two_failures_end_a_flush_that_began_before_the_second_request(clock: Clock) -> None:
    health = CollectorHealth(clock)
    answered(health, clock, UNANSWERED)
    assert not health.should_end_flush(100.0, 130.0)
    clock.now = 101.0
    answered(health, clock, UNANSWERED)
    assert health.should_end_flush(100.0, 130.0)
    assert not health.should_end_flush(102.0, 130.0)


RETRYABLE = Reply("retry", "503 Service Unavailable")


def test_retryable_responses_set_no_earlier_deadline(clock: Clock) -> None:
    health = CollectorHealth(clock)
    answered(health, clock, RETRYABLE)
    assert health.flush_deadline(100.0) == math.inf
    assert not health.should_end_flush(100.0, 130.0)
    assert health.is_alive


def test_a_retry_after_the_end_of_a_flush_ends_it(clock: Clock) -> None:
    health = CollectorHealth(clock)
    answered(health, clock, Reply("retry", "busy", retry_after=40.0))
    assert health.should_end_flush(100.0, 130.0)
    assert not health.should_end_flush(100.0, 150.0)
    assert health.next_request_at(is_flushing=True) == pytest.approx(140.0)


def test_retryable_responses_delay_tasks_for_thirty_seconds(clock: Clock) -> None:
    health = CollectorHealth(clock)
    answered(health, clock, RETRYABLE)
    clock.now = 129.9
    answered(health, clock, RETRYABLE)
    assert health.is_alive
    clock.now = 130.0
    assert not health.is_alive
    answered(health, clock, Reply("accepted"))
    assert health.is_alive
    answered(health, clock, RETRYABLE)
    clock.now = 159.9
    assert health.is_alive, "the time begins anew with an answer of another kind"


def test_a_failure_does_not_restart_the_hold_timeout(clock: Clock) -> None:
    health = CollectorHealth(clock, hold_timeout=10.0)
    for reply in (RETRYABLE, UNANSWERED, RETRYABLE):
        answered(health, clock, reply)
        clock.now += 4.0
    assert not health.is_alive


def test_after_the_hold_timeout_a_flush_waits_for_one_more_response(clock: Clock) -> None:
    health = CollectorHealth(clock, hold_timeout=10.0)
    answered(health, clock, RETRYABLE)
    clock.now = 120.0
    assert not health.should_end_flush(120.0, 150.0)
    answered(health, clock, RETRYABLE)
    assert health.should_end_flush(120.0, 150.0)
    assert not health.should_end_flush(100.0, 150.0), "this flush began while tasks were delayed"


@pytest.mark.parametrize(("reply", "longest"), [(UNANSWERED, 0.1), (RETRYABLE, 1.0)])
def test_a_flush_shortens_the_backoff_less_for_an_overloaded_collector(
    reply: Reply, longest: float, clock: Clock
) -> None:
    health = CollectorHealth(clock)
    for _ in range(8):
        answered(health, clock, reply)
    assert health.next_request_at(is_flushing=False) >= 102.5
    assert health.next_request_at(is_flushing=True) == pytest.approx(100.0 + longest)


@pytest.mark.parametrize("ends", ["refused", "silent"])
def test_later_flushes_wait_briefly_for_an_unreachable_collector(ends: str, clock: Clock) -> None:
    health = CollectorHealth(clock)
    health.record_request(100.0)
    if ends == "refused":
        health.record(UNANSWERED, 100.0)
    clock.now = 101.0
    assert health.record_failed_flush(100.0) == ("down" if ends == "refused" else "no answer within 1 s")
    assert health.flush_deadline(200.0) == pytest.approx(200.03)
    clock.now = 200.0
    answered(health, clock, UNANSWERED)
    assert health.should_end_flush(200.0, 200.03), "one failure is enough"
    answered(health, clock, RETRYABLE)
    assert health.flush_deadline(200.0) == math.inf, "any answer is a sign of life"


def test_a_flush_that_is_too_short_does_not_make_a_collector_unreachable(clock: Clock) -> None:
    health = CollectorHealth(clock)
    health.record_request(100.0)
    clock.now = 101.0
    health.record(Reply("accepted"), 100.0)
    health.record_request(101.0)
    clock.now = 102.0
    health.record_failed_flush(100.0)
    assert health.flush_deadline(102.0) == math.inf


def test_a_slow_response_delays_no_task(clock: Clock) -> None:
    health = CollectorHealth(clock)
    assert health.is_alive
    health.record_request(100.0)
    clock.now = 100.8
    assert health.is_alive
    clock.now = 100.9
    assert not health.is_alive
    health.record(Reply("accepted"), 100.0)
    assert health.latency == pytest.approx(0.9)
    health.record_request(clock.now)
    clock.now += 2.6
    assert health.is_alive
    clock.now += 0.2
    assert not health.is_alive
