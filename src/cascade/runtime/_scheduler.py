"""Starts each node as soon as its inputs are available."""

from collections import deque
from collections.abc import Collection, Coroutine, Iterable, Mapping
from itertools import count
from typing import Any

from cascade._loggers import get_logger
from cascade.graph.model import Edge, Graph, Node
from cascade.runtime._failures import continue_after, publish_failure
from cascade.runtime._labels import fixed_label
from cascade.runtime._map_execution import MapExecution
from cascade.runtime._map_items import zip_items
from cascade.runtime._plan import PlannedNode, release_plan, set_order
from cascade.runtime._retried_execution import RetriedExecution
from cascade.runtime._run_context import RunClock, RunContext
from cascade.runtime._task_execution import TaskExecution
from cascade.runtime._task_group import TaskGroup
from cascade.runtime._timeouts import execution_type
from cascade.runtime.events import TaskSkipped
from cascade.runtime.exceptions import DependencyMissingError, UnknownParamError, add_task_note, suggestion
from cascade.runtime.flow import FAILED, PRUNED, FlowManager, Skip, lazy_id
from cascade.runtime.protocols import Solver
from cascade.runtime.resolvers import ArgumentResolver, input_value
from cascade.runtime.state import InMemoryStateBackend
from cascade.spec.input import ParamSpec
from cascade.spec.nested import LAZY, substitute
from cascade.telemetry.sanitize import masked_tags

logger = get_logger(__name__)

_MIN_SIMILARITY = 0.8
"""Smallest similarity, from 0 to 1, of a misspelt name to the correct one: `gpuu` and `gpu` have 0.86, `cpu` and `gpu`
0.67."""


class Scheduler:
    """Runs one graph. `prepare` is called before `run`.

    The plan of the solver sets the order of the ready nodes, and the nodes that the executor gets.
    """

    def __init__(self, run: RunContext, graph: Graph) -> None:
        self._run = run
        self._graph = graph
        self._open_targets = set[str]()
        self._awaited_routes: dict[tuple[PlannedNode, PlannedNode], int] = {}  # number of edges by branch and consumer
        self._deciders: dict[str, str] = {}  # by id of a skipped node: the condition or selector
        self._ready: deque[PlannedNode] = deque()
        self._group = TaskGroup(run)
        self._can_skip = True
        self._nodes: dict[str, PlannedNode] = {}
        self._order: dict[PlannedNode, int] = {}  # of the nodes of a plan with routers
        self._times: _ReadyTimes | None = None
        if run.meter is not None:
            self._ready = self._times = _ReadyTimes(run.clock)

    def prepare(self, solver: Solver) -> None:
        """Plan the run and check its nodes, names and inputs. It may be called in a thread."""
        plan, graph = solver.resolve(self._graph), self._graph
        _check_names(graph, self._run)
        targets = graph.target_ids()
        self._open_targets.update(targets)
        self._flow = FlowManager(graph, targets)
        self._nodes = self._flow.nodes
        is_standard = type(self._run.state) is InMemoryStateBackend
        self._can_skip = self._flow.has_decisions or not self._run.fail_fast or not is_standard
        self._resolver = ArgumentResolver(self._nodes, self._run)
        order = set_order(self._nodes, plan)
        if self._flow.selections:
            self._order = dict(zip(order, count(), strict=False))
        for target_id in targets:
            self._flow.need(self._nodes[target_id])
        self._ready.extend(planned for planned in order if planned.is_needed and not planned.pending)
        _check_nodes((planned for planned in order if planned.is_needed), self._run)

    async def run(self) -> None:
        """Run all nodes that the targets need. Afterwards the state has the value of each target, or its skip reason."""
        if self._times is not None:
            self._times.begin_ns = self._run.clock.now_ns()
        if not self._open_targets:
            self._group.finish()
        await self._group.run(self)

    def close(self) -> None:
        """Free the plan, in several turns of the event loop if it is large."""
        release_plan([*reversed(self._nodes.values())])

    def value(self) -> Any:
        """Return the value of the target, or the values of several targets in their shape, after the run.

        Raises:
            Exception: With `fail_fast=False`, the first error of a task.
            DependencyMissingError: A target was skipped. It is the first one in the shape.
        """
        if (error := self._run.first_error) is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame
        if self._graph.shape is None:
            return self._target_value(*self._graph.target_ids())
        return substitute(self._graph.shape, lambda lazy: self._target_value(lazy_id(lazy)))

    def _target_value(self, target_id: str) -> Any:
        state, target = self._run.state, self._nodes[target_id]
        if not state.has_result(target_id):
            cause = self._flow.skip_cause(target, state)
            raise DependencyMissingError(target.node.name, "<Target Output>", target_id, cause=cause)
        return state.get_result(target_id)

    def ready(self) -> int:
        return len(self._ready)

    def take(self) -> Coroutine[Any, Any, None] | None:
        return self._execute(self._ready.popleft()) if self._ready else None

    def _skip_of(self, planned: PlannedNode) -> Skip | None:
        try:
            return self._flow.skip_of(planned, self._run.state)
        except Exception as error:
            run, description = self._run, f"the condition of task {planned.node.name!r}"
            add_task_note(error, description, attempt_start_ns=run.start_ns, now_ns=run.clock.last_ns)
            raise

    async def _execute(self, planned: PlannedNode) -> None:
        run, node = self._run, planned.node
        skip: Skip | None = None
        execution: TaskExecution | MapExecution | None = None
        try:
            if self._can_skip and (skip := self._skip_of(planned)) is not None:
                value = None
            elif node.param_spec is not None:
                value = input_value(node, run.params)
            elif node.node_type == "map":
                execution = MapExecution(run, self._resolver, planned, self._flow)
                value = await execution.execute()
            else:
                if node.timeout is None:
                    kind = TaskExecution if node.retry_policy is None else RetriedExecution
                else:
                    kind = execution_type(node)
                execution = kind(run, self._resolver, node, planned)
                if self._times is not None:
                    execution.ready_ns = self._times.pop_time(planned)
                value = await execution.execute()
        except Exception as error:
            if not run.continues_after(error, node):
                raise
            self._continue_after(error, planned, execution)
        else:
            self._complete(planned, value) if skip is None else self._skip(planned, skip)
        if self._ready:
            self._group.start()

    def _continue_after(
        self, error: Exception, planned: PlannedNode, execution: TaskExecution | MapExecution | None
    ) -> None:
        """Settle a node whose failure does not stop the run: with a `Failure` as its value, or without a value."""
        if execution is None and planned.node.param_spec is None:
            publish_failure(self._run, error, planned.node)
        is_allowed = planned.node.allow_failure
        if isinstance(execution, MapExecution) and execution.has_failed_items:  # each item is recorded
            failure = None
        else:
            task = execution if isinstance(execution, TaskExecution) else None
            failure = continue_after(self._run, error, planned.node, task, is_allowed=is_allowed)
        if is_allowed:
            self._complete(planned, failure)
        else:
            self._run.state.mark_skipped(planned.id, FAILED)
            self._settle(planned)

    def _complete(self, planned: PlannedNode, value: Any) -> None:
        self._run.state.put_result(planned.id, value)
        planned.has_value = True
        if planned.id in self._flow.selections:
            for pruned in self._flow.register_result(planned.id, value, self._run.state):
                self._publish_skipped(self._nodes[pruned].node, Skip(PRUNED, planned.id))
        self._settle(planned)

    def _skip(self, planned: PlannedNode, skip: Skip) -> None:
        self._run.state.mark_skipped(planned.id, skip.reason)
        self._publish_skipped(planned.node, skip)
        for pruned in self._flow.release_routes(planned.id, self._run.state):
            self._publish_skipped(self._nodes[pruned].node, Skip(PRUNED, skip.decided_by))
        self._settle(planned)

    def _settle(self, planned: PlannedNode) -> None:
        planned.is_settled = True
        flow = self._flow
        if flow.selections:
            for consumer, edge in flow.selections.get(planned.id, ()):
                if consumer.is_needed:
                    self._await_chosen_route(edge, consumer)
        for consumer in planned.consumers:
            consumer.pending -= 1
            if not consumer.pending and consumer.is_needed:
                self._ready.append(consumer)
        if flow.branches:
            for consumer in flow.branches.get(planned.id, ()):
                self._route_settled(planned, consumer)
        if planned.id in self._open_targets:
            self._open_targets.discard(planned.id)
            if not self._open_targets:
                self._group.finish()
        flow.release_inputs(planned, self._run.state)

    def _await_chosen_route(self, edge: Edge, consumer: PlannedNode) -> None:
        """Mark the branch that the selector has chosen as needed. The consumer waits for it.

        A node that becomes needed may have routers of its own, whose selectors have ended already.
        """
        selections, fresh = [(edge, consumer)], list[PlannedNode]()
        while selections:
            edge, consumer = selections.pop()
            chosen = self._nodes.get(self._resolver.chosen_id(edge) or "")
            if chosen is None or chosen.is_settled:
                continue
            key = chosen, consumer
            self._awaited_routes[key] = self._awaited_routes.get(key, 0) + 1
            consumer.pending += 1
            for planned in self._flow.need(chosen):
                fresh.append(planned)
                selections.extend((edge, planned) for edge in planned.edges if self._has_chosen(edge))
        for planned in sorted(fresh, key=self._order.__getitem__):
            if not planned.pending:
                self._ready.append(planned)

    def _has_chosen(self, edge: Edge) -> bool:
        return edge.router is not None and self._nodes[edge.source.id].is_settled

    def _route_settled(self, branch: PlannedNode, consumer: PlannedNode) -> None:
        """End the wait of a consumer for a branch that has ended. It waits only for the branch that the selector has chosen."""
        if count := self._awaited_routes.pop((branch, consumer), 0):
            consumer.pending -= count
            if not consumer.pending:
                self._ready.append(consumer)

    def _publish_skipped(self, node: Node, skip: Skip) -> None:
        if node.param_spec is not None:
            return
        now = self._run.clock.now_ns()
        self._run.emit(
            TaskSkipped,
            task_id=node.id,
            task_name=node.name,
            kind="map" if node.node_type == "map" else "task",
            label=None if node.node_type == "map" else fixed_label(node),
            tags=tuple(masked_tags(node.tags)),
            reason=skip.reason,
            decided_by=self._decided_by(node.id, skip.decided_by),
            start_ns=now,
            end_ns=now,
        )

    def _decided_by(self, node_id: str, nearest: str | None) -> tuple[str, ...]:
        """Return the ids of the condition or selector that decided a skip, and of the skipped node between them.

        Inputs are excluded.
        """
        if nearest is None:
            return ()
        decider = self._deciders[node_id] = self._deciders.get(nearest, nearest)
        return tuple(i for i in dict.fromkeys((decider, nearest)) if self._nodes[i].node.param_spec is None)


class _ReadyTimes(deque[PlannedNode]):
    """Ready nodes, with the times at which their inputs were available.

    Attributes:
        begin_ns: The time of the nodes that need no other node: the run has set up its resources, and starts its tasks.
    """

    def __init__(self, clock: RunClock) -> None:
        super().__init__()
        self.begin_ns = 0
        self._clock = clock
        self._times: dict[PlannedNode, int] = {}

    def append(self, planned: PlannedNode) -> None:
        """Add a node. Its last input has just ended: that is the last event of the run."""
        self._times[planned] = self._clock.last_ns
        deque.append(self, planned)  # `super()` costs as much again

    def pop_time(self, planned: PlannedNode) -> int:
        """Return the time of a node that starts, and forget it."""
        return self._times.pop(planned, self.begin_ns)


def _check_names(graph: Graph, run: RunContext) -> None:
    """Check the names in `params=` and in constraints.

    A constraint's name without a capacity is unlimited. It is an error only if it is similar to a name with one.

    Raises:
        UnknownParamError: The workflow has no Param with a name in `params=`.
        ValueError: A constraint's name is a misspelt name of a system resource.
    """
    if run.params:
        _check_params(run.params, graph)
    if capacity := run.capacity.usage:
        for node in graph.nodes:
            if node.constraints:
                _check_constraints(node, capacity)


def _check_params(params: Mapping[str, object], graph: Graph) -> None:
    specs = (node.param_spec for node in graph.nodes)
    known = dict.fromkeys(spec.name for spec in specs if isinstance(spec, ParamSpec))
    unknown = [name for name in params if name not in known]
    if unknown and known:
        raise UnknownParamError(unknown[0], known)
    if unknown:
        logger.warning("params: the workflow has no Param; the run ignores %s", ", ".join(map(repr, unknown)))


def _check_constraints(node: Node, capacity: Collection[str]) -> None:
    for name in node.constraints.requirements if node.constraints else ():
        if name not in capacity and (hint := suggestion(name, capacity, _MIN_SIMILARITY)):
            raise ValueError(
                f"Task '{node.name}': the constraint '{name}' is not in system_resources{hint} "
                f"If '{name}' is a resource of its own, give it a capacity in system_resources"
            )


def _check_nodes(nodes: Iterable[PlannedNode], run: RunContext) -> None:
    """Check the nodes that a run needs for all values of its conditions and selectors.

    Raises:
        MissingParamError: A parameter has no value.
        MissingEnvError: An environment variable has no value.
        ValueError: A constraint exceeds the capacity, or the lists of a map have different lengths.
    """
    for planned in nodes:
        node = planned.node
        if node.param_spec is not None:
            input_value(node, run.params)
            continue
        try:
            if node.constraints:
                amounts = node.constraints.requirements.items()
                run.capacity.checked({name: amount for name, amount in amounts if not isinstance(amount, LAZY)})
            if node.node_type == "map" and not planned.edges:
                zip_items(node, node.literal_inputs)
        except Exception as error:
            add_task_note(error, f"task {node.name!r}", attempt_start_ns=run.start_ns, now_ns=run.clock.last_ns)
            raise
