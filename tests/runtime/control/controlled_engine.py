import asyncio
import json
from collections.abc import Callable
from typing import Any

from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.bus import MessageBus
from cascade.runtime.control.controller import Controller
from cascade.runtime.engine import Engine
from cascade.runtime.events import ControlDecision, Event, RunStarted, TaskBlocked, TaskExecutionStarted
from cascade.runtime.protocols import Executor
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.telemetry.topics import control_topic


class ControlledEngine:
    """An engine whose runs receive the constraints of a test. `events` has all events of its runs."""

    def __init__(
        self,
        connector: MemoryConnector | None = None,
        *,
        executor: Executor | None = None,
        clock: Callable[[], float] | None = None,
        **options: Any,
    ) -> None:
        self.connector = connector or MemoryConnector()
        self.bus = MessageBus()
        self.events: list[Event] = []
        self.executor = executor or LocalExecutor()
        self.bus.subscribe(Event, self._record)
        TelemetrySubscriber(self.bus, self.connector)
        self.engine = Engine(NativeSolver(), self.executor, self.bus, connector=self.connector, **options)
        if clock is not None:
            capacity, backpressure = self.engine.resource_manager, self.bus.backpressure
            self.engine.controller = Controller("local", "default", capacity, backpressure, clock)
        self._more = asyncio.Event()

    def start(self, target: Any) -> "asyncio.Future[Any]":
        return asyncio.ensure_future(self.engine.run(target))

    async def constrain(self, scope: str, kind: str, params: Any = None, *, retain: bool = True, **more: Any) -> None:
        payload = {"id": f"{kind}-1", "type": kind, "params": params or {}, **more}
        await self.send(scope, kind, json.dumps(payload).encode(), retain=retain)

    async def clear(self, scope: str, kind: str) -> None:
        await self.send(scope, kind, b"", retain=True)

    async def send(self, scope: str, kind: str, data: bytes, *, retain: bool = False) -> None:
        await self.connector.deliver(control_topic("local", "default", scope, kind), data, retain=retain)

    def events_of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def wait_for(self, kind: type[Any], count: int = 1) -> Any:
        """Wait until there are `count` events of a class, and return the last one of them."""
        while len(found := self.events_of(kind)) < count:
            self._more.clear()
            await self._more.wait()
        return found[count - 1]

    async def run_id(self) -> str:
        return str((await self.wait_for(RunStarted)).run_id)

    @property
    def decisions(self) -> list[tuple[str, str, str]]:
        return [(one.action, one.scope, one.constraint_type) for one in self.events_of(ControlDecision)]

    @property
    def reasons(self) -> list[tuple[str, str]]:
        return [(one.task_name, one.reason) for one in self.events_of(TaskBlocked)]

    @property
    def started(self) -> list[str]:
        return [one.task_name for one in self.events_of(TaskExecutionStarted)]

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        return [p["body"] for p in self.connector.payloads if p["body"]["type"] == kind]

    def _record(self, event: Event) -> None:
        self.events.append(event)
        self._more.set()
