"""A TCP proxy between MQTT 5 clients and a broker that records, delays, holds, drops and changes packets."""

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Self

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stack.addresses import HOST
from tests.lab.waiting import HANG

__all__ = ["Packet", "Proxy", "Rule", "change_connack", "most_in_flight", "received_by_client", "sent_by_client"]


@dataclass(frozen=True, slots=True)
class Packet:
    """A control packet of MQTT 5.

    Attributes:
        kind: Its type, a constant of paho's `PacketTypes`.
        body: Variable header and payload.
        flags: The lower four bits of the first byte.
        from_broker: Whether the proxy received it from the broker, or sends it in place of the broker.
        connection: Number of the client's connection to the proxy, from 0.
        delay: Seconds that the proxy waits before it forwards this packet. Later packets overtake it.
    """

    kind: int
    body: bytes
    flags: int = 0
    from_broker: bool = False
    connection: int = 0
    delay: float = 0.0

    @property
    def encoded(self) -> bytes:
        length, rest = bytearray(), len(self.body)
        while rest > 127:
            length.append(rest & 127 | 128)
            rest >>= 7
        return bytes([self.kind << 4 | self.flags, *length, rest]) + self.body

    @property
    def qos(self) -> int:
        """The QoS of a PUBLISH."""
        return self.flags >> 1 & 3

    @property
    def retain(self) -> bool:
        """The retain flag of a PUBLISH."""
        return bool(self.flags & 1)

    @property
    def topic(self) -> str:
        """The topic of a PUBLISH; empty if a topic alias replaces it."""
        return self.body[2 : self._end_of_topic].decode()

    @property
    def packet_id(self) -> int:
        """The id of a PUBLISH with QoS 1 or 2, or of an acknowledgement, SUBSCRIBE, or UNSUBSCRIBE."""
        start = self._end_of_topic if self.kind == PacketTypes.PUBLISH else 0
        return int.from_bytes(self.body[start : start + 2])

    @property
    def properties(self) -> dict[str, Any]:
        """The properties of a PUBLISH, CONNACK, SUBSCRIBE or UNSUBSCRIBE, by their names in paho, such as `ReceiveMaximum`."""
        found: dict[str, Any] = self._decoded()[0].json()
        return found

    @property
    def payload(self) -> bytes:
        """The message of a PUBLISH, or the encoded filters of a SUBSCRIBE or UNSUBSCRIBE."""
        return self.body[self._decoded()[1] :]

    @property
    def _end_of_topic(self) -> int:
        return 2 + int.from_bytes(self.body[:2])

    def with_properties(self, **changes: int | str | None) -> "Packet":
        """Return the CONNACK with changed properties. None removes a property."""
        properties: Any = self._decoded()[0]
        for name, value in changes.items():
            if value is not None:
                setattr(properties, name, value)
            elif hasattr(properties, name):
                delattr(properties, name)
        return replace(self, body=self.body[:2] + properties.pack())

    def _decoded(self) -> tuple[Any, int]:
        """Return the properties, as paho decodes them, and the position of their end in the body."""
        start = self._end_of_topic + (2 if self.qos else 0) if self.kind == PacketTypes.PUBLISH else 2
        empty: Any = Properties(self.kind)  # type: ignore[no-untyped-call]
        properties, length = empty.unpack(self.body[start:])
        return properties, start + length


Rule = Callable[[Packet], Iterable[Packet]]
"""A function that returns the packets that the proxy forwards in place of a packet, each in its own direction."""


def sent_by_client(*kinds: int) -> Callable[[Packet], bool]:
    """Return a predicate for packets of these types from a client."""
    return lambda packet: not packet.from_broker and packet.kind in kinds


def received_by_client(*kinds: int) -> Callable[[Packet], bool]:
    """Return a predicate for packets of these types from the broker."""
    return lambda packet: packet.from_broker and packet.kind in kinds


def change_connack(**changes: int | str | None) -> Rule:
    """Return a rule that sets properties of each accepting CONNACK, such as `ReceiveMaximum=2`. None removes one."""

    def rule(packet: Packet) -> Iterable[Packet]:
        accepts = packet.kind == PacketTypes.CONNACK and not packet.body[1]
        return (packet.with_properties(**changes) if accepts else packet,)

    return rule


def most_in_flight(packets: Iterable[Packet]) -> int:
    """Return the largest number of unacknowledged PUBLISH packets of one connection with QoS 1 or 2."""
    waiting, most = set[tuple[int, int]](), 0
    for packet in packets:
        if sent_by_client(PacketTypes.PUBLISH)(packet) and packet.qos:
            waiting.add((packet.connection, packet.packet_id))
            most = max(most, sum(connection == packet.connection for connection, _ in waiting))
        elif received_by_client(PacketTypes.PUBACK, PacketTypes.PUBCOMP)(packet):
            waiting.discard((packet.connection, packet.packet_id))
    return most


@dataclass(slots=True)
class _Connection:
    """The connection of a client, and the matching connection of the proxy to the broker."""

    number: int
    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    to_client: deque[Packet] = field(default_factory=deque)
    to_broker: deque[Packet] = field(default_factory=deque)

    def close(self) -> None:
        for writer in (self.client, self.broker):
            writer.transport.abort()


class Proxy:
    """A proxy on 127.0.0.1, in a thread that ends with the `with` block.

    Args:
        target: The broker's port.
        rules: Applied in order to each packet; the packets of one rule are the input of the next.
        latency: Seconds from the client to the broker, and the same from the broker to the client.

    Attributes:
        port: The port for clients.
        rules: The rules, which a test may change between two packets.
        packets: The client's view: packets from the client as they come in, and packets to the client as they go out.
    """

    def __init__(self, target: int, *rules: Rule, latency: float = 0.0) -> None:
        self.port = 0
        self.rules = list(rules)
        self.packets: list[Packet] = []
        self.latency = latency
        self._target = target
        self._changed = threading.Condition()
        self._connections: list[_Connection] = []
        self._held: list[Packet] = []
        self._is_held: Callable[[Packet], bool] = _none
        self._tasks = set[asyncio.Task[None]]()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG)
        self._loop.close()

    def wait_for(self, condition: Callable[[list[Packet]], object]) -> list[Packet]:
        """Wait until the condition holds for `packets`, and return a copy of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.packets), HANG), self.packets[-5:]
            return list(self.packets)

    def wait_for_count(self, count: int, matches: Callable[[Packet], bool]) -> list[Packet]:
        """Wait until `count` packets match, and return all that match."""
        return [*filter(matches, self.wait_for(lambda packets: sum(map(matches, packets)) >= count))]

    def matching(self, matches: Callable[[Packet], bool]) -> list[Packet]:
        """Return the packets so far that match."""
        with self._changed:
            return [*filter(matches, self.packets)]

    def hold(self, matches: Callable[[Packet], bool]) -> None:
        """Hold matching packets until `release`."""
        self._is_held = matches

    def release(self) -> None:
        """Forward the held packets, and stop holding."""
        self._call(self._release())

    def send(self, packet: Packet) -> None:
        """Send a packet of the test over the connection with its number."""
        self._call(self._send(packet))

    def cut(self) -> None:
        """Close all connections at once, without DISCONNECT."""
        self._call(self._cut())

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(HANG)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _end(self) -> None:
        self._server.close()
        await self._cut()
        await asyncio.gather(*self._tasks)  # raises the errors of rules

    async def _cut(self) -> None:
        for connection in self._connections:
            connection.close()

    async def _release(self) -> None:
        self._is_held = _none
        held, self._held = self._held, []
        for packet in held:
            self._forward(packet)

    async def _send(self, packet: Packet) -> None:
        self._forward(packet)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            self._tasks.add(task)
        try:
            from_broker, to_broker = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(len(self._connections), writer, to_broker)
        self._connections.append(connection)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._relay(reader, connection, from_broker=False))
            both.create_task(self._relay(from_broker, connection, from_broker=True))

    async def _relay(self, reader: asyncio.StreamReader, connection: _Connection, *, from_broker: bool) -> None:
        """Handle the packets of one direction until its end, which closes the other side after the latency."""
        other = connection.client if from_broker else connection.broker
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                packet = await _read(reader, connection.number, from_broker=from_broker)
                _acknowledge_at_once(connection.broker)
                if not from_broker:
                    self._record(packet)
                self._apply(packet)
        self._loop.call_later(self.latency, other.close)

    def _apply(self, packet: Packet) -> None:
        packets = [packet]
        for rule in list(self.rules):
            packets = [result for packet in packets for result in rule(packet)]
        for result in packets:
            if self._is_held(result):
                self._held.append(result)
            elif result.delay:
                self._loop.call_later(result.delay, self._forward, result)
            else:
                self._forward(result)

    def _forward(self, packet: Packet) -> None:
        connection = self._connections[packet.connection]
        if not self.latency:
            self._write(connection, packet)
            return
        # Timers that are due at the same time run in any order; the queue keeps the order of the packets.
        queue = connection.to_client if packet.from_broker else connection.to_broker
        queue.append(packet)
        self._loop.call_later(self.latency, lambda: self._write(connection, queue.popleft()))

    def _write(self, connection: _Connection, packet: Packet) -> None:
        if packet.from_broker:
            self._record(packet)
        writer = connection.client if packet.from_broker else connection.broker
        if not writer.is_closing():
            writer.write(packet.encoded)

    def _record(self, packet: Packet) -> None:
        with self._changed:
            self.packets.append(packet)
            self._changed.notify_all()


def _acknowledge_at_once(writer: asyncio.StreamWriter) -> None:
    """Disable delayed TCP acknowledgements, which can delay the next short packet of the broker by 40 ms."""
    connection = writer.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _none(_: Packet) -> bool:
    return False


async def _read(reader: asyncio.StreamReader, connection: int, *, from_broker: bool) -> Packet:
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            break
    body = await reader.readexactly(length)
    return Packet(first >> 4, body, first & 15, from_broker, connection)
