import asyncio
import threading
from typing import Any

from cascade.connectors.memory import MemoryConnector
from cascade.connectors.report import ConnectorReport
from cascade.testing import ConnectorConformance
from tests.lab.waiting import with_timeout


class TestMemoryConnector(ConnectorConformance):
    def setup_method(self) -> None:
        self.connector = MemoryConnector()

    def make_connector(self) -> MemoryConnector:
        return self.connector

    def received(self) -> list[dict[str, Any]]:
        return self.connector.payloads

    async def send(self, topic: str, data: bytes, *, retain: bool) -> bool:
        await self.connector.deliver(topic, data, retain=retain)
        return True


async def test_the_report_has_the_messages_and_the_connection() -> None:
    connector = MemoryConnector()
    await connector.connect()
    await connector.publish("a", {})
    assert connector.report() == ConnectorReport(sent=1, connected=True)
    await connector.disconnect()
    assert connector.report() == ConnectorReport(sent=1)


async def test_retained_messages_are_delivered_before_subscribe_returns() -> None:
    connector, seen = MemoryConnector(), []

    async def callback(topic: str, payload: dict[str, Any]) -> None:
        seen.append((topic, payload))

    await connector.deliver("a/b", {"x": 1}, retain=True)
    await connector.deliver("a/gone", {"x": 2}, retain=True)
    await connector.deliver("a/gone", {}, retain=True)
    await connector.subscribe("a/+", callback)
    assert seen == [("a/b", {"x": 1})]
    await connector.deliver("a/c", {"x": 3})
    await connector.deliver("b/c", {"x": 4})
    assert seen[1:] == [("a/c", {"x": 3})]


async def test_the_last_disconnect_ends_all_subscriptions() -> None:
    connector, seen = MemoryConnector(), []

    async def callback(topic: str, payload: dict[str, Any]) -> None:
        seen.append(topic)

    for _ in range(2):
        await connector.connect()
    await connector.subscribe("a/+", callback)
    await connector.disconnect()
    await connector.deliver("a/b", {"x": 1})
    await connector.disconnect()
    await connector.deliver("a/c", {"x": 1})
    assert seen == ["a/b"]


async def test_a_message_from_another_thread_arrives_in_the_event_loop_that_subscribed() -> None:
    connector, threads, arrived = MemoryConnector(), [threading.get_ident()], asyncio.Event()

    async def callback(topic: str, payload: dict[str, Any]) -> None:
        threads.append(threading.get_ident())
        arrived.set()

    await connector.subscribe("a/+", callback)
    await asyncio.to_thread(asyncio.run, connector.deliver("a/b", {"x": 1}))
    await with_timeout(arrived.wait())
    assert len(set(threads)) == 1


async def test_a_message_for_an_event_loop_that_is_closed_is_dropped() -> None:
    connector, seen = MemoryConnector(), []

    async def callback(topic: str, payload: dict[str, Any]) -> None:
        seen.append(topic)

    await asyncio.to_thread(asyncio.run, connector.subscribe("a/+", callback))
    await connector.subscribe("a/+", callback)
    await connector.deliver("a/b", {"x": 1})
    assert seen == ["a/b"]
