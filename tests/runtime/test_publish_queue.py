import asyncio
import gc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.connectors.memory import MemoryConnector, PublishedMessage
from cascade.runtime.publish_queue import Message, PublishQueue
from tests.lab.waiting import HANG, NEVER, until, with_timeout


def message(number: int, *, qos: int = 1, size: int = 10) -> Message:
    return Message("t", {"n": number}, qos, size)


def numbers(connector: MemoryConnector) -> list[int]:
    return [payload["n"] for payload in connector.payloads]


async def test_messages_arrive_in_order() -> None:
    connector = MemoryConnector()
    queue = PublishQueue(connector)
    for number in range(100):
        queue.put(message(number))
    await queue.drain(HANG)
    assert numbers(connector) == list(range(100))
    assert (queue.published, queue.lost) == (100, 0)


async def test_messages_are_published_one_at_a_time() -> None:
    class Overlapping(MemoryConnector):
        now = most = 0

        async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= 1

    connector = Overlapping()
    queue = PublishQueue(connector)
    for number in range(10):
        queue.put(message(number))
    await queue.drain(HANG)
    assert (connector.most, queue.published) == (1, 10)


async def test_a_message_is_published_in_the_next_iteration_of_the_loop() -> None:
    connector = MemoryConnector()
    PublishQueue(connector).put(message(0))
    await asyncio.sleep(0)
    assert numbers(connector) == [0]


def test_a_drain_publishes_messages_that_were_put_outside_of_a_loop() -> None:
    connector = MemoryConnector()
    queue = PublishQueue(connector)
    queue.put(message(0))
    asyncio.run(queue.drain(HANG))
    assert numbers(connector) == [0]


class Buffer(MemoryConnector):
    def is_full(self) -> bool:
        return False

    async def room(self) -> None: ...

    def put(self, topic: str, payload: dict[str, Any], qos: int = 0) -> bool:
        if payload["n"] < 0:
            raise OSError("no space")
        self.messages.append(PublishedMessage(topic, payload, qos))
        return True

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        raise AssertionError("put is called in place of publish")


async def test_a_connector_with_a_buffer_gets_messages_at_once() -> None:
    connector = Buffer()
    queue = PublishQueue(connector)
    for number in (0, -1, 1):
        queue.put(message(number))
    assert numbers(connector) == [0, 1]
    assert (queue.published, queue.lost, queue.queued, queue.last_error) == (2, 1, 0, "OSError: no space")
    queue.close("no connection")
    queue.put(message(2))
    assert (numbers(connector), queue.lost, queue.last_error) == ([0, 1], 2, "no connection")


async def test_another_method_with_the_name_put_is_not_called() -> None:
    class Store(MemoryConnector):
        def put(self, key: str, value: object) -> None:
            raise AssertionError("not a method of the protocol")

    connector = Store()
    queue = PublishQueue(connector)
    queue.put(message(0))
    await queue.drain(HANG)
    assert (numbers(connector), queue.lost) == ([0], 0)


class Failing(MemoryConnector):
    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        if payload["n"] % 2:
            raise OSError("no route")
        await super().publish(topic, payload, qos)


async def test_a_failed_publish_is_counted_and_does_not_affect_the_next() -> None:
    connector = Failing()
    queue = PublishQueue(connector)
    for number in range(4):
        queue.put(message(number))
    await queue.drain(HANG)
    assert numbers(connector) == [0, 2]
    assert (queue.lost, queue.last_error) == (2, "OSError: no route")


@pytest.mark.parametrize("error", [GeneratorExit("odd"), BaseException("odd"), asyncio.CancelledError("odd")], ids=repr)
async def test_an_error_that_is_no_exception_does_not_stop_the_queue(error: BaseException) -> None:
    class Raising(MemoryConnector):
        async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
            if payload["n"] != 1:
                raise error
            await super().publish(topic, payload, qos)

    connector = Raising()
    queue = PublishQueue(connector)
    for number in range(3):
        queue.put(message(number))
    await queue.drain(HANG)
    assert numbers(connector) == [1]
    assert (queue.published, queue.lost, queue.last_error) == (1, 2, f"{type(error).__name__}: odd")


def test_a_queue_of_a_closed_event_loop_can_be_collected() -> None:
    """The interpreter closes the coroutine that publishes. If the coroutine continued, the interpreter would warn."""
    loop = asyncio.new_event_loop()

    async def publish() -> None:
        queue = PublishQueue(Stuck())
        queue.put(message(0))
        queue.put(message(1))
        await asyncio.sleep(0)

    async def collect() -> None:
        gc.collect()

    loop.run_until_complete(publish())
    loop.close()
    asyncio.run(collect())


class Stuck(MemoryConnector):
    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        await asyncio.Event().wait()


async def test_a_drain_counts_the_messages_that_it_drops() -> None:
    queue = PublishQueue(Stuck())
    for number in range(3):
        queue.put(message(number))
    await queue.drain(0.01)
    assert (queue.lost, queue.last_error) == (3, "not published within 0.01 s")


async def test_a_drain_neither_waits_for_nor_drops_later_messages() -> None:
    """One run ends while another one publishes: the first drain ends and drops no message of the other run."""
    connector = Endless()
    queue = connector.queue = PublishQueue(connector)
    queue.put(message(0))
    await with_timeout(queue.drain(NEVER))
    assert numbers(connector)[0] == 0
    connector.is_publishing = False
    await queue.drain(HANG)
    assert queue.lost == 0
    assert numbers(connector) == list(range(len(connector.payloads)))


class Endless(MemoryConnector):
    """Puts a further message whenever a message is published."""

    queue: PublishQueue
    is_publishing = True

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        await super().publish(topic, payload, qos)
        await asyncio.sleep(0)
        if self.is_publishing:
            self.queue.put(message(payload["n"] + 1))


async def test_messages_after_a_dropped_message_are_published() -> None:
    class StuckOnce(MemoryConnector):
        async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
            if payload["n"] == 0:
                queue.put(message(1))
                await asyncio.Event().wait()
            await super().publish(topic, payload, qos)

    connector = StuckOnce()
    queue = PublishQueue(connector)
    queue.put(message(0))
    await queue.drain(0.01)
    await queue.drain(HANG)
    assert numbers(connector) == [1]
    assert queue.lost == 1


class Full(MemoryConnector):
    """Has room for one message until `is_empty` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_empty = asyncio.Event()

    def is_full(self) -> bool:
        return bool(self.payloads) and not self.is_empty.is_set()

    async def room(self) -> None:
        await asyncio.wait({asyncio.ensure_future(self.is_empty.wait())}, timeout=0.01)

    def put(self, topic: str, payload: dict[str, Any], qos: int = 0) -> bool:
        if self.is_full():
            return False
        self.messages.append(PublishedMessage(topic, payload, qos))
        return True


async def test_messages_stay_in_the_queue_while_the_connector_is_full() -> None:
    connector = Full()
    queue = PublishQueue(connector)
    for number in range(3):
        queue.put(message(number))
    draining = asyncio.ensure_future(queue.drain(NEVER))
    for _ in range(5):
        await connector.room()
    assert numbers(connector) == [0]
    connector.is_empty.set()
    await with_timeout(draining)
    assert numbers(connector) == [0, 1, 2]


async def test_the_end_of_a_drain_publishes_the_rest_to_a_full_connector() -> None:
    connector = Full()
    queue = PublishQueue(connector)
    for number in range(3):
        queue.put(message(number))
    await queue.drain(0.05)
    assert numbers(connector) == [0, 1, 2]
    assert queue.lost == 0
    connector.is_empty.set()


async def test_a_connector_that_stays_full_does_not_block_the_event_loop() -> None:
    """Its `room` returns at once, without an `await`."""

    class AlwaysFull(Full):
        calls = 0

        async def room(self) -> None:
            self.calls += 1

    connector = AlwaysFull()
    queue = PublishQueue(connector)
    for number in range(3):
        queue.put(message(number))
    draining = asyncio.ensure_future(queue.drain(NEVER))
    await until(lambda: connector.calls > 1)
    assert numbers(connector) == [0]
    connector.is_empty.set()
    await with_timeout(draining)
    assert numbers(connector) == [0, 1, 2]


def test_a_loop_that_is_closed_while_the_queue_publishes_does_not_stop_the_queue() -> None:
    class Waiting(MemoryConnector):
        async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
            if payload["n"] == 0:
                await asyncio.Event().wait()
            await super().publish(topic, payload, qos)

    connector = Waiting()
    queue = PublishQueue(connector)

    async def put() -> None:
        queue.put(message(0))
        await asyncio.sleep(0)

    async def put_and_drain() -> None:
        queue.put(message(1))
        await queue.drain(HANG)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(put())
    loop.close()
    asyncio.run(put_and_drain())
    assert numbers(connector) == [1]
    assert (queue.lost, queue.last_error) == (1, "the event loop was closed")


async def test_a_closed_queue_drops_all_messages_with_the_reason() -> None:
    queue = PublishQueue(MemoryConnector())
    queue.put(message(0))
    queue.close("no connection")
    queue.put(message(1))
    await queue.drain(1)
    assert (queue.lost, queue.last_error) == (2, "no connection")


async def test_a_full_queue_drops_messages_with_qos_1_last() -> None:
    connector = MemoryConnector()
    queue = PublishQueue(connector, max_bytes=50)
    for number in range(8):
        queue.put(message(number, qos=number % 2))
    await queue.drain(HANG)
    assert numbers(connector) == [1, 3, 5, 6, 7]
    assert (queue.lost, queue.last_error) == (3, "its queue was full")


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 40)), max_size=60), st.integers(20, 200))
@settings(max_examples=80)
def test_every_dropped_message_is_counted(messages: list[tuple[int, int]], limit: int) -> None:
    async def scenario() -> None:
        connector = MemoryConnector()
        queue = PublishQueue(connector, max_bytes=limit)
        for number, (qos, size) in enumerate(messages):
            queue.put(message(number, qos=qos, size=size))
        await queue.drain(HANG)
        assert queue.published + queue.lost == len(messages)
        assert numbers(connector) == sorted(numbers(connector))
        if sum(size for _, size in messages) <= limit:
            assert queue.lost == 0

    asyncio.run(scenario())


async def test_a_coroutine_function_named_put_does_not_replace_publish() -> None:
    class Unrelated(MemoryConnector):
        def is_full(self) -> bool:
            return False

        async def room(self) -> None: ...

        async def put(self, topic: str, payload: dict[str, Any], qos: int = 0) -> bool:
            raise AssertionError

    connector = Unrelated()
    queue = PublishQueue(connector)
    queue.put(message(0))
    await queue.drain(HANG)
    assert numbers(connector) == [0]
    assert (queue.published, queue.lost) == (1, 0)
