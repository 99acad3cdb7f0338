"""Subscribers of every run: one prints messages on the terminal, the other publishes telemetry to the connector."""

import asyncio
from collections import Counter, defaultdict, deque
from dataclasses import asdict
from functools import partial
from typing import Any

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.bus import bus as messaging_bus
from cascade.messaging.bus import message_ids
from cascade.messaging.renderer import LEVELS, severity
from cascade.runtime._log_values import level_of, task_values
from cascade.runtime._messages import EVENTS, Converters
from cascade.runtime._metadata import RunTelemetry, UnstampedMessage
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import (
    ConnectorFailed,
    ControlDecision,
    Event,
    MapCounts,
    MapProgressed,
    ResourceEvent,
    ResourceReleased,
    ResourceSetupFailed,
    RunFinished,
    RunStarted,
    RunStillStopping,
    TaskEvent,
    TaskExecutionFinished,
    TaskExecutionStarted,
    TaskRetrying,
    TaskSkipped,
)
from cascade.runtime.guard import FAULTS, texts_of
from cascade.runtime.log_records import LogCorrelation
from cascade.runtime.protocols import OPTIONAL_MESSAGES, Backpressure
from cascade.runtime.publish_queue import MAX_QUEUED_BYTES, Message, PublishQueue, estimated_size
from cascade.spec.protocols import Connector
from cascade.spec.telemetry import Header
from cascade.telemetry.identity import RunTrace, place_run, span_id
from cascade.telemetry.limits import shrink
from cascade.telemetry.sanitize import masked_name, sanitize
from cascade.telemetry.topics import events_topic, identity_from_environment, source
from cascade.telemetry.wire import encode_header, timestamp

logger = get_logger(__name__)

MAX_NAMES = 5
"""Names in one message."""

MAX_FAILURES_SHOWN = 20
"""Failures of the tasks of one name in one run that are printed."""

BATCH = 32
"""Largest number of events that are converted together."""

DRAIN_TIMEOUT = 5.0
"""Seconds that the end of a run waits until its last messages are published."""


class HumanReadableLogSubscriber:
    """Prints the events of runs as messages.

    A map prints its progress, at most once a second and at its end. Of its items it prints failures and retries, with
    the index; their starts, successes and skips have the level DEBUG.

    Args:
        event_bus: The bus of the events.
        min_level: "DEBUG", "INFO", "WARNING", "ERROR" or "OFF". Messages below it are not printed, whatever
            the level of the renderer.
        messages: The bus that the messages are printed to; the global messaging bus by default.

    Raises:
        ValueError: `min_level` is unknown.
    """

    def __init__(self, event_bus: MessageBus, *, min_level: str = "DEBUG", messages: Messages | None = None) -> None:
        self._own_messages = messages
        self._failed: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by run, the failures of each task
        level = severity(min_level)
        quiet = self._is_quiet = level > LEVELS["INFO"]
        if level > LEVELS["ERROR"]:
            return
        items = level <= LEVELS["DEBUG"]
        self._correlation = LogCorrelation(event_bus)
        if not quiet:
            event_bus.subscribe(RunStarted, self.on_run_started)
            of_items = None if items else False
            event_bus.subscribe(TaskExecutionStarted, self.on_task_started, of_items=of_items)
            event_bus.subscribe(TaskSkipped, self.on_task_skipped, of_items=of_items)
            event_bus.subscribe(MapProgressed, self.on_map_progressed)
        event_bus.subscribe(RunFinished, self.on_run_finished, failures_only=quiet)
        event_bus.subscribe(RunStillStopping, self.on_run_still_stopping)
        event_bus.subscribe(TaskExecutionFinished, self.on_task_finished, failures_only=quiet, of_items=False)
        event_bus.subscribe(TaskExecutionFinished, self.on_task_finished, failures_only=not items, of_items=True)
        event_bus.subscribe(ResourceSetupFailed, partial(self.on_resource_error, "resource.setup_failed"))
        event_bus.subscribe(ResourceReleased, partial(self.on_resource_error, "resource.teardown_failed"))
        if level <= LEVELS["WARNING"]:
            event_bus.subscribe(TaskRetrying, self.on_task_retrying)
            event_bus.subscribe(ControlDecision, self.on_control_decision)
            event_bus.subscribe(RunFinished, self.on_starved)
            event_bus.measure()
        event_bus.subscribe(RunFinished, self._correlation.forget)

    def _print(self, event: Event, level: str, msg_id: str, **values: Any) -> None:
        # The global bus is read at each call: a program may replace it.
        messages = messaging_bus if self._own_messages is None else self._own_messages
        shows_ids = messages.shows_ids is True  # `is`, because a bus may be a mock
        token = message_ids.set(partial(self._correlation.ids_of, event)) if shows_ids else None
        try:
            getattr(messages, level)(msg_id, **values)
        finally:
            if token is not None:
                message_ids.reset(token)

    def on_run_started(self, event: RunStarted) -> None:
        named = {"name": masked_name(event.name)} if event.name else {}
        self._print(event, "info", "run.started", target_tasks=event.target_tasks, **named)
        if event.params:
            self._print(event, "info", "run.started_with_params", params=sanitize(event.params))

    def on_run_finished(self, event: RunFinished) -> None:
        values: dict[str, Any] = {"duration": event.duration}
        failed = sum(self._failed.pop(str(event.run_id), Counter[str]()).values())
        if event.failures:
            values["failed"] = failed
        if event.status == "Succeeded":
            self._print(event, "info", "run.finished_success", **values)
        elif event.status == "Cancelled":
            self._print(event, "error", "run.cancelled", **values, reason=event.error or "cancelled")
        else:
            self._print(event, "error", "run.finished_failure", **values, error=event.error)

    def on_starved(self, event: RunFinished) -> None:
        """Print that the threads of the run waited for a processor most of the time."""
        if event.starved is not None:
            self._print(event, "warning", "run.starved", **asdict(event.starved))

    def on_run_still_stopping(self, event: RunStillStopping) -> None:
        counts = Counter(event.work)
        shown = [name if count == 1 else f"{name} ({count})" for name, count in counts.most_common(MAX_NAMES)]
        more = f" and {len(counts) - MAX_NAMES} more" if len(counts) > MAX_NAMES else ""
        self._print(event, "error", "run.still_stopping", work=", ".join(shown) + more)

    def on_task_started(self, event: TaskExecutionStarted) -> None:
        if event.attempt <= 1:  # the message about the retry has announced a later attempt
            self._print(event, level_of(event), "task.started", **task_values(event))

    def on_task_finished(self, event: TaskExecutionFinished) -> None:
        if event.counts is not None and event.map_size and not self._is_quiet:
            self._print_progress(event, event.map_size, event.counts)
        values = task_values(event)
        values["duration"] = event.duration
        if event.status == "Succeeded":
            self._print(event, level_of(event), "task.finished_success", **values)
        elif event.status != "Cancelled" and (event.kind != "map" or event.error is not None):
            # The message about an item has named the failure of its map. A cancelled task is no failure.
            self._print_failure(event, values | {"error": event.error})

    def _print_failure(self, event: TaskExecutionFinished, values: dict[str, Any]) -> None:
        """Print a failure, and count it: a map with `allow_failure()` may have 100,000."""
        failed = self._failed[str(event.run_id)]
        failed[event.task_name] += 1
        count = failed[event.task_name]
        if count <= MAX_FAILURES_SHOWN:
            level, text = ("warning", "failure_allowed") if event.is_allowed else ("error", "finished_failure")
            self._print(event, level, f"task.{text}", **values)
        elif count == MAX_FAILURES_SHOWN + 1:
            self._print(event, "warning", "task.more_failures", task_name=event.task_name)

    def on_task_skipped(self, event: TaskSkipped) -> None:
        self._print(event, level_of(event), "task.skipped", **task_values(event), reason=event.reason)

    def on_map_progressed(self, event: MapProgressed) -> None:
        self._print_progress(event, event.map_size, event.counts)

    def _print_progress(self, event: TaskEvent, total: int, counts: MapCounts) -> None:
        others = {"failed": counts.failed, "cached": counts.cached}
        shown = {name: count for name, count in others.items() if count}
        self._print(event, "info", "map.progress", task_name=event.task_name, done=counts.done, total=total, **shown)

    def on_task_retrying(self, event: TaskRetrying) -> None:
        self._print(
            event,
            "warning",
            "task.retrying",
            **task_values(event),
            attempt=event.attempt,
            max_attempts=event.max_attempts,
            delay=event.delay,
            error=event.error,
        )

    def on_resource_error(self, msg_id: str, event: ResourceEvent) -> None:
        """Print the error of a setup or teardown, if any. The error of a run has only a note about a teardown."""
        if event.exception is not None:
            error = f"{event.exception.type.rpartition('.')[2]}: {event.exception.message}"
            self._print(event, "error", msg_id, resource_name=event.resource_name, error=error)

    def on_control_decision(self, event: ControlDecision) -> None:
        """The level is WARNING: the message explains why a run makes no progress."""
        self._print(
            event,
            "warning",
            f"control.{event.action.lower()}",
            scope=event.scope,
            constraint_type=event.constraint_type,
            params=event.params or "",
            reason=event.reason or "",
        )


class TelemetrySubscriber:
    """Converts events to messages and publishes them to a connector, in order.

    The end of a run waits at most `drain_timeout` seconds for the last messages. Events without a run_id are ignored.

    Raises:
        ValueError: CASCADE_ORG_ID or CASCADE_PROJECT_ID cannot be a level of a topic.
    """

    def __init__(
        self,
        event_bus: MessageBus,
        connector: Connector,
        *,
        drain_timeout: float = DRAIN_TIMEOUT,
        max_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        self._org_id, self._project_id = identity_from_environment()
        self._queue = PublishQueue(connector, max_bytes=max_bytes)
        self._capture = texts_of(connector, "capture")
        event_bus.capture(self._capture - {"params"})
        event_bus.measure(tasks=True)
        self._drain_timeout = drain_timeout
        self._bus = event_bus
        self._runs: dict[str, RunTelemetry] = {}
        self._events: deque[Event] = deque()
        self._converted: deque[Message] = deque()
        self._has_failed = False
        self._converters = Converters()
        ignored = OPTIONAL_MESSAGES & texts_of(connector, "ignored")
        for word, kinds in EVENTS.items():
            for kind in kinds if word not in ignored else ():
                event_bus.subscribe(kind, self.on_event)
        event_bus.subscribe(ConnectorFailed, self.on_connector_failed)
        event_bus.on_drain(self.drain)
        event_bus.backpressure.add(self._queue)
        if isinstance(connector, Backpressure):
            event_bus.backpressure.add(connector)

    @property
    def queue(self) -> PublishQueue:
        """The queue of the connector."""
        return self._queue

    @property
    def lost(self) -> int:
        """The number of messages that could not be published."""
        return self._queue.lost

    def on_connector_failed(self, event: ConnectorFailed) -> None:
        if event.run_id is not None:
            self._queue.close(event.error)

    def on_event(self, event: Event) -> None:
        """Convert an event at once, or at the end of the turn of the event loop in a batch of events of tasks."""
        # A batch takes a sixth less time per event: the code of each step stays in the processor's cache.
        if event.run_id is None:
            return
        events, run = self._events, self._runs.get(event.run_id)
        events.append(event)
        # If two subscribers count the spans of a run, both convert each event at once.
        is_batched = (
            run is not None and run.parts.users == 1 and isinstance(event, TaskEvent) and not self._bus.captured
        )
        if not is_batched or len(events) >= BATCH:
            self._convert_events()
        elif len(events) == 1:
            try:
                asyncio.get_running_loop().call_soon(self._convert_events)
            except RuntimeError:  # outside of a loop
                self._convert_events()

    def _convert_events(self) -> None:
        while self._events:  # an interrupt, such as a KeyboardInterrupt, leaves the other events for the next call
            event = self._events.popleft()
            try:
                self._convert(event)
            except FAULTS as error:
                raise_in_tests(error)
                if not self._has_failed:
                    self._has_failed = True
                    logger.exception("%s was not published; further failures are not logged", type(event).__name__)
        # All events are converted before the first message is put: a connector that encodes the message in `put` would displace
        # the code of the conversion from the cache.
        while self._converted:
            self._queue.put(self._converted.popleft())

    def _convert(self, event: Event) -> None:
        run = self._runs.get(str(event.run_id)) or self._new_run(event)
        if run.header["source"] != source():  # a forked child: the parent reports the run
            return
        if (message := self._converters[type(event)](event, run)) is not None:
            self._converted.append(self._stamped(message, run, event))
        if isinstance(event, RunFinished):
            self._runs.pop(run.run_id, None)

    async def drain(self, run_id: str) -> None:  # noqa: ARG002 - one queue serves all runs, in order
        """Wait at most `drain_timeout` seconds until the present messages are published. Log the number of lost ones."""
        self._convert_events()
        await self._queue.drain(self._drain_timeout)

    def _new_run(self, event: Event) -> RunTelemetry:
        run_id = str(event.run_id)
        trace = getattr(event, "trace", None)
        trace = trace if isinstance(trace, RunTrace) else place_run(run_id)
        topic = events_topic(self._org_id, self._project_id, run_id)
        header = Header(
            run_id=trace.run_id,
            ts="",
            seq=0,
            org_id=self._org_id,
            project_id=self._project_id,
            source=source(),
            trace_flags=trace.flags,
            tracestate=trace.tracestate,
        )
        run = self._runs[run_id] = RunTelemetry(trace, self._capture, topic=topic, header=encode_header(header))
        return run

    def _stamped(self, message: UnstampedMessage, run: RunTelemetry, event: Event) -> Message:
        run.last_ns = max(run.last_ns, round(event.timestamp * 1e9))
        trace_id, parent_span_id = message.location
        payload = run.header.copy()  # a dict display that unpacks the header takes five times as long
        payload["ts"], payload["seq"] = timestamp(run.last_ns), run.seq
        payload["trace_id"], payload["parent_span_id"] = trace_id, parent_span_id
        payload["span_id"], payload["body"] = span_id(run.run_id, message.task_id), message.body
        if run.trace.tracestate and trace_id != run.trace.trace_id:
            del payload["tracestate"]
        payload = shrink(payload)
        run.seq += 1
        run.lost = self._queue.lost
        return Message(run.topic, payload, message.qos, estimated_size(message.body["metadata"]))
