"""The engine: runs workflows, from the connect of the connector to its disconnect."""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from contextvars import Context, ContextVar
from typing import Any, TypeVar, Unpack, overload

from cascade._context_managers import context_manager
from cascade.graph.build import GraphBuilder
from cascade.graph.model import Graph
from cascade.runtime._connection import connected
from cascade.runtime._resources import ResourceSetup
from cascade.runtime._run_context import Clock, RunClock, RunContext
from cascade.runtime._run_events import published
from cascade.runtime._run_identity import checked_fail_fast, checked_name, checked_run_id, in_progress, place_in_trace
from cascade.runtime._scheduler import Scheduler
from cascade.runtime._task_cache import RunCaches
from cascade.runtime._timeouts import within_timeout
from cascade.runtime.bus import MessageBus
from cascade.runtime.control.admission import Admission
from cascade.runtime.control.controller import Controller
from cascade.runtime.exceptions import TelemetryLostError
from cascade.runtime.protocols import Connector, Executor, Solver, StateBackend, Tracing
from cascade.runtime.resolvers import node_fields
from cascade.runtime.resource_manager import ResourceManager
from cascade.runtime.state import InMemoryStateBackend
from cascade.runtime.task_context import CURRENT_TASK, context_copier, current_task
from cascade.runtime.threads import creating_objects, in_thread
from cascade.spec.caching import Cache
from cascade.spec.lazy_types import Target
from cascade.spec.resource import ResourceDefinition
from cascade.spec.retry import checked_timeout
from cascade.spec.tags import checked_tags
from cascade.spec.targets import EngineOptions, Shape
from cascade.telemetry.identity import new_run_id
from cascade.telemetry.topics import identity_from_environment
from cascade.telemetry.trace_shards import part_limits_from_environment

T = TypeVar("T")
Params = dict[str, Any] | None

_NO_VALUE = object()
LARGE_GRAPH = 1_000
"""Number of nodes from which a thread builds and plans the graph, so that the event loop stays responsive."""


class Engine:
    """Runs workflows. One engine serves many runs, one after another or at once, in one event loop at a time.

    Args:
        solver: Orders the nodes of a graph.
        executor: Calls the functions of tasks.
        bus: Receives the events.
        state_backend_cls: Returns the store of a run's results, called as `state_backend_cls(run_id=…)`.
        system_resources: Capacities of the resources that `with_constraints` requests, by name. Other names are unlimited.
        connector: Is connected before the first event of a run and disconnected after the last one.
        clock: Returns nanoseconds since the Unix epoch.
        run_ids: Returns the id of each run: 128 random bits in UUID form by default. Any text that can be a level of a
            topic is accepted. A version 4 UUID biases ratio samplers.

    Attributes:
        controller: Applies the constraints that the connector receives; None without a connector.

    Raises:
        ValueError: CASCADE_TRACE_PART_SIZE or CASCADE_TRACE_PART_BYTES is not an integer above zero; or, with a
            connector, CASCADE_ORG_ID or CASCADE_PROJECT_ID cannot be a level of a topic.
    """

    def __init__(
        self,
        solver: Solver,
        executor: Executor,
        bus: MessageBus,
        state_backend_cls: Callable[..., StateBackend] = InMemoryStateBackend,
        system_resources: Mapping[str, float] | None = None,
        connector: Connector | None = None,
        *,
        clock: Clock | None = None,
        run_ids: Callable[[], str] = new_run_id,
    ) -> None:
        self.solver = solver
        self.executor = executor
        self.bus = bus
        self.state_backend_cls = state_backend_cls
        self.resource_manager = ResourceManager(system_resources)
        self.connector = connector
        self._clock = clock
        self._new_run_id = run_ids
        self._part_limits = part_limits_from_environment()
        self.controller = (
            Controller(*identity_from_environment(), self.resource_manager, bus.backpressure)
            if connector is not None
            else None
        )
        self._providers: dict[str, Callable[..., Any]] = {}

    def register(self, resource_def: ResourceDefinition) -> None:
        """Register a resource under its name."""
        self._providers[resource_def.name] = resource_def.func

    def get_resource_provider(self, name: str) -> Callable[..., Any]:
        """Return the generator function of a registered resource. Raises KeyError for an unknown name."""
        return self._providers[name]

    def override_resource_provider(self, name: str, new: Any) -> None:
        """Replace the generator function of a resource. `new` is a generator function or a resource definition."""
        self._providers[name] = new.func if isinstance(new, ResourceDefinition) else new

    @overload
    async def run(self, target: Target[T], params: Params = None, **options: Unpack[EngineOptions]) -> T: ...
    @overload
    async def run(self, target: Shape, params: Params = None, **options: Unpack[EngineOptions]) -> Any: ...
    async def run(
        self,
        target: Any,
        params: dict[str, Any] | None = None,
        *,
        run_id: str | None = None,
        name: str | None = None,
        tags: Iterable[str] = (),
        timeout: float | None = None,  # noqa: ASYNC109 - it also names the run and its tasks in the error
        fail_fast: bool = True,
        cache: Cache | None = None,
    ) -> Any:
        """Run the target and the tasks that it needs, and return the value of the target, which has its shape.

        Args:
            target: A lazy result, a graph, or a container of several targets, such as a list, a tuple or a dict.
            params: Values of the workflow's Params, by name.
            run_id: Id of the run; None calls `run_ids`. Any text that can be a level of a topic is accepted.
            name: Name of the run in its span, in messages and on the terminal; None uses the name of the target.
            tags: Texts to find the run by, in messages and in `cascade.run.tags`.
            timeout: Limit of the run in seconds, above 0. It includes the setup of resources, and not their teardown.
            fail_fast: With False, a failed task stops only the tasks that depend on it.
            cache: The cache of all tasks that have none of their own. None uses the cache of the run that the calling task
                belongs to, if there is one.

        Raises:
            RuntimeError: No asyncio event loop is running in this thread.
            TypeError: The target is none of these, or an option has a wrong type.
            ValueError: A graph has no target, `timeout` is not above 0, `name` or a tag is empty, or `run_id` cannot be a
                level of a topic or is the id of another run in progress.
            TimeoutError: The run exceeded its timeout.
            DependencyMissingError: The target was skipped.
            BaseException: The exception of the first task that failed, unchanged.
        """
        require_event_loop("Engine.run")
        limit = None if timeout is None else checked_timeout("run", timeout)
        own_id = self._new_run_id() if run_id is None else checked_run_id(run_id)
        started = {"name": checked_name(name), "tags": checked_tags(tags)}
        caches = RunCaches.of_run(cache)
        graph, nodes = await _graph_of(target)
        options = {"timeout": limit, "fail_fast": checked_fail_fast(fail_fast), "caches": caches}
        with in_progress(own_id, is_chosen=run_id is not None):
            return await self._run(own_id, graph, dict(params or {}), options, started | nodes)

    async def _run(
        self, run_id: str, graph: Graph, params: dict[str, Any], options: dict[str, Any], started: dict[str, Any]
    ) -> Any:
        """Run a graph while the connector is connected. `options` and `started` have fields of the run and of its first event."""
        started["nested"] = nested = current_engine.get() is self
        token = current_engine.set(self)
        new_context = context_copier()
        value: Any = _NO_VALUE
        try:
            connector = None if nested else self.connector
            caller = CURRENT_TASK.get() if nested else None
            suspended = caller.suspended() if caller else nullcontext()
            with suspended:  # the calling task holds no permit while it waits for a nested run
                async with connected(connector, self.bus, run_id, self.controller):
                    # The start time is taken here: the duration of a run does not include the connect.
                    shown = started["name"] or ", ".join(started["target_tasks"])
                    run = self._new_run(run_id, shown, params, new_context, options)
                    value = await self._run_with_control(run, graph, started)
        except TelemetryLostError as error:
            if value is not _NO_VALUE:  # otherwise it is the error of a task
                error.value = value
            raise
        finally:
            current_engine.reset(token)
        return value

    def _new_run(
        self,
        run_id: str,
        name: str,
        params: dict[str, Any],
        new_context: Callable[[], Context],
        options: dict[str, Any],
    ) -> RunContext:
        clock = RunClock(*([self._clock] if self._clock else []))
        start_ns = clock.now_ns()
        task = current_task()
        tracing = self.connector if isinstance(self.connector, Tracing) else None
        trace, tracing = place_in_trace(tracing, run_id, name, start_ns, self._part_limits)
        return RunContext(
            run_id=run_id,
            start_ns=start_ns,
            params=params,
            trace=trace,
            bus=self.bus,
            executor=self.executor,
            state=self.state_backend_cls(run_id=run_id),
            capacity=self.resource_manager,
            new_context=new_context,
            tracing=tracing,
            admission=self.controller.admission if self.controller else Admission(self.bus.backpressure),
            has_control=self.controller is not None,
            run_ids=(run_id, *(self.controller.run_ids(task.run_id) if self.controller and task else ())),
            clock=clock,
            **options,
        )

    async def _run_with_control(self, run: RunContext, graph: Graph, started: dict[str, Any]) -> Any:
        """Perform a run. `started` has fields of its first event."""
        async with published(run, started):
            names = (node.name for node in graph.nodes)
            with self.controller.attached(run, names) if self.controller else nullcontext():
                try:
                    return await self._perform(run, graph)
                finally:
                    run.release()

    async def _perform(self, run: RunContext, graph: Graph) -> Any:
        scheduler = Scheduler(run, graph)
        resources = ResourceSetup(run, self._providers)

        def prepare() -> None:
            scheduler.prepare(self.solver)
            resources.collect(graph.nodes)

        try:
            with creating_objects():
                await in_thread(prepare) if len(graph.nodes) >= LARGE_GRAPH else prepare()
            work = self._work(resources, scheduler)
            value = await (work if run.timeout is None else within_timeout(run, graph, run.timeout, work))
        except BaseException as error:
            await resources.tear_down(error)
            raise
        finally:
            scheduler.close()
        await resources.tear_down(None)
        return value

    @staticmethod
    async def _work(resources: ResourceSetup, scheduler: Scheduler) -> Any:
        await resources.set_up()
        await scheduler.run()
        return scheduler.value()


@overload
async def run_nested(target: Target[T], params: Params = None) -> T: ...
@overload
async def run_nested(target: Shape, params: Params = None) -> Any: ...
async def run_nested(target: Any, params: Params = None) -> Any:
    """Run `target` with the engine that runs the calling task: with its connector and resources, in its trace.

    Raises:
        RuntimeError: The caller is not a task of a run.
    """
    engine = current_engine.get()
    if engine is None:
        raise RuntimeError("A nested run needs a run around it: call it from a task")
    return await engine.run(target, params)


@context_manager
def override_resource(engine: Engine, name: str, new_resource: Any) -> Iterator[None]:
    """Replace a registered resource inside the `with` block, by a generator function or a resource definition.

    Raises:
        KeyError: The engine has no resource of that name.
        TypeError: The object cannot override a resource.
    """
    function = new_resource.func if isinstance(new_resource, ResourceDefinition) else new_resource
    if not (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
        raise TypeError(
            f"Cannot override resource '{name}' with {new_resource!r}: give a generator function or a resource definition"
        )
    original = engine.get_resource_provider(name)
    engine.override_resource_provider(name, function)
    try:
        yield
    finally:
        engine.override_resource_provider(name, original)


def require_event_loop(caller: str, without: str = "cs.run") -> None:
    """Raise RuntimeError unless an asyncio event loop is running in this thread.

    Args:
        caller: The name in the error.
        without: The function to use without an event loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            f"{caller} needs a running asyncio event loop, and this thread has none. Without an event loop, call "
            f"{without}(...). In another kind of event loop, such as trio's, call {without} in a thread: "
            f"`await trio.to_thread.run_sync({without}, target)`"
        ) from None


def refuse_event_loop(caller: str, more: str = "") -> None:
    """Raise RuntimeError if an event loop is running in this thread.

    Args:
        caller: The name in the error. The function to use instead has the suffix `_async`.
        more: Further advice, at the end of the error.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{caller}() cannot run inside a running event loop: use `await {caller}_async(...)` here{more}")


async def _graph_of(target: Any) -> tuple[Graph, dict[str, Any]]:
    """Return the graph of a target, and the fields of RunStarted about it."""
    if isinstance(target, Graph):

        def given() -> tuple[Graph, dict[str, Any]]:
            end = target.require_target() if target.shape is None else None
            return Graph(target.nodes, target.edges, end, target.shape), node_fields(target)

        return given() if len(target.nodes) < LARGE_GRAPH else await in_thread(given)
    builder = GraphBuilder(target)

    def rest() -> tuple[Graph, dict[str, Any]]:
        builder.run()
        return (graph := builder.graph), node_fields(graph)

    with creating_objects():
        return rest() if builder.run(limit=LARGE_GRAPH) else await in_thread(rest)


current_engine: ContextVar[Engine | None] = ContextVar("cascade_current_engine", default=None)
