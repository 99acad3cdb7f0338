"""`run` and `run_async`: put bus, subscribers and engine together, run, take them down."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from cascade._blocks import block
from cascade._trace_link import TraceLinkSubscriber, trace_url_template
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.by_name import connectors_from
from cascade.connectors.fanout import FanoutConnector
from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.bus import bus as messaging_bus
from cascade.messaging.renderer import LEVELS, CliRenderer, JsonRenderer, severity
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine, require_event_loop
from cascade.runtime.events import RunFinished
from cascade.runtime.protocols import Connector
from cascade.runtime.subscribers import HumanReadableLogSubscriber, TelemetrySubscriber
from cascade.spec.lazy_types import Lazy
from cascade.spec.resource import ResourceDefinition

T = TypeVar("T")

EXIT_SIGTERM = 128 + signal.SIGTERM


def run(
    target: Lazy[T],
    params: dict[str, Any] | None = None,
    system_resources: Mapping[str, float] | None = None,
    log_level: str = "INFO",
    log_format: str = "human",
    connector: Connector | Sequence[Connector] | None = None,
    *,
    resources: Iterable[ResourceDefinition] = (),
    max_workers: int | None = None,
) -> T:
    """Run a workflow and return its target's value.

    In the main thread, Ctrl-C and SIGTERM cancel the run; its telemetry is complete all the same.

    Args:
        target: What calling a task, or its `.map`, has returned.
        params: Values of the workflow's Params, by name.
        system_resources: Capacity by name of what `with_constraints` asks for; other names are unlimited.
        log_level: The lowest level of the messages that this run prints on stderr: "DEBUG", "INFO", "WARNING", "ERROR"
            or "OFF", in any case. "OFF" prints none. Warnings of the `logging` module are not affected.
        log_format: "human", or "json" for one JSON object per line. Level and format belong to this run alone.
        connector: Where telemetry goes: a connector or several. None takes those that CASCADE_CONNECTOR names.
        resources: Resources that tasks ask for by name.
        max_workers: How many plain functions of this run execute at once, an integer from 1 up. None is the default of
            `concurrent.futures`: the number of processors plus 4, at most 32. The worker threads belong to the process:
            all its runs share them, and there are as many as the largest `max_workers` of a run in progress.

    Raises:
        RuntimeError: An event loop is running in this thread: `await cs.run_async(…)` there.
        ValueError: There is no such `log_level` or `log_format`, or `max_workers` is no integer from 1 up.
        DependencyMissingError: The target was skipped.
        BaseException: What the first task that failed has raised, as it was raised.
    """
    _refuse_running_loop()
    work = PreparedRun(target, params, system_resources, log_level, log_format, connector, resources, max_workers)
    value: T = run_to_end(work)
    return value


def run_to_end(work: "PreparedRun") -> Any:
    """Run what is prepared, as `run` does.

    Raises:
        RuntimeError: An event loop is running in this thread.
        BaseException: See `run`.
    """
    _refuse_running_loop()
    terminated = threading.Event()
    try:
        with asyncio.Runner() as runner:
            runner.run(_until_sigterm(work, terminated))
    except asyncio.CancelledError:
        if terminated.is_set():
            raise SystemExit(EXIT_SIGTERM) from None
        raise
    return work.result()


async def run_async(
    target: Lazy[T],
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

    Signals are left to the host.

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
        TypeError: `connector` is no connector.
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
        messages = messages_of_run(log_level, log_format)
        events, moved_by = MessageBus(), one_connector(connector)
        HumanReadableLogSubscriber(events, min_level=log_level, messages=messages)
        if moved_by is not None:
            TelemetrySubscriber(events, moved_by)
            template = trace_url_template(os.environ)
            if severity(log_level) < LEVELS["OFF"]:
                TraceLinkSubscriber(events, template, messages)
        self._outcome = _Outcome()
        events.subscribe(RunFinished, self._outcome.on_finished)
        self._executor = LocalExecutor(max_workers=max_workers)
        self._engine = Engine(
            NativeSolver(), self._executor, events, system_resources=system_resources, connector=moved_by
        )
        for resource in resources:
            self._engine.register(resource)
        self._value: Any = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether the run has ended with a failure, which its messages have named."""
        return self._outcome.failed

    async def perform(self) -> None:
        """Run the workflow, for `result`. Only a cancellation is raised.

        The asyncio task that does this ends without a value or another error: `asyncio.Runner` and asyncio's debug mode
        call `repr` on them.
        """
        try:
            self._value = await self._engine.run(self._target, self._params)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - raised again by result
            self._error = error
        finally:
            self._executor.close()

    def result(self) -> Any:
        """Return the run's value, or raise its error, once."""
        value, error = self._value, self._error
        self._value = self._error = None
        if error is None:
            return value
        try:
            raise error
        finally:
            del error  # it refers to this frame


class _Outcome:
    """Whether a run has failed. An object of its own: the bus must not refer to the run that it belongs to."""

    failed = False

    def on_finished(self, event: RunFinished) -> None:
        self.failed = event.status == "Failed"


def messages_of_run(log_level: str, log_format: str) -> Messages:
    """The messages of one run, with a renderer of their own that writes to stderr.

    Raises:
        ValueError: There is no such level or format.
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


def one_connector(connector: Connector | Sequence[Connector] | None) -> Connector | None:
    """The connector to use: as given, several as one, or those that the environment names.

    Raises:
        TypeError: Something given is no connector.
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
                f"connector: {each!r} is no connector, which has connect, disconnect, publish and subscribe{hint}"
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


async def _until_sigterm(work: PreparedRun, terminated: threading.Event) -> None:
    with _cancel_on_sigterm(terminated):
        await work.perform()


@block
def _cancel_on_sigterm(terminated: threading.Event) -> Iterator[None]:
    """Cancel the current task on SIGTERM, unless the program handles that signal itself."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def cancel() -> None:
        terminated.set()
        if task is not None:
            task.cancel()

    try:
        loop.add_signal_handler(signal.SIGTERM, cancel)
    except NotImplementedError:  # Windows
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
