"""`FanoutConnector` combines several connectors. An error of one does not affect the others."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors.report import ConnectorReport, report_of
from cascade.runtime.bus import CombinedBackpressure
from cascade.runtime.exceptions import TelemetryLostError
from cascade.runtime.guard import FAULTS, call_connector, flush_timeout_of, texts_of
from cascade.runtime.protocols import OPTIONAL_MESSAGES, Backpressure, Connector, Displaying, Tracing, Unsubscribing
from cascade.runtime.publish_queue import MAX_QUEUED_BYTES, MESSAGE_BYTES, Message, PublishQueue
from cascade.runtime.task_context import TaskContext
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.identity import RunTrace, SpanRef, place_run
from cascade.telemetry.sanitize import error_text, without_captured

logger = get_logger(__name__)

T = TypeVar("T")

DRAIN_TIMEOUT = 5.0
"""Seconds at the end of a run in which each connector may publish the messages in its queue."""
CONNECT_TIMEOUT = 4.0
DISCONNECT_TIMEOUT = 20.0
"""Seconds that each connector may take to connect or disconnect. They are below the limits of the engine for all of them."""


class FanoutConnector:
    """Connector that forwards messages to the publish queues of several connectors. Each queue counts its lost messages.

    If several connectors create spans, the span of the first one is the current span in tasks.
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
        self._queues = [PublishQueue(connector, max_bytes=max_bytes) for connector in self.connectors]
        self._backpressure = CombinedBackpressure(
            *self._queues, *(connector for connector in self.connectors if isinstance(connector, Backpressure))
        )
        self._tracing: list[Tracing] = [connector for connector in self.connectors if isinstance(connector, Tracing)]
        self._displaying = [connector for connector in self.connectors if isinstance(connector, Displaying)]
        self._captures = [texts_of(connector, "capture") for connector in self.connectors]
        self._ignored = [OPTIONAL_MESSAGES & texts_of(connector, "ignored") for connector in self.connectors]

    @property
    def ignored(self) -> frozenset[str]:
        """The kinds of messages that no connector uses."""
        return frozenset.intersection(*self._ignored) if self._ignored else frozenset()

    @property
    def capture(self) -> frozenset[str]:
        """The values that at least one connector captures. The other connectors get messages without them."""
        return frozenset().union(*self._captures)

    @property
    def flush_timeout(self) -> float:
        """The longest `flush_timeout` of the connectors in seconds."""
        return max((flush_timeout_of(connector) for connector in self.connectors), default=0.0)

    @property
    def queues(self) -> tuple[PublishQueue, ...]:
        """The queue of each connector."""
        return tuple(self._queues)

    def report(self) -> ConnectorReport:
        """Return the sums over all connectors and their publish queues. `connected` is true if all are connected.

        For a connector without a report, its published messages count as sent.
        """
        reports = [report_of(queue) for queue in self._queues]
        return ConnectorReport(
            sent=sum(one.sent for one in reports),
            lost=sum(one.lost for one in reports),
            retried=sum(one.retried for one in reports),
            queued=sum(one.queued for one in reports),
            connected=bool(reports) and all(one.connected for one in reports),
            last_error=next((one.last_error for one in reports if one.last_error), ""),
        )

    def place_run(self, run_id: str, target: str, start_ns: int, parent: SpanRef | None) -> RunTrace:
        """Return the trace of the first connector that returns one. A connector that raises is skipped, with a warning."""
        traces = [self._place_run(connector, run_id, target, start_ns, parent) for connector in self._tracing]
        return next((trace for trace in traces if isinstance(trace, RunTrace)), None) or place_run(run_id, parent)

    def activate(self, task: TaskContext) -> AbstractContextManager[None]:
        if len(self._tracing) == 1:
            return self._tracing[0].activate(task)
        return _ActiveSpans(tuple(self._tracing), task, self._disable_tracing)

    def is_full(self) -> bool:
        return self._backpressure.is_full()

    async def room(self) -> None:
        await self._backpressure.room()

    def shows(self, msg_id: str) -> bool:
        """Whether one of the connectors shows this message of the log now."""
        return any(connector.shows(msg_id) for connector in self._displaying)

    async def connect(self) -> None:
        """Connect all at the same time. The messages of a connector that fails are lost, which is logged at the end of the run."""
        errors = await _gather(self.connectors, lambda one: call_connector(one.connect, CONNECT_TIMEOUT))
        for queue, error in zip(self._queues, errors, strict=True):
            if error is not None:
                queue.close(error_text(error))

    async def disconnect(self) -> None:
        """Publish the queued messages, and disconnect all connectors at the same time.

        Raises:
            TelemetryLostError: A strict connector has lost telemetry. Errors of the other connectors are logged.
        """
        results = await _gather(self._queues, self._drain_and_disconnect)
        loss = next((error for error in results if isinstance(error, TelemetryLostError)), None)
        for connector, error in zip(self.connectors, results, strict=True):
            if error is not None and error is not loss:
                logger.warning("%s could not disconnect: %s", _name(connector), error_text(error))
        if loss is not None:
            raise loss

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        self.put(topic, payload, qos)

    def put(self, topic: str, payload: dict[str, Any], qos: int = 0) -> bool:
        """Put a message into the queue of each connector that does not ignore it. The queues limit their memory. Returns True."""
        body = payload["body"]
        kind = body.get("state") or body.get("action")
        for queue, capture, ignored in zip(self._queues, self._captures, self._ignored, strict=True):
            if kind not in ignored:
                queue.put(Message(topic, without_captured(payload, keep=capture), qos, MESSAGE_BYTES))
        return True

    async def subscribe(self, topic: str, callback: MessageCallback) -> None:
        results = await _gather(self.connectors, lambda one: one.subscribe(topic, callback))
        for connector, error in zip(self.connectors, results, strict=True):
            if error is not None:
                logger.warning("%s could not subscribe to %s: %s", _name(connector), topic, error_text(error))

    async def unsubscribe(self, topic: str, callback: MessageCallback) -> None:
        able = [connector for connector in self.connectors if isinstance(connector, Unsubscribing)]
        results = await _gather(able, lambda one: one.unsubscribe(topic, callback))
        for connector, error in zip(able, results, strict=True):
            if error is not None:
                logger.warning("%s could not unsubscribe from %s: %s", _name(connector), topic, error_text(error))

    async def _drain_and_disconnect(self, queue: PublishQueue) -> None:
        await queue.drain(self._drain_timeout)
        await call_connector(queue.connector.disconnect, DISCONNECT_TIMEOUT + flush_timeout_of(queue.connector))

    def _place_run(self, connector: Tracing, run_id: str, *rest: Any) -> object:
        try:
            return connector.place_run(run_id, *rest)
        except FAULTS as error:
            raise_in_tests(error)
            logger.exception("%s failed to place the run in a trace; the run continues", _name(connector))
            return None

    def _disable_tracing(self, connector: Tracing) -> None:
        if connector in self._tracing:
            self._tracing.remove(connector)
            logger.exception(  # noqa: LOG004 - called from exception handlers
                "%s failed to activate a span; the run continues without it", _name(connector)
            )


class _ActiveSpans:
    """Activates spans of several connectors, the first one innermost. `disable` is called for a connector that raises."""

    def __init__(self, connectors: Sequence[Tracing], task: TaskContext, disable: Callable[[Tracing], None]) -> None:
        self._connectors = connectors
        self._task = task
        self._disable = disable
        self._active: list[tuple[Tracing, AbstractContextManager[None]]] = []

    def __enter__(self) -> None:
        for connector in reversed(self._connectors):
            try:
                active = connector.activate(self._task)
                active.__enter__()
            except FAULTS as raised:
                raise_in_tests(raised)
                self._disable(connector)
            else:
                self._active.append((connector, active))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._active:
            connector, active = self._active.pop()
            try:
                active.__exit__(kind, error, trace)
            except FAULTS as raised:
                raise_in_tests(raised)
                self._disable(connector)


async def _gather(ones: Iterable[T], call: Callable[[T], Awaitable[Any]]) -> list[Exception | None]:
    """Await `call` for each of `ones` at the same time, and return their errors.

    A CancelledError of a call becomes a RuntimeError. Reading a method of a connector may raise too.
    """
    results = await asyncio.gather(*(call_connector(partial(call, one)) for one in ones), return_exceptions=True)
    errors = [result if isinstance(result, Exception) else None for result in results]
    for error in filter(None, errors):
        raise_in_tests(error)
    return errors


def _name(connector: object) -> str:
    return type(connector).__name__
