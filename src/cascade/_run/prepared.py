"""`PreparedRun`: assembles the bus, the subscribers, the executor and the engine of one run, and runs it."""

import asyncio
import os
from collections.abc import Sequence
from types import FrameType
from typing import Any

from cascade._run.delivery import Delivery
from cascade._run.options import RunOptions
from cascade._run.recorder import RunRecorder
from cascade._run.result import RunResult
from cascade._run.trace_links import TraceLinkSubscriber, trace_url, trace_url_template
from cascade._signals import RunSignals
from cascade.adapters.executors.local import LocalExecutor, runs_task_function
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.by_name import connectors_from
from cascade.connectors.fanout import FanoutConnector
from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.bus import bus as messaging_bus
from cascade.messaging.renderer import LEVELS, CliRenderer, JsonRenderer, LoggingRenderer, severity
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine, refuse_event_loop
from cascade.runtime.events import RunStillStopping
from cascade.runtime.exceptions import TelemetryLostError
from cascade.runtime.protocols import Connector, Displaying
from cascade.runtime.subscribers import HumanReadableLogSubscriber, TelemetrySubscriber
from cascade.runtime.task_context import CURRENT_TASK


class PreparedRun:
    """One run with its bus, subscribers, executor and engine.

    `has_result` is true for a run whose `outcome` is read: only such a run counts its tasks and compares the reports of its
    connectors.

    Raises:
        ValueError: A setting has a value that is not allowed. Nothing has run.
        TypeError: `connector` is not a connector.
    """

    def __init__(self, target: Any, options: RunOptions, *, has_result: bool = False) -> None:
        self._target, self._options = target, options
        events, telemetry = MessageBus(), _one_connector(options.connector)
        messages = _messages_of_run(options.log_level, options.log_format, telemetry)
        HumanReadableLogSubscriber(events, min_level=options.log_level, messages=messages)
        subscriber = self._url_template = None
        if telemetry is not None:
            subscriber = TelemetrySubscriber(events, telemetry)
            self._url_template = trace_url_template(os.environ)
            if severity(options.log_level) < LEVELS["OFF"]:
                TraceLinkSubscriber(events, self._url_template, messages)
        self._events, self._messages = events, messages
        self._record = RunRecorder(events, counts=has_result)
        self._delivery = Delivery(subscriber if has_result else None)
        self._executor = LocalExecutor(max_workers=options.max_workers)
        self._engine = Engine(
            NativeSolver(), self._executor, events, system_resources=options.system_resources, connector=telemetry
        )
        for resource in options.resources:
            self._engine.register(resource)
        self._value: Any = None
        self.error: BaseException | None = None

    @property
    def was_cancelled(self) -> bool:
        """Whether the run was cancelled. Its messages have reported this."""
        return self._record.status == "Cancelled"

    @property
    def failed(self) -> bool:
        """Whether the run failed. Its messages have named the error."""
        return self._record.status == "Failed"

    def on_signal(self, frame: FrameType | None) -> None:
        """Report a task that a signal cannot interrupt, because its plain function occupies the event loop.

        Called in a signal handler, with the interrupted frame.
        """
        execution = CURRENT_TASK.get() if runs_task_function(frame) else None
        if execution is not None:
            task = execution.task
            self._events.publish(RunStillStopping(run_id=task.run_id, work=(task.name,)))

    def report_cancellation(self) -> None:
        """Print that a signal arrived before the start or after the end of the run. The messages of the run do not report it."""
        if self._record.status is None:
            self._messages.error("run.cancelled_early")
        elif not self.was_cancelled and self.error is None:
            self._messages.error("run.cancelled_late")

    async def perform(self) -> None:
        """Run the workflow, and store its value or error. Only the cancellation of the caller is raised.

        The value and the error do not leave the coroutine: `asyncio.Runner` and the debug mode of asyncio would call
        `repr` on them.
        """
        try:
            options = self._options
            self._value = await self._engine.run(
                self._target,
                options.params,
                run_id=options.run_id,
                name=options.name,
                tags=options.tags,
                timeout=options.timeout,
                fail_fast=options.fail_fast,
                cache=options.cache,
            )
        except GeneratorExit:
            raise
        except asyncio.CancelledError as error:
            if _caller_is_cancelled():
                raise
            self.error = error
        except BaseException as error:  # noqa: BLE001 - raised again by result
            self.error = error
        finally:
            self._executor.close()

    def result(self) -> Any:
        """Return the run's value, or raise its error, once."""
        value, error = self._value, self.error
        self._forget()
        if error is None:
            return value
        try:
            raise error
        finally:
            del error  # it refers to this frame

    def outcome(self) -> RunResult[Any]:
        """Return the result of the run, once.

        Raises:
            BaseException: The error of a run that has not started, or a KeyboardInterrupt.
        """
        record, value, error = self._record, self._value, self.error
        kind = type(error)  # `isinstance` reads `__class__`, which may run code of the exception
        if record.status is None or issubclass(kind, KeyboardInterrupt):
            del value, error
            return self.result()  # type: ignore[no-any-return]  # it raises
        failures = record.failures
        self._forget()
        if issubclass(kind, TelemetryLostError) and record.status == "Succeeded":
            value = getattr(error, "value", None)
        try:
            return RunResult(
                value=value,
                error=error,
                status=record.status,
                run_id=record.run_id,
                trace_id=record.trace_id,
                trace_url=trace_url(self._url_template, record.trace_id),
                duration=record.duration,
                counts=record.counts,
                failures=failures,
                telemetry=self._delivery.reports(),
            )
        finally:
            del error  # it refers to this frame

    def _forget(self) -> None:
        """Drop the value, the error and the failures: the tracebacks of exceptions refer to this object."""
        self._value = self.error = None
        self._record.failures = ()


def _caller_is_cancelled() -> bool:
    """Whether the asyncio task that awaits the run was cancelled. Otherwise, a task of the run raised the cancellation."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def run_to_end(work: PreparedRun) -> Any:
    """Perform a prepared run and return its value, as `run` does.

    Raises:
        RuntimeError: An event loop is running in this thread.
        BaseException: See `run`.
    """
    refuse_event_loop("cs.run")
    perform_to_end(work)
    return work.result()


def perform_to_end(work: PreparedRun) -> None:
    """Perform a prepared run in a new event loop. Its value or error is in `work`.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        SystemExit: After SIGTERM.
    """
    with RunSignals(work.on_signal) as signals:
        try:
            with asyncio.Runner() as runner:
                runner.run(signals.run_cancellable(work.perform()))
        except asyncio.CancelledError:
            if signals.received is None:
                raise
    if signals.received is not None:
        work.report_cancellation()
        signals.raise_received(work.error)


def _messages_of_run(log_level: str, log_format: str, connector: Connector | None) -> Messages:
    """Return the message bus of one run, with its own renderer, which writes to stderr, or to the logger `cascade`.

    Lines that a live view of the connector shows are not printed.

    Raises:
        ValueError: The level or the format is unknown.
    """
    severity(log_level, argument="log_level")
    messages = Messages(messaging_bus.store)
    if log_format == "json":
        messages.set_renderer(JsonRenderer(min_level=log_level))
    elif log_format == "human":
        is_displayed = connector.shows if isinstance(connector, Displaying) else None
        messages.set_renderer(CliRenderer(messaging_bus.store, min_level=log_level, is_displayed=is_displayed))
    elif log_format == "logging":
        messages.set_renderer(LoggingRenderer(messaging_bus.store, min_level=log_level))
    else:
        raise ValueError(f"log_format={log_format!r}: choose 'human', 'json' or 'logging'")
    return messages


def _one_connector(connector: Connector | Sequence[Connector] | None) -> Connector | None:
    """Return the connector to use: the given one, several as one, or those that the environment names.

    Raises:
        TypeError: An object is not a connector.
    """
    chosen: list[Any]
    if connector is None:
        chosen = list(connectors_from(os.environ))
    elif isinstance(connector, (list, tuple)):
        chosen = list(connector)
    else:
        chosen = [connector]
    for each in chosen:
        if isinstance(each, type) or not isinstance(each, Connector):
            hint = f"; make one: {each.__name__}()" if isinstance(each, type) else ""
            raise TypeError(
                f"connector: {each!r} is not a connector, which has connect, disconnect, publish and subscribe{hint}"
            )
    if len(chosen) > 1:
        return FanoutConnector(chosen)
    return chosen[0] if chosen else None
