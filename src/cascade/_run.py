"""`run` and `run_async`: assemble the bus, the subscribers and the engine of one run, and run it.

The end of a run prints its trace id, or the link to its trace.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from cascade._signals import RunSignals
from cascade.adapters.executors.local import LocalExecutor, runs_task_function
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.by_name import connectors_from
from cascade.connectors.fanout import FanoutConnector
from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.bus import bus as messaging_bus
from cascade.messaging.renderer import LEVELS, CliRenderer, JsonRenderer, severity
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine, require_event_loop
from cascade.runtime.events import RunFinished, RunStarted, RunStillStopping
from cascade.runtime.protocols import Connector
from cascade.runtime.subscribers import HumanReadableLogSubscriber, TelemetrySubscriber
from cascade.runtime.task_context import CURRENT_TASK, current_task
from cascade.spec.lazy_types import Target
from cascade.spec.resource import ResourceDefinition
from cascade.telemetry.identity import RunTrace

T = TypeVar("T")

TRACE_URL_VARIABLE = "CASCADE_TRACE_URL"
_PLACEHOLDER = "{trace_id}"


def run(
    target: Target[T],
    params: dict[str, Any] | None = None,
    system_resources: Mapping[str, float] | None = None,
    log_level: str = "INFO",
    log_format: str = "human",
    connector: Connector | Sequence[Connector] | None = None,
    *,
    resources: Iterable[ResourceDefinition] = (),
    max_workers: int | None = None,
) -> T:
    """Run a workflow and return the value of its target.

    In the main thread, Ctrl-C and SIGTERM cancel the run, unless the program handles the signal itself. The telemetry of
    the run is complete. A plain function in a thread cannot be interrupted: the process waits for its end. A
    second signal ends the process at once, with exit code 130 for Ctrl-C and 143 for SIGTERM.

    Args:
        target: A lazy result: the value of a call of a task or of its `.map`. Or a graph, which `from_json` returns.
        params: Values of the workflow's Params, by name.
        system_resources: Capacities of the resources that `with_constraints` requests, by name. Other names are unlimited.
        log_level: The lowest level of the messages that this run prints on stderr: "DEBUG", "INFO", "WARNING", "ERROR"
            or "OFF", in any case. "OFF" prints none. Warnings of the `logging` module are not affected.
        log_format: "human", or "json" for one JSON object per line. Level and format belong to this run alone.
        connector: One or more connectors, which receive the telemetry. None uses those that CASCADE_CONNECTOR names.
        resources: Resources that tasks inject by name.
        max_workers: Maximum number of plain functions of this run that execute at the same time, 1 or more. None is the
            default of `concurrent.futures`: the number of processors plus 4, at most 32. All runs of a process share
            its worker threads: as many as the largest `max_workers` of the runs in progress, and at least the default.

    Raises:
        RuntimeError: An event loop is running in this thread: `await cs.run_async(…)` there.
        ValueError: `log_level` or `log_format` is unknown, or `max_workers` is not an integer of 1 or more.
        DependencyMissingError: The target was skipped.
        KeyboardInterrupt: After Ctrl-C. If it is not caught, the interpreter prints no traceback.
        SystemExit: After SIGTERM, with exit code 143.
        BaseException: The exception of the first task that failed, unchanged.
    """
    _refuse_running_loop()
    work = PreparedRun(target, params, system_resources, log_level, log_format, connector, resources, max_workers)
    value: T = run_to_end(work)
    return value


def run_to_end(work: "PreparedRun") -> Any:
    """Perform a prepared run, as `run` does.

    Raises:
        RuntimeError: An event loop is running in this thread.
        BaseException: See `run`.
    """
    _refuse_running_loop()
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
    return work.result()


async def run_async(
    target: Target[T],
    params: dict[str, Any] | None = None,
    system_resources: Mapping[str, float] | None = None,
    log_level: str = "INFO",
    log_format: str = "human",
    connector: Connector | Sequence[Connector] | None = None,
    *,
    resources: Iterable[ResourceDefinition] = (),
    max_workers: int | None = None,
) -> T:
    """Run a workflow inside a running asyncio event loop: in a notebook, in a web server. The arguments are those of `run`.

    Signals are not handled.

    Raises:
        RuntimeError: No asyncio event loop is running in this thread.
        BaseException: See `run`.
    """
    require_event_loop("cs.run_async")
    work = PreparedRun(target, params, system_resources, log_level, log_format, connector, resources, max_workers)
    await work.perform()
    value: T = work.result()
    return value


class PreparedRun:
    """One run with its bus, subscribers, executor and engine. The arguments are those of `run`.

    Raises:
        ValueError: A setting has a value that is not allowed. Nothing has run.
        TypeError: `connector` is not a connector.
    """

    def __init__(
        self,
        target: Any,
        params: dict[str, Any] | None = None,
        system_resources: Mapping[str, float] | None = None,
        log_level: str = "INFO",
        log_format: str = "human",
        connector: Connector | Sequence[Connector] | None = None,
        resources: Iterable[ResourceDefinition] = (),
        max_workers: int | None = None,
    ) -> None:
        self._target, self._params = target, params
        messages = _messages_of_run(log_level, log_format)
        events, telemetry = MessageBus(), _one_connector(connector)
        HumanReadableLogSubscriber(events, min_level=log_level, messages=messages)
        if telemetry is not None:
            TelemetrySubscriber(events, telemetry)
            template = trace_url_template(os.environ)
            if severity(log_level) < LEVELS["OFF"]:
                TraceLinkSubscriber(events, template, messages)
        self._events, self._messages, self._outcome = events, messages, _Outcome()
        events.subscribe(RunFinished, self._outcome.on_finished)
        self._executor = LocalExecutor(max_workers=max_workers)
        self._engine = Engine(
            NativeSolver(), self._executor, events, system_resources=system_resources, connector=telemetry
        )
        for resource in resources:
            self._engine.register(resource)
        self._value: Any = None
        self.error: BaseException | None = None

    @property
    def was_cancelled(self) -> bool:
        """Whether the run was cancelled. Its messages have reported this."""
        return self._outcome.status == "Cancelled"

    @property
    def failed(self) -> bool:
        """Whether the run failed. Its messages have named the error."""
        return self._outcome.status == "Failed"

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
        if not self._outcome.status:
            self._messages.error("run.cancelled_early")
        elif not self.was_cancelled and self.error is None:
            self._messages.error("run.cancelled_late")

    async def perform(self) -> None:
        """Run the workflow, and store its value or error for `result`. Only a cancellation is raised.

        The value and the error do not leave the coroutine: `asyncio.Runner` and the debug mode of asyncio would call
        `repr` on them.
        """
        try:
            self._value = await self._engine.run(self._target, self._params)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - raised again by result
            self.error = error
        finally:
            self._executor.close()

    def result(self) -> Any:
        """Return the run's value, or raise its error, once."""
        value, error = self._value, self.error
        self._value = self.error = None
        if error is None:
            return value
        try:
            raise error
        finally:
            del error  # it refers to this frame


class _Outcome:
    """Status of a run that has ended. A separate object, so that the bus does not refer to the run."""

    status = ""

    def on_finished(self, event: RunFinished) -> None:
        self.status = event.status


def _messages_of_run(log_level: str, log_format: str) -> Messages:
    """Return the message bus of one run, with its own renderer, which writes to stderr.

    Raises:
        ValueError: The level or the format is unknown.
    """
    severity(log_level, argument="log_level")
    messages = Messages(messaging_bus.store)
    if log_format == "json":
        messages.set_renderer(JsonRenderer(min_level=log_level))
    elif log_format == "human":
        messages.set_renderer(CliRenderer(store=messaging_bus.store, min_level=log_level))
    else:
        raise ValueError(f"log_format={log_format!r}: choose 'human' or 'json'")
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


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("cs.run() cannot run inside a running event loop: use `await cs.run_async(...)` here")


def trace_url_template(environ: Mapping[str, str]) -> str | None:
    """Return the template of CASCADE_TRACE_URL, such as `http://localhost:16686/trace/{trace_id}`.

    Raises:
        ValueError: The template has no `{trace_id}`.
    """
    template = environ.get(TRACE_URL_VARIABLE, "").strip()
    if template and _PLACEHOLDER not in template:
        raise ValueError(
            f"{TRACE_URL_VARIABLE}={template!r} has no {_PLACEHOLDER}; put {_PLACEHOLDER} where the trace id belongs"
        )
    return template or None


class TraceLinkSubscriber:
    """Prints the id of a run's trace, or the link to it, once, at the end of the run.

    The level is ERROR if the run failed, or a run that one of its tasks has started; otherwise INFO. A run that a task has
    started in the trace of its own run prints nothing: the outer run prints the id of the common trace.

    Args:
        event_bus: The bus of one run and of the runs nested in it.
        template: A URL with `{trace_id}`; None prints the id alone.
        messages: The bus that the message is printed to.
    """

    def __init__(self, event_bus: MessageBus, template: str | None, messages: Messages) -> None:
        self._template = template
        self._messages = messages
        event_bus.subscribe(RunStarted, self.on_run_started)
        event_bus.subscribe(RunFinished, self.on_run_finished)

    def on_run_started(self, event: RunStarted) -> None:
        if event.run_id is not None and isinstance(event.trace, RunTrace):
            _links[event.run_id] = _link_of_outer_run(event) or _TraceLink(event.run_id, event.trace.trace_id)

    def on_run_finished(self, event: RunFinished) -> None:
        link = _links.pop(event.run_id or "", None)
        if link is None:
            return
        link.failed |= event.status == "Failed"
        if link.is_printed or link.run_id == event.run_id:
            link.is_printed = True
            self._print(link)

    def _print(self, link: "_TraceLink") -> None:
        show = self._messages.error if link.failed else self._messages.info
        if self._template is None:
            show("run.trace", trace_id=link.trace_id)
        else:
            show("run.trace_url", trace_id=link.trace_id, url=self._template.replace(_PLACEHOLDER, link.trace_id))


@dataclass(slots=True)
class _TraceLink:
    """The trace of a run and of the runs that its tasks started. `run_id` is that of the outermost run, which prints."""

    run_id: str
    trace_id: str
    failed: bool = False
    is_printed: bool = False


_links: dict[str, _TraceLink] = {}
"""Links by the id of each run in progress. All buses share them, because `cs.run` in a task creates a new bus."""


def _link_of_outer_run(event: RunStarted) -> _TraceLink | None:
    task = current_task()
    link = None if task is None else _links.get(task.run_id)
    shared = link is not None and (event.nested or link.trace_id == event.trace.trace_id)
    return link if shared else None
