"""Conformance tests for the control messages that a connector delivers."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.events import ControlDecision, Event, RunStarted, TaskBlocked, TaskExecutionStarted
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.spec.protocols import Connector
from cascade.spec.task import task
from cascade.telemetry.topics import control_topic, identity_from_environment

TIMEOUT = 60.0
"""Seconds after which a test fails. It is long, for loaded machines in CI."""

INVALID_MESSAGES = (
    b"not JSON",
    b"\xff\xfe{}",
    b"[1, 2]",
    b"{}",
    b'{"type": "pause", "params": NaN}',
    b'{"type": "concurrency", "params": {}}',
    b'{"type": "pause", "params": {"x": 1}}',
    b'{"type": "pause", "expire_at": 1}',
    b'{"type": ["pause"]}',
    b"[" * 5_000,
    b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
    b'{"type": "pause", "id": "' + b"x" * 1_000_000 + b'"}',
)
"""Invalid messages for the topic of a pause."""


async def run(connector: Connector, target: Any, bus: MessageBus | None = None) -> Any:
    """Run a workflow with the connector. Its events are published on `bus`."""
    bus, executor = bus or MessageBus(), LocalExecutor()
    TelemetrySubscriber(bus, connector)
    try:
        return await Engine(NativeSolver(), executor, bus, connector=connector).run(target)
    finally:
        executor.close()


async def bounded(work: Coroutine[Any, Any, Any]) -> Any:
    return await asyncio.wait_for(work, TIMEOUT)


class ControlConformance:
    """The part of `ConnectorConformance` for control messages. Without `send` its tests do nothing."""

    def make_connector(self) -> Connector:
        raise NotImplementedError

    async def send(self, topic: str, data: bytes, *, retain: bool) -> bool:  # noqa: ARG002 - for subclasses
        """Send a message to the connector from its server. Return False if the connector receives no messages."""
        return False

    def test_a_retained_pause_blocks_the_first_task_until_it_is_cleared(self) -> None:
        asyncio.run(bounded(self._retained_pause()))

    def test_a_pause_during_a_run_does_not_stop_a_running_task(self) -> None:
        asyncio.run(bounded(self._pause_during_the_run()))

    def test_invalid_messages_are_refused_and_change_no_constraint(self) -> None:
        asyncio.run(bounded(self._invalid_messages()))

    def test_a_constraint_for_another_run_is_ignored(self) -> None:
        asyncio.run(bounded(self._another_run()))

    async def _retained_pause(self) -> None:
        if not await self._constrain("global", "pause"):
            return
        recorded = _RecordedEvents()
        work = asyncio.ensure_future(run(self.make_connector(), task(_one)(), recorded.bus))
        try:
            await recorded.first(TaskBlocked)
            assert not recorded.all(TaskExecutionStarted)
            assert [blocked.reason for blocked in recorded.all(TaskBlocked)] == ["paused"]
        finally:
            await self._clear("global", "pause")
        assert await work == 1
        assert [decision.action for decision in recorded.all(ControlDecision)] == ["APPLIED", "CLEARED"]

    async def _pause_during_the_run(self) -> None:
        recorded, paused = _RecordedEvents(), asyncio.Event()

        async def first() -> int:
            await paused.wait()
            return 1

        second = task(lambda x: x + 1, name="second")
        work = asyncio.ensure_future(run(self.make_connector(), second(task(first)()), recorded.bus))
        await recorded.first(TaskExecutionStarted)
        if not await self._constrain("task/sec*", "pause"):
            paused.set()
            await work
            return
        try:
            await recorded.first(ControlDecision)
            paused.set()
            assert (await recorded.first(TaskBlocked)).task_name == "second"
        finally:
            await self._clear("task/sec*", "pause")
        assert await work == 2  # noqa: PLR2004 - one and one

    async def _invalid_messages(self) -> None:
        if not await self._constrain("global", "pause"):
            return
        recorded = _RecordedEvents()
        work = asyncio.ensure_future(run(self.make_connector(), task(_one)(), recorded.bus))
        try:
            await recorded.first(TaskBlocked)
            for count, data in enumerate(INVALID_MESSAGES, 1):
                await self.send(_topic("global", "pause"), data, retain=False)
                refused = await recorded.nth(ControlDecision, count + 1)
                assert (refused.action, bool(refused.reason)) == ("REFUSED", True)
            assert not recorded.all(TaskExecutionStarted)
        finally:
            await self._clear("global", "pause")
        assert await work == 1

    async def _another_run(self) -> None:
        scope = "run/00000000-0000-4000-8000-000000000000"
        if not await self._constrain(scope, "pause"):
            return
        try:
            recorded = _RecordedEvents()
            assert await run(self.make_connector(), task(_one)(), recorded.bus) == 1
            assert not recorded.all(ControlDecision)
        finally:
            await self._clear(scope, "pause")

    async def _constrain(self, scope: str, kind: str) -> bool:
        data = json.dumps({"id": "conformance", "type": kind, "params": {}}).encode()
        return await self.send(_topic(scope, kind), data, retain=True)

    async def _clear(self, scope: str, kind: str) -> None:
        await self.send(_topic(scope, kind), b"", retain=True)


class _RecordedEvents:
    """Records the events of a run. A test can wait for them."""

    def __init__(self) -> None:
        self.bus = MessageBus()
        self._events: list[Event] = []
        self._added = asyncio.Event()
        for kind in (RunStarted, TaskBlocked, TaskExecutionStarted, ControlDecision):
            self.bus.subscribe(kind, self._add)

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._added.set()

    def all(self, kind: type[Any]) -> list[Any]:
        return [event for event in self._events if isinstance(event, kind)]

    async def first(self, kind: type[Any]) -> Any:
        return await self.nth(kind, 1)

    async def nth(self, kind: type[Any], count: int) -> Any:
        while len(found := self.all(kind)) < count:
            self._added.clear()
            await self._added.wait()
        return found[count - 1]


def _topic(scope: str, kind: str) -> str:
    return control_topic(*identity_from_environment(), scope, kind)


def _one() -> int:
    return 1
