"""Tests of the schedule with the messages of real runs and a clock of the test."""

import time
from typing import Any

import pytest

import cascade as cs
from cascade.telemetry.state_schedule import EXPIRY, FINAL_EXPIRY, INTERVAL, RunStates, ScheduledState
from cascade.telemetry.topics import state_topic
from cascade.telemetry.wire import loads
from cascade.testing import MemoryConnector
from tests.lab.workflows import recorded


def state_of(update: ScheduledState) -> dict[str, Any]:
    return loads(update.body(1 << 20))


class Clock:
    """Takes and settles the updates that are due, like the network thread."""

    def __init__(self) -> None:
        self.states = RunStates()
        self.now = time.monotonic()

    def add(self, *messages: Any) -> None:
        for message in messages:
            self.states.add(message.topic, message.payload)

    def taken(self, after: float = 0.0) -> list[ScheduledState]:
        self.now += after
        updates = self.states.take(self.now, 10_000)
        for update in updates:
            self.states.settle(update)
        return updates


def test_a_run_that_starts_is_published_at_once_and_then_once_in_an_interval() -> None:
    started, running, completed, _ = recorded()
    clock = Clock()
    clock.add(started)
    (first,) = clock.taken()
    assert first.topic == state_topic("local", "default", started.payload["run_id"])
    assert (state_of(first)["status"], first.expiry, first.number) == ("running", EXPIRY, -1)
    clock.add(running)
    assert clock.taken(0.4 * INTERVAL) == []
    assert 0 < clock.states.delay(clock.now) <= 0.6 * INTERVAL + 0.01
    clock.add(completed)
    (second,) = clock.taken(0.6 * INTERVAL)
    assert state_of(second)["counts"]["completed"] == 1
    assert clock.taken(10 * INTERVAL) == []


def test_the_final_state_is_published_at_once() -> None:
    started, *others = recorded()
    clock = Clock()
    clock.add(started)
    clock.taken()
    clock.add(*others)
    (final,) = clock.taken()
    assert (state_of(final)["status"], final.expiry, final.number) == ("success", FINAL_EXPIRY, 0)
    assert clock.taken(EXPIRY) == []
    assert clock.states.has_settled(clock.states.ended)


def test_only_the_final_state_follows_an_unacknowledged_update() -> None:
    started, running, *others = recorded()
    clock = Clock()
    clock.add(started)
    (out,) = clock.states.take(clock.now, 10_000)
    clock.add(running)
    assert clock.taken(5 * INTERVAL) == []
    clock.add(*others)
    (final,) = clock.states.take(clock.now, 10_000)
    assert final.number == 0
    clock.states.settle(out)
    assert not clock.states.has_settled(1)
    clock.states.settle(final)
    assert clock.states.has_settled(1)


def test_an_unchanged_state_is_published_again_before_it_expires() -> None:
    clock = Clock()
    clock.add(recorded()[0])
    clock.taken()
    clock.taken(INTERVAL)
    assert INTERVAL < clock.states.delay(clock.now) < EXPIRY
    assert len(clock.taken(clock.states.delay(clock.now) + 1)) == 1


def test_all_states_are_published_again_over_a_new_connection() -> None:
    active, ended = recorded(), recorded()
    clock = Clock()
    clock.add(active[0], *ended)
    assert len(clock.states.take(clock.now, 10_000)) == 2
    clock.states.restart()
    assert {(u.number >= 0, u.topic) for u in clock.taken(INTERVAL)} == {
        (False, active[0].topic.replace("events", "state")),
        (True, ended[0].topic.replace("events", "state")),
    }


def test_a_refused_update_is_sent_again_after_the_interval_with_retry_only() -> None:
    clock = Clock()
    clock.add(*recorded())
    (final,) = clock.states.take(clock.now, 10_000)
    clock.states.settle(final, "Not authorized", retry=True)
    assert clock.states.take(clock.now, 10_000) == []
    clock.now += INTERVAL
    (again,) = clock.states.take(clock.now, 10_000)
    clock.states.settle(again, "Not authorized")
    assert clock.taken(INTERVAL) == []
    assert clock.states.has_settled(1)


def test_states_pause_until_clear_after_a_refusal() -> None:
    clock = Clock()
    started, *others = recorded()
    clock.add(started)
    (first,) = clock.states.take(clock.now, 10_000)
    clock.states.pause("Not authorized")
    clock.states.settle(first, "Not authorized")
    clock.add(*others, *recorded())
    clock.states.restart()
    assert clock.taken(10 * INTERVAL) == []
    assert clock.states.has_settled(2)
    clock.states.clear()
    clock.add(*recorded())
    assert len(clock.taken()) == 1


def test_states_pause_for_some_time() -> None:
    clock = Clock()
    clock.add(recorded()[0])
    clock.states.pause("the connection broke", 60.0)
    clock.states.restart()
    clock.add(*recorded())
    assert clock.taken(60.0 - 2 * INTERVAL) == []
    assert clock.states.has_settled(1)
    assert len(clock.taken(3 * INTERVAL)) == 1


def test_a_late_final_state_expires_one_minute_after_the_end() -> None:
    clock = Clock()
    clock.add(*recorded())
    clock.now = time.monotonic() + 20
    (update,) = clock.states.take(clock.now, 10_000)
    assert FINAL_EXPIRY - 21 <= update.expiry <= FINAL_EXPIRY - 19
    clock.states.restart()
    clock.now += FINAL_EXPIRY
    (update,) = clock.states.take(clock.now, 10_000)
    assert update.body(1 << 20) == b"", "it clears the retained state"


def test_the_number_of_waiting_final_states_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade.telemetry.state_schedule.MAX_FINAL", 10)
    clock = Clock()
    for _ in range(15):
        clock.add(*recorded())
    assert clock.states.ended == 15
    assert clock.states.refusal == "more than 10 final states waited"
    assert len({update.topic for update in clock.taken()}) == 10


def test_a_state_for_small_messages_lists_fewer_tasks() -> None:
    started, running, *_ = recorded()
    clock = Clock()
    clock.add(started)
    for number in range(50):
        body = running.payload["body"] | {"task_id": f"task-{number}"}
        clock.states.add(started.topic, running.payload | {"body": body})
    (update,) = clock.taken()
    assert len(state_of(update)["running"]) == 20
    small = loads(update.body(2_000))
    assert (len(small["running"]), small["counts"]["running"]) == (5, 50)
    assert loads(update.body(900))["running"] == []
    with pytest.raises(ValueError, match="has more than 100 bytes"):
        update.body(100)


def test_a_state_for_small_messages_has_a_truncated_error() -> None:
    async def fail() -> None:
        raise ValueError("x" * 1_500)

    connector = MemoryConnector()
    with pytest.raises(ValueError, match="x"):
        cs.run(cs.task(fail)(), connector=connector, log_level="OFF")
    clock = Clock()
    clock.add(*connector.messages)
    (update,) = clock.taken()
    assert state_of(update)["last_error"]["message"] == "x" * 1_500
    small = loads(update.body(1_400))
    assert (small["status"], small["last_error"]["message"]) == ("failure", "x" * 200)


def test_messages_of_unknown_runs_have_no_state() -> None:
    started, running, *_ = recorded()
    clock = Clock()
    clock.states.add("somewhere/else", started.payload)
    clock.states.add(running.topic, running.payload)
    for body in (None, 5, {}, {"event": 5}):
        clock.states.add(started.topic, {"body": body})
    clock.states.add(started.topic, {})
    clock.states.add(started.topic, {"body": {"event": "ENGINE_STARTED"}})
    clock.states.add(started.topic, started.payload | {"body": {"event": "ENGINE_STARTED", "metadata": {"tasks": 5}}})
    assert clock.taken(INTERVAL) == []
