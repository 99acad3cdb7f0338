"""What every connector with a way in must do with control, as a part of the conformance suite."""

import asyncio
import json
from typing import Any

from cascade.runtime.bus import MessageBus
from cascade.runtime.events import ControlDecision, Event, RunStarted, TaskBlocked, TaskExecutionStarted
from cascade.spec.protocols import Connector
from cascade.spec.task import task
from cascade.telemetry.topics import control_topic, identity_from_environment
from cascade.testing._runs import bounded, run

HOSTILE = (
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


class SteeringConformance:
    """Part of `ConnectorConformance`: runs only where `send` has a way in."""

    def make_connector(self) -> Connector:
        raise NotImplementedError

    async def send(self, topic: str, data: bytes, *, retain: bool) -> bool:  # noqa: ARG002 - for subclasses
        """Play the other side: let a message come in. False if this connector has no way in."""
        return False

    def test_a_retained_pause_holds_before_the_first_task_until_it_is_cleared(self) -> None:
        asyncio.run(bounded(self._retained_pause))

    def test_a_pause_that_comes_later_lets_what_runs_end(self) -> None:
        asyncio.run(bounded(self._later_pause))

    def test_what_is_no_constraint_is_refused_and_what_held_before_still_holds(self) -> None:
        asyncio.run(bounded(self._hostile))

    def test_what_is_retained_for_others_changes_nothing(self) -> None:
        asyncio.run(bounded(self._others))

    async def _retained_pause(self) -> None:
        if not await self._say("global", "pause"):
            return
        seen = _Seen()
        work = asyncio.ensure_future(run(self.make_connector(), task(_one)(), seen.bus))
        try:
            await seen.first(TaskBlocked)
            assert not seen.all(TaskExecutionStarted)
            assert [blocked.reason for blocked in seen.all(TaskBlocked)] == ["paused"]
        finally:
            await self._clear("global", "pause")
        assert await work == 1
        assert [decision.action for decision in seen.all(ControlDecision)] == ["APPLIED", "CLEARED"]

    async def _later_pause(self) -> None:
        seen, goes_on = _Seen(), asyncio.Event()

        async def first() -> int:
            await goes_on.wait()
            return 1

        second = task(lambda x: x + 1, name="second")
        work = asyncio.ensure_future(run(self.make_connector(), second(task(first)()), seen.bus))
        await seen.first(TaskExecutionStarted)
        if not await self._say("task/sec*", "pause"):
            goes_on.set()
            await work
            return
        try:
            await seen.first(ControlDecision)
            goes_on.set()
            assert (await seen.first(TaskBlocked)).task_name == "second"
        finally:
            await self._clear("task/sec*", "pause")
        assert await work == 2  # noqa: PLR2004 - one and one

    async def _hostile(self) -> None:
        if not await self._say("global", "pause"):
            return
        seen = _Seen()
        work = asyncio.ensure_future(run(self.make_connector(), task(_one)(), seen.bus))
        try:
            await seen.first(TaskBlocked)
            for count, data in enumerate(HOSTILE, 1):
                await self.send(_topic("global", "pause"), data, retain=False)
                refused = await seen.nth(ControlDecision, count + 1)
                assert (refused.action, bool(refused.reason)) == ("REFUSED", True)
            assert not seen.all(TaskExecutionStarted)
        finally:
            await self._clear("global", "pause")
        assert await work == 1

    async def _others(self) -> None:
        scope = "run/00000000-0000-4000-8000-000000000000"
        if not await self._say(scope, "pause"):
            return
        try:
            seen = _Seen()
            assert await run(self.make_connector(), task(_one)(), seen.bus) == 1
            assert not seen.all(ControlDecision)
        finally:
            await self._clear(scope, "pause")

    async def _say(self, scope: str, kind: str, **params: Any) -> bool:
        data = json.dumps({"id": "conformance", "type": kind, "params": params}).encode()
        return await self.send(_topic(scope, kind), data, retain=True)

    async def _clear(self, scope: str, kind: str) -> None:
        await self.send(_topic(scope, kind), b"", retain=True)


class _Seen:
    """A run's events, to be waited for."""

    def __init__(self) -> None:
        self.bus = MessageBus()
        self._events: list[Event] = []
        self._more = asyncio.Event()
        for kind in (RunStarted, TaskBlocked, TaskExecutionStarted, ControlDecision):
            self.bus.subscribe(kind, self._see)

    def _see(self, event: Event) -> None:
        self._events.append(event)
        self._more.set()

    def all(self, kind: type[Any]) -> list[Any]:
        return [event for event in self._events if isinstance(event, kind)]

    async def first(self, kind: type[Any]) -> Any:
        return await self.nth(kind, 1)

    async def nth(self, kind: type[Any], count: int) -> Any:
        while len(found := self.all(kind)) < count:
            self._more.clear()
            await self._more.wait()
        return found[count - 1]


def _topic(scope: str, kind: str) -> str:
    return control_topic(*identity_from_environment(), scope, kind)


def _one() -> int:
    return 1
