"""A deterministic real run: the examples of the AsyncAPI document."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock
from uuid import NAMESPACE_OID, uuid5

import cascade as cs
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.memory import MemoryConnector, PublishedMessage
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.events import TaskBlocked, TaskExecutionStarted
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.telemetry.topics import control_topic
from cascade.testing import FixedClock

ORG, PROJECT, RUN_ID, SOURCE = "acme", "etl", "0f8fad5b-d9cb-469f-a165-70867728950e", "worker-1-4711-9f3a"
PAUSE = {"id": "maintenance", "type": "pause", "params": {}}


def messages() -> list[PublishedMessage]:
    """Return the messages of a run with a pause, a refused constraint, and a failure at its end."""
    with (
        mock.patch("cascade.runtime.subscribers.source", return_value=SOURCE),
        mock.patch.dict("os.environ", {"CASCADE_ORG_ID": ORG, "CASCADE_PROJECT_ID": PROJECT}),
    ):
        found = asyncio.run(_recorded())
    for message in found:
        _remove_locations(message.payload["body"])
    return found


async def _recorded() -> list[PublishedMessage]:
    bus, connector, executor = MessageBus(), MemoryConnector(), LocalExecutor()
    TelemetrySubscriber(bus, connector)
    clock = FixedClock(1_764_000_000_000_000_000, step=0.0128)  # a multiple of 256 ns, the resolution of a float
    engine = Engine(NativeSolver(), executor, bus, connector=connector, clock=clock, run_ids=lambda: RUN_ID)
    pause, work = control_topic(ORG, PROJECT, "task/store", "pause"), set[asyncio.Task[None]]()

    def send(payload: bytes) -> None:
        work.add(asyncio.get_running_loop().create_task(connector.deliver(pause, payload, retain=True)))

    def on_blocked(_: TaskBlocked) -> None:
        send(b"")

    def on_started(event: TaskExecutionStarted) -> None:
        if event.task_name == "load":
            send(b"pause, please")
            send(json.dumps(PAUSE).encode())

    bus.subscribe(TaskBlocked, on_blocked)
    bus.subscribe(TaskExecutionStarted, on_started)
    try:
        await engine.run(_workflow())
    except ConnectionError:
        return connector.messages
    finally:
        executor.close()
    raise AssertionError("the example did not fail")


def _workflow() -> Any:
    @cs.resource
    def database() -> Iterator[dict[str, bool]]:
        yield {"open": True}

    @cs.task
    async def load() -> list[int]:
        for _ in range(5):  # the pause arrives before the next task
            await asyncio.sleep(0)
        return [3, 1, 2]

    @cs.task
    async def store(numbers: list[int], db: Any = cs.inject(database)) -> int:
        return len(numbers) if db["open"] else 0

    @cs.task
    async def publish(stored: int) -> None:
        raise ConnectionError(f"no connection to the store for {stored} numbers")

    calls: list[Any] = [load()]
    calls.append(store(calls[-1]))
    calls.append(publish(calls[-1]))
    for number, call in enumerate(calls):
        call._uuid = str(uuid5(NAMESPACE_OID, f"task {number}"))  # noqa: SLF001 - the contract names this field
    return calls[-1]


def _remove_locations(body: dict[str, Any]) -> None:
    """Remove stack traces and qualified names, which differ between machines."""
    metadata = body["metadata"]
    for found in (metadata, *metadata.get("attempts", ())):
        if "exception" in found:
            found["exception"].pop("stacktrace", None)
    if "function" in metadata:
        metadata["function"] = metadata["function"].replace(f"{__name__}._workflow.<locals>", "pipeline")
