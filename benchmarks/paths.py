"""Number of files of `cascade` on a path: from the end of a task to its bytes, from a pause message to a blocked task."""

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import cascade as cs
from benchmarks._measure import Row
from benchmarks._process import call
from benchmarks._publisher import ControlPublisher
from benchmarks._scale import Scale
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.events import ControlDecision, TaskBlocked, TaskExecutionFinished
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.telemetry.topics import control_topic
from cascade.testing import OtlpReceiver
from tests.lab.mosquitto import MosquittoProcess

PACKAGE = f"{Path(cs.__file__).parent}/"
_RECEIVER = f"{PACKAGE}testing/"
PAUSE_TOPIC = control_topic("local", "default", "global", "pause")
PAUSE = json.dumps({"id": "bench", "type": "pause"}).encode()
FIRST = "the-first"
_SETTLED = 1.0
"""Seconds after which the start of the run is complete."""


class FileTrace:
    """Records the files of `cascade` in which a function is called, in all threads that start after `install`.

    `cascade.testing` is not recorded, because the receiver in the same process is a part of the measurement.
    """

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._until_send: set[str] = set()
        self._is_on = False

    def install(self) -> None:
        """Profile the current thread and all later threads."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def start(self) -> None:
        """Begin to record, or continue after `pause`."""
        self._is_on = True

    def pause(self) -> None:
        """Stop recording."""
        self._is_on = False

    def files(self) -> list[str]:
        """Return the recorded files, as paths below the package."""
        return sorted(self._files)

    def files_until_send(self) -> list[str]:
        """Return the files that were recorded before the last write to a socket."""
        return sorted(self._until_send)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and self._is_on:
            name = frame.f_code.co_filename
            if name.startswith(PACKAGE) and not name.startswith(_RECEIVER):
                self._files.add(name.removeprefix(PACKAGE))
        elif event == "c_call" and self._is_on and _is_send(argument):
            self._until_send = set(self._files)


def _is_send(function: Any) -> bool:
    return function.__name__ in {"send", "sendall"} and isinstance(
        getattr(function, "__self__", None), socket.SocketType
    )


def rows(_: Scale) -> Iterator[Row]:
    for what, (files, goal) in measured().items():
        yield Row(f"files passed, {what}", f"{len(files)} files", "", "", f"≤ {goal} files", len(files) <= goal)


def measured() -> dict[str, tuple[list[str], int]]:
    """Return the files of each path, and the goal for their number."""
    with MosquittoProcess() as broker:
        return {
            "end of a task to OTLP bytes": (call(to_otlp), 30),
            "end of a task to MQTT bytes": (call(to_mqtt, port=broker.port), 22),
            "pause message to a blocked task": (call(pause_to_blocked, port=broker.port), 30),
        }


def to_otlp() -> list[str]:
    """Return the files from the return of a task's function to the HTTP request with its span."""
    from cascade.connectors.otel import OtelConnector

    trace = FileTrace()
    with OtlpReceiver() as receiver:
        return _from_end(
            trace,
            OtelConnector(receiver.http_endpoint, protocol="http/protobuf"),
            lambda: receiver.wait_for(lambda spans: any(span.name == FIRST for span in spans)),
        )


def to_mqtt(port: int) -> list[str]:
    """Return the files from the return of a task's function to the packet with its last message."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    from cascade.connectors.mqtt import MqttConnector

    arrived = threading.Event()
    subscriber = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)

    def receive(_client: Any, _data: Any, message: Any) -> None:
        if all(part in message.payload for part in (FIRST.encode(), b"COMPLETED")):
            arrived.set()

    subscriber.on_message = receive
    subscribed = threading.Event()
    subscriber.on_subscribe = lambda *_: subscribed.set()
    subscriber.connect("127.0.0.1", port)
    subscriber.loop_start()
    subscriber.subscribe("cascade/#", 0)
    subscribed.wait()
    try:
        return _from_end(FileTrace(), MqttConnector("127.0.0.1", port), arrived.wait)
    finally:
        subscriber.disconnect()
        subscriber.loop_stop()


def _from_end(trace: FileTrace, connector: Any, wait_for_arrival: Callable[[], object]) -> list[str]:
    """Record the end of the first of two concurrent tasks. The second one ends when the bytes have arrived."""

    @cs.task(name=FIRST)
    async def first() -> None:
        await asyncio.sleep(_SETTLED)
        trace.start()

    @cs.task
    async def second() -> None:
        await asyncio.to_thread(wait_for_arrival)
        trace.pause()

    @cs.task
    async def both(_: Any) -> None:
        return None

    trace.install()
    cs.run(both([first(), second()]), connector=connector, log_level="ERROR")
    return trace.files_until_send()


def pause_to_blocked(port: int) -> list[str]:
    """Return the files from a pause message to its decision, and from the end of a task to the report of a blocked task."""
    return asyncio.run(_pause_to_blocked(port))


async def _pause_to_blocked(port: int) -> list[str]:
    from cascade.connectors.mqtt import MqttConnector

    trace, bus = FileTrace(), MessageBus()
    is_decided, is_blocked = asyncio.Event(), asyncio.Event()

    @cs.task
    async def before() -> None:
        await asyncio.sleep(_SETTLED)
        trace.start()
        publisher.publish(PAUSE_TOPIC, PAUSE)
        await is_decided.wait()
        await asyncio.sleep(_SETTLED)

    @cs.task
    async def after(_: Any) -> None:
        return None

    def decided(decision: ControlDecision) -> None:
        if (decision.action, decision.constraint_type) == ("APPLIED", "pause"):
            trace.pause()
            is_decided.set()

    def blocked(_: TaskBlocked) -> None:
        trace.pause()
        is_blocked.set()

    with ControlPublisher(port) as publisher:
        trace.install()
        connector = MqttConnector("127.0.0.1", port)
        TelemetrySubscriber(bus, connector)
        bus.subscribe(ControlDecision, decided)
        bus.subscribe(TaskExecutionFinished, lambda _: None if is_blocked.is_set() else trace.start())
        bus.subscribe(TaskBlocked, blocked)
        executor = LocalExecutor()
        run = asyncio.create_task(Engine(NativeSolver(), executor, bus, connector=connector).run(after(before())))
        await is_blocked.wait()
        publisher.publish(PAUSE_TOPIC, b"")
        await run
        executor.close()
    return trace.files()


if __name__ == "__main__":
    from benchmarks.paths import measured as _measured

    for _what, (_files, _goal) in _measured().items():
        print(f"{_what}: {len(_files)} files, goal {_goal}", *_files, sep="\n    ")
