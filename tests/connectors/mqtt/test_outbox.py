"""OutgoingMessages in order, bounded in memory, all of them counted."""

import threading
import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cascade.connectors.mqtt.outbox import MESSAGE_BYTES, Outbox, OutgoingMessage
from tests.waiting import HANG

CAPACITY = 20 * (MESSAGE_BYTES + 10)


def letter(qos: int, size: int = 10) -> OutgoingMessage:
    return OutgoingMessage("t", b"x" * size, qos)


class Model(RuleBasedStateMachine):
    """Whatever happens to it, each letter is in one place, in order, and memory has its bound."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(CAPACITY)
        self.taken: list[OutgoingMessage] = []
        self.arrived: list[OutgoingMessage] = []

    @rule(qos=st.sampled_from([0, 1]), size=st.integers(0, 200))
    def put(self, qos: int, size: int) -> None:
        self.outbox.put(letter(qos, size))

    @rule(limit=st.integers(0, 10), acknowledged=st.integers(0, 5))
    def take(self, limit: int, acknowledged: int) -> None:
        before = [one.number for one in self.outbox.out()]
        could = self.outbox.can_take(acknowledged)
        taken = self.outbox.take(limit, acknowledged)
        assert bool(taken) == (could and limit > 0)
        assert sum(one.qos for one in taken) <= acknowledged
        assert [one.number for one in taken] == sorted(one.number for one in taken)
        assert not taken or not before or taken[0].number > before[-1]
        self.taken += taken

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if self.taken:
            done = data.draw(st.lists(st.sampled_from(self.taken), unique=True))
            self.outbox.settle(done)
            self.arrived += done
            self.taken = [one for one in self.taken if one not in done]

    @rule()
    def lose_one(self) -> None:
        if self.taken:
            self.outbox.lose(self.taken.pop(0), "refused")

    @rule()
    def recall(self) -> None:
        self.outbox.recall(reversed(self.taken))
        self.taken = []

    @rule(share=st.floats(0, 1))
    def abandon(self, share: float) -> None:
        before = int(self.outbox.put_count * share)
        self.outbox.abandon(before, "dead")
        assert self.outbox.has_settled(before)
        self.taken = [one for one in self.taken if one.number >= before]

    @invariant()
    def counts_agree(self) -> None:
        waiting = [one for queue in self.outbox._waiting for one in queue]
        out = self.outbox.out()
        assert out == sorted(self.taken, key=lambda one: one.number)
        assert self.outbox.sent == len(self.arrived)
        assert self.outbox.put_count == self.outbox.sent + self.outbox.lost + len(waiting) + len(out)
        assert self.outbox.bytes == sum(len(one.body) + MESSAGE_BYTES for one in waiting + out)
        assert self.outbox.bytes <= CAPACITY or not waiting
        for queue in self.outbox._waiting:
            assert [one.number for one in queue] == sorted(one.number for one in queue)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40)


@given(st.lists(st.sampled_from([0, 1]), max_size=60))
def test_order_holds_over_both_qualities(qualities: list[int]) -> None:
    outbox = Outbox()
    for qos in qualities:
        outbox.put(letter(qos))
    taken: list[OutgoingMessage] = []
    while batch := outbox.take(7, 3):
        taken += batch
    assert [one.number for one in taken] == list(range(len(qualities)))


def test_what_matters_least_goes_first_and_the_oldest_of_it() -> None:
    outbox = Outbox(4 * (MESSAGE_BYTES + 10))
    for qos in (1, 0, 0, 1, 1):
        outbox.put(letter(qos))
    assert [(one.number, one.qos) for one in outbox.take(9, 9)] == [(0, 1), (2, 0), (3, 1), (4, 1)]
    assert (outbox.lost, outbox.reason) == (1, "more than fits in memory")
    for _ in range(3):
        outbox.put(letter(1))
    assert [one.number for one in outbox.out()] == [0, 2, 3, 4], "what is out stays"
    assert outbox.take(9, 9) == []
    assert outbox.lost == 4


def test_a_letter_that_never_fits_is_lost_alone() -> None:
    outbox = Outbox(1_000)
    outbox.put(letter(1, 2_000))
    outbox.put(letter(1))
    assert [one.number for one in outbox.take(9, 9)] == [1]


def test_it_is_full_at_three_quarters_and_roomy_at_a_half() -> None:
    outbox = Outbox(8 * (MESSAGE_BYTES + 10))
    seen = []
    for _ in range(8):
        outbox.put(letter(1))
        seen.append((outbox.is_full, outbox.is_tight))
    assert seen == [(False, False)] * 4 + [(False, True)] + [(True, True)] * 3


def test_only_what_one_link_had_out_is_called_back() -> None:
    outbox = Outbox()
    for _ in range(4):
        outbox.put(letter(1))
    first, second = outbox.take(2, 9), outbox.take(2, 9)
    outbox.recall(first)
    assert outbox.out() == second, "another session's"
    assert (outbox.backlog, outbox.is_out, outbox.is_waiting) == (4, True, True)
    assert outbox.take(9, 9) == first


def test_many_threads_put_while_one_takes() -> None:
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
