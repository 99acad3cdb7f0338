"""Several connectors as one, none of which can disturb another."""

import asyncio
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from cascade._loggers import get_logger
from cascade.runtime.exceptions import TelemetryLostError
from cascade.runtime.gates import Gates
from cascade.runtime.lane import MAX_QUEUED_BYTES, MESSAGE_BYTES, Lane, Message
from cascade.runtime.protocols import Capturing, Connector, Gate, Selective, Tracing, Unsubscribing
from cascade.runtime.task_context import TaskContext
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.identity import RunTrace, SpanRef, place_run
from cascade.telemetry.redact import without_captured

logger = get_logger(__name__)

DRAIN_TIMEOUT = 5.0
"""Seconds that one of the connectors may take at a run's end to publish what still waits in its lane."""


class FanoutConnector:
    """Gives each connector a lane of its own: a queue, a pump, and its own count of what was lost.

    Where several of them trace, the first one's span is the current one in the tasks.
    """

    def __init__(
        self,
        connectors: Sequence[Connector],
        *,
        drain_timeout: float = DRAIN_TIMEOUT,
        max_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        self.connectors = tuple(connectors)
        self._drain_timeout = drain_timeout
        self._lanes = [Lane(connector, max_bytes=max_bytes) for connector in self.connectors]
        self._gates = Gates(*self._lanes, *(connector for connector in self.connectors if isinstance(connector, Gate)))
        self._reported = [0] * len(self._lanes)
        self._tracing = [connector for connector in self.connectors if isinstance(connector, Tracing)]
        self._captures = [c.capture if isinstance(c, Capturing) else frozenset() for c in self.connectors]

    @property
    def ignored(self) -> frozenset[str]:
        """What none of them has a use for."""
        found = [c.ignored if isinstance(c, Selective) else frozenset[str]() for c in self.connectors]
        return frozenset.intersection(*found) if found else frozenset()

    @property
    def capture(self) -> frozenset[str]:
        """What any of them wants; the others get messages without it."""
        return frozenset().union(*self._captures)

    def place_run(self, run_id: str, target: str, start_ns: int, parent: SpanRef | None) -> RunTrace:
        places = [connector.place_run(run_id, target, start_ns, parent) for connector in self._tracing]
        return places[0] if places else place_run(run_id, parent)

    def activate(self, task: TaskContext) -> AbstractContextManager[None]:
        if len(self._tracing) == 1:
            return self._tracing[0].activate(task)
        return _all_active(self._tracing, task)

    def is_full(self) -> bool:
        return self._gates.is_full()

    async def room(self) -> None:
        await self._gates.room()

    async def connect(self) -> None:
        """Connect all side by side. One that fails loses its own messages, and says so at the run's end."""
        results = await _gather(lane.connector.connect() for lane in self._lanes)
        for lane, error in zip(self._lanes, results, strict=True):
            if error is not None:
                lane.close(f"{type(error).__name__}: {error}")

    async def disconnect(self) -> None:
        """Publish what waits, and disconnect all side by side.

        Raises:
            TelemetryLostError: One of them is strict, and has lost something.
        """
        results = await _gather(self._end(index) for index in range(len(self._lanes)))
        for connector, error in zip(self.connectors, results, strict=True):
            if isinstance(error, TelemetryLostError):
                raise error
            if error is not None:
                logger.warning("%s could not disconnect: %s: %s", _name(connector), type(error).__name__, error)

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        for lane, capture in zip(self._lanes, self._captures, strict=True):
            lane.put(Message(topic, without_captured(payload, keep=capture), qos, MESSAGE_BYTES, terminal=qos > 0))

    async def subscribe(self, topic: str, callback: MessageCallback) -> None:
        results = await _gather(connector.subscribe(topic, callback) for connector in self.connectors)
        for connector, error in zip(self.connectors, results, strict=True):
            if error is not None:
                logger.warning("%s could not subscribe to %s: %s", _name(connector), topic, error)

    async def unsubscribe(self, topic: str, callback: MessageCallback) -> None:
        await _gather(c.unsubscribe(topic, callback) for c in self.connectors if isinstance(c, Unsubscribing))

    async def _end(self, index: int) -> None:
        lane = self._lanes[index]
        await lane.drain(self._drain_timeout)
        lost, self._reported[index] = lane.lost - self._reported[index], lane.lost
        if lost:
            logger.warning("%s: %d telemetry messages were lost: %s", _name(lane.connector), lost, lane.last_error)
        await lane.connector.disconnect()


@contextmanager
def _all_active(connectors: Iterable[Tracing], task: TaskContext) -> Iterator[None]:
    with ExitStack() as stack:
        for connector in reversed(list(connectors)):
            stack.enter_context(connector.activate(task))
        yield


async def _gather(work: Iterable[Coroutine[Any, Any, None]]) -> list[Exception | None]:
    return [r if isinstance(r, Exception) else None for r in await asyncio.gather(*work, return_exceptions=True)]


def _name(connector: Connector) -> str:
    return type(connector).__name__
