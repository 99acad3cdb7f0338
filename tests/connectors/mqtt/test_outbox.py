"""The outbox keeps the order, is bounded in memory, and counts each message."""

import math
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cascade.connectors.mqtt.backpressure import Backpressure
from cascade.connectors.mqtt.outbox import MAX_REPEATS, MESSAGE_BYTES, Outbox, OutgoingMessage
from tests.lab.waiting import HANG

CAPACITY = 20 * (MESSAGE_BYTES + 10)


def message(qos: int, size: int = 10) -> OutgoingMessage:
    return OutgoingMessage("t", b"x" * size, qos)


class Model(RuleBasedStateMachine):
    """Each message is in exactly one state, in order, and memory is bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(CAPACITY, resend_window=HANG)
        self.taken: list[OutgoingMessage] = []
        self.arrived: list[OutgoingMessage] = []

    @rule(qos=st.sampled_from([0, 1]), size=st.integers(0, 200))
    def put(self, qos: int, size: int) -> None:
        self.outbox.put(message(qos, size))

    @rule(limit=st.integers(0, 10), acknowledged=st.integers(0, 5))
    def take(self, limit: int, acknowledged: int) -> None:
        could = self.outbox.can_take(acknowledged)
        taken = self.outbox.take(limit, acknowledged)
        assert bool(taken) == (could and limit > 0)
        assert sum(one.qos for one in taken) <= acknowledged
        assert [one.number for one in taken] == sorted(one.number for one in taken)
        if taken and sum(one.qos for one in taken) < acknowledged:
            assert all(one.number > taken[-1].number for one in self.queued())
        self.taken += taken

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if self.taken:
            done = data.draw(st.lists(st.sampled_from(self.taken), unique=True))
            self.arrived += [one for one in done if not one.acknowledged_at]
            self.outbox.settle(done)
            self.taken = [one for one in self.taken if one not in done]

    @rule()
    def lose_one(self) -> None:
        if self.taken:
            self.outbox.drop(self.taken.pop(0), "refused")

    @rule(data=st.data(), refusal=st.sampled_from(["", "Quota exceeded"]))
    def put_back(self, data: st.DataObject, refusal: str) -> None:
        before = self.outbox.retried
        back = data.draw(st.lists(st.sampled_from(self.taken), unique=True)) if self.taken else []
        self.outbox.put_back(back, refusal)
        assert self.outbox.retried == before + (len(back) if refusal else 0)
        self.taken = [one for one in self.taken if one not in back]

    @rule()
    def resend(self) -> None:
        self.outbox.resend(time.monotonic())
        assert not self.outbox.repeatable

    @rule(share=st.floats(0, 1))
    def abandon(self, share: float) -> None:
        before = int(self.outbox.put_count * share)
        self.outbox.abandon(before, "dead")
        assert self.outbox.has_settled(before)
        self.taken = [one for one in self.taken if one.number >= before]

    def queued(self) -> list[OutgoingMessage]:
        return sorted((one for queue in self.outbox.waiting for one in queue), key=lambda one: one.number)

    @invariant()
    def counts_agree(self) -> None:
        waiting, in_flight = self.queued(), self.outbox.in_flight()
        assert in_flight == sorted(self.taken, key=lambda one: one.number)
        assert self.outbox.sent == len(self.arrived)
        new = [one for one in waiting + in_flight if not one.acknowledged_at]
        assert self.outbox.backlog == len(new)
        assert self.outbox.bytes == sum(len(one.body) + MESSAGE_BYTES for one in new)
        assert self.outbox.bytes <= CAPACITY or not [one for one in waiting if not one.acknowledged_at]
        arrived = self.outbox.repeatable
        assert self.outbox.repeatable_bytes == sum(len(one.body) + MESSAGE_BYTES for one in arrived) <= CAPACITY / 4
        assert not {one.number for one in waiting + in_flight} & {one.number for one in arrived}
        for queue in self.outbox.waiting:
            assert [one.number for one in queue] == sorted(one.number for one in queue)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40)


@given(st.lists(st.sampled_from([0, 1]), max_size=60))
def test_messages_of_both_qos_keep_their_order(qualities: list[int]) -> None:
    outbox = Outbox()
    for qos in qualities:
        outbox.put(message(qos))
    taken: list[OutgoingMessage] = []
    while batch := outbox.take(7, 3):
        taken += batch
    assert [one.number for one in taken] == list(range(len(qualities)))


def test_a_full_outbox_drops_the_oldest_message_of_qos_0_first() -> None:
    outbox = Outbox(4 * (MESSAGE_BYTES + 10))
    for qos in (1, 0, 0, 1, 1):
        outbox.put(message(qos))
    assert [(one.number, one.qos) for one in outbox.take(9, 9)] == [(0, 1), (2, 0), (3, 1), (4, 1)]
    assert (outbox.lost, outbox.reason) == (1, "more than fits in memory")
    for _ in range(3):
        outbox.put(message(1))
    assert [one.number for one in outbox.in_flight()] == [0, 2, 3, 4], "messages in flight are not dropped"
    assert outbox.take(9, 9) == []
    assert outbox.lost == 4


def test_a_message_larger_than_the_capacity_is_dropped_alone() -> None:
    outbox = Outbox(1_000)
    outbox.put(message(1, 2_000))
    outbox.put(message(1))
    assert [one.number for one in outbox.take(9, 9)] == [1]


def test_it_is_full_at_three_quarters_until_it_is_below_a_half() -> None:
    outbox = Outbox(8 * (MESSAGE_BYTES + 10))
    backpressure = Backpressure(outbox, flush_timeout=4.0)
    seen = []
    for _ in range(8):
        outbox.put(message(1))
        seen.append((backpressure.is_full, backpressure.is_above_low_mark))
    assert seen == [(False, False)] * 3 + [(False, True)] * 2 + [(True, True)] * 3


def test_only_messages_in_flight_are_put_back() -> None:
    outbox = Outbox()
    for _ in range(4):
        outbox.put(message(1))
    first, second = outbox.take(2, 9), outbox.take(2, 9)
    outbox.put_back(first)
    assert outbox.in_flight() == second, "they belong to another session"
    assert (outbox.backlog, outbox.has_in_flight, outbox.is_waiting) == (4, True, True)
    assert outbox.take(9, 9) == first


def test_threads_put_while_another_takes() -> None:
    outbox, count, threads = Outbox(), 2_000, 4
    taken: list[OutgoingMessage] = []

    def put(thread: int) -> None:
        for number in range(count):
            outbox.put(OutgoingMessage(f"{thread}", str(number).encode(), number % 2))

    workers: list[Any] = [threading.Thread(target=put, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + HANG
    while len(taken) < count * threads and time.monotonic() < deadline:
        outbox.can_take(1)
        batch = outbox.take(100, 50)
        outbox.settle(batch)
        taken += batch
    for worker in workers:
        worker.join()
    assert (outbox.sent, outbox.lost, outbox.bytes) == (count * threads, 0, 0)
    for thread in range(threads):
        of_thread = [int(one.body) for one in taken if one.topic == str(thread)]
        assert of_thread == list(range(count))


def test_repetitions_are_first_in_the_queue_and_counted_once() -> None:
    outbox = Outbox(resend_window=HANG)
    for qos in (1, 0, 1, 1, 1):
        outbox.put(message(qos))
    outbox.settle(outbox.take(3, 9))
    outbox.resend(time.monotonic())
    assert (outbox.sent, outbox.backlog, outbox.bytes) == (3, 2, 2 * (MESSAGE_BYTES + 10))
    assert not outbox.has_settled(1), "a flush waits for the repetition"
    taken = outbox.take(9, 9)
    assert [one.number for one in taken] == [0, 2, 3, 4], "messages of QoS 0 are not repeated"
    outbox.settle(taken)
    assert (outbox.sent, outbox.resent, outbox.backlog, outbox.bytes) == (5, 2, 0, 0)
    outbox.resend(time.monotonic())
    outbox.abandon(5, "dead")
    assert (outbox.sent, outbox.lost, outbox.reason, outbox.bytes) == (5, 0, "", 0)


def test_a_message_is_repeated_at_most_ten_times() -> None:
    outbox = Outbox(resend_window=HANG)
    outbox.put(message(1))
    for _ in range(20):
        outbox.settle(outbox.take(1, 1))
        outbox.resend(time.monotonic())
    assert (outbox.sent, outbox.resent, outbox.is_waiting) == (1, MAX_REPEATS, False)


def test_only_messages_acknowledged_within_the_window_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    outbox = Outbox(resend_window=10.0)
    for seconds in (0.0, 3.0, 4.0, 2.0):
        now[0] += seconds
        outbox.put(message(1))
        outbox.settle(outbox.take(1, 1))
    outbox.resend(since=112.0)
    assert [one.number for one in outbox.take(9, 9)] == [1, 2, 3]


def test_repetitions_use_at_most_a_quarter_of_the_memory() -> None:
    outbox = Outbox(40 * (MESSAGE_BYTES + 10), resend_window=HANG)
    for _ in range(30):
        outbox.put(message(1))
    outbox.settle(outbox.take(30, 30))
    outbox.resend(time.monotonic())
    assert [one.number for one in outbox.take(30, 30)] == list(range(20, 30)), "the latest messages"


def test_nothing_is_repeated_after_a_clean_end_or_without_a_window() -> None:
    for window in (0.0, HANG):
        outbox = Outbox(resend_window=window)
        outbox.put(message(1))
        outbox.settle(outbox.take(1, 1))
        outbox.resend(math.inf if window else time.monotonic())
        assert not outbox.is_waiting


def test_messages_on_refused_topics_are_at_most_a_quarter_of_a_batch() -> None:
    outbox = Outbox()
    for topic in ("a", "b", "c") * 20:
        outbox.put(OutgoingMessage(topic, b"x", 1))
    first = outbox.take(6, 6)
    outbox.put_back([one for one in first if one.topic != "c"], "Quota exceeded")
    outbox.settle([one for one in first if one.topic == "c"])
    assert [(one.topic, one.number) for one in outbox.take(4, 9)] == [("a", 0), ("c", 8), ("c", 11), ("c", 14)]
    outbox.put_back(outbox.in_flight()[:1], "Quota exceeded")
    second = outbox.take(4, 9)
    assert [(one.topic, one.number) for one in second] == [("b", 1), ("c", 17), ("c", 20), ("c", 23)], "b is tried next"
    outbox.settle(second)
    assert [one.number for one in outbox.take(4, 9)] == [0, 4, 7, 10], "b was accepted"
    rest = outbox.take(99, 99)
    assert [one.number for one in rest] == sorted(one.number for one in rest)
    assert not outbox.is_waiting, "the whole batch is used"


def test_a_message_of_qos_0_on_a_refused_topic_does_not_use_the_window() -> None:
    outbox = Outbox()
    for topic in ("a", "b"):
        outbox.put(OutgoingMessage(topic, b"x", 1))
    outbox.put_back(outbox.take(2, 2), "Quota exceeded")
    assert len(outbox.take(2, 2)) == 2
    outbox.put(OutgoingMessage("b", b"x", 0))
    assert outbox.can_take(0)
    assert [one.number for one in outbox.take(1, 0)] == [2]


def test_a_topic_without_messages_does_not_delay_other_refused_topics() -> None:
    outbox = Outbox()
    for topic in ("a", "b", "c", "c"):
        outbox.put(OutgoingMessage(topic, b"x", 1))
    outbox.put_back(outbox.take(2, 2), "Quota exceeded")
    outbox.abandon(1, "dead")
    assert [one.topic for one in outbox.take(2, 2)] == ["b", "c"]


def test_the_reason_of_a_loss_contains_the_earlier_refusals() -> None:
    outbox = Outbox()
    for _ in range(2):
        outbox.put(message(1))
    for _ in range(1_234):
        outbox.put_back(outbox.take(1, 1), "Quota exceeded")
    outbox.abandon(2, "not acknowledged within 5 s")
    assert outbox.reason == "not acknowledged within 5 s, after 1,234 refusals 'Quota exceeded'"
    outbox.put(message(1))
    outbox.abandon(3, "connection refused")
    assert outbox.reason == "connection refused"
