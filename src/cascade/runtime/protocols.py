"""Protocols of solvers, executors, state backends and connectors.

Protocols that use no types of the engine are in `cascade.spec.protocols`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from cascade.graph.model import Graph, Node
from cascade.runtime.task_context import TaskContext
from cascade.spec.protocols import CacheBackend, CachePolicy, Connector, LazyFactory, MessageCallback, StateBackend
from cascade.telemetry.identity import RunTrace, SpanRef

__all__ = [
    "OPTIONAL_MESSAGES",
    "Backpressure",
    "Buffering",
    "CacheBackend",
    "CachePolicy",
    "Capturing",
    "Connector",
    "Discarding",
    "Displaying",
    "ExecutionPlan",
    "Executor",
    "ExecutorSlots",
    "LazyFactory",
    "MessageCallback",
    "Selective",
    "Slot",
    "SlotProvider",
    "SlotRequest",
    "Solver",
    "StateBackend",
    "Tracing",
    "Unsubscribing",
]

ExecutionPlan = list[list[Node]]

OPTIONAL_MESSAGES = frozenset({"RUNNING", "PENDING", "ACQUIRE"})
"""Kinds of messages that a `Selective` connector may ignore."""


class Solver(Protocol):
    """Orders the nodes of a graph. Called once per graph, which it must not change."""

    def resolve(self, graph: Graph) -> ExecutionPlan:
        """Return stages, each of which needs only earlier ones. Raises ValueError for a cycle."""
        ...


class Executor(Protocol):
    """Calls the functions of tasks, in this or another process, with the caller's context variables.

    If `cascade.runtime.task_context.current_usage` returns an object in `execute`, a subscriber uses the CPU time of the
    task. The executor may then set its `cpu_ns` before `execute` returns or raises.
    """

    async def execute(self, node: Node, args: list[Any], kwargs: dict[str, Any]) -> Any: ...


@runtime_checkable
class Discarding(Protocol):
    """Optional for state backends: frees the values that no task of the run needs any more."""

    def discard_result(self, node_id: str) -> None:
        """Called once, after the node's last consumer has ended, never for the target. `has_result` may be False then."""
        ...


class Slot(Protocol):
    """Capacity of an executor for one task: a thread, a process, a part of a cluster's worker."""

    def release(self) -> None:
        """Release the slot. Called once, in the event loop, when the attempt has ended. Must not block or raise."""
        ...


class SlotRequest(Protocol):
    """A request for a slot."""

    def withdraw(self) -> None:
        """Cancel the request: `granted` is not called later. Has no effect after the call of `granted`."""
        ...


class ExecutorSlots(Protocol):
    """Slots of one kind, such as all threads of a pool. Used in the event loop of the run.

    No call may block. After a call that raises, the engine no longer uses them.
    """

    @property
    def size(self) -> int | None:
        """Number of tasks that can hold a slot at once; None is unlimited. It may change at any time."""
        ...

    def try_acquire(self) -> Slot | None:
        """Take a free slot; None if there is none. Called for each task: it must be quick."""
        ...

    def request(self, granted: Callable[[Slot], object]) -> SlotRequest:
        """Call `granted` with a slot when one is free, in the event loop of the caller, after this method has returned.

        An engine has at most one request for the same slots at a time, so that engines can take turns.
        """
        ...


@runtime_checkable
class SlotProvider(Protocol):
    """Optional for executors: the engine takes a slot for each task, and calls `execute` while the task holds it.

    A task that waits for a slot is PENDING with reason `executor`. Without this protocol the engine calls `execute` at
    once.
    """

    def slots(self, node: Node) -> ExecutorSlots | None:
        """Return the slots for a node, the same object each time; None if the node needs no slot.

        Called in the context of the caller of the run.
        """
        ...


@runtime_checkable
class Tracing(Protocol):
    """Optional for connectors: spans that are current while the user's code runs. Must not block or raise."""

    def place_run(self, run_id: str, target: str, start_ns: int, parent: SpanRef | None) -> RunTrace:
        """Return the trace and the parent span of the run.

        Called once per run, in the context of the run's caller and before its first event. `parent` is the span of the
        task that starts the run, or else that of `TRACEPARENT` and `TRACESTATE` of the environment.
        """
        ...

    def activate(self, task: TaskContext) -> AbstractContextManager[None]:
        """Entered around each call of the task's function, in the context in which it runs.

        Also entered around the setup and the teardown of a resource, whose `task.kind` is "resource".
        """
        ...


@runtime_checkable
class Capturing(Protocol):
    """Optional for connectors: the user's values that the messages contain, of `params`, `arguments`, `results`."""

    @property
    def capture(self) -> frozenset[str]: ...


@runtime_checkable
class Backpressure(Protocol):
    """Optional for connectors: while the connector is full, no task starts. Neither call may raise."""

    def is_full(self) -> bool:
        """Called before each start of a task: it must be quick. False while the server is unreachable."""
        ...

    async def room(self) -> None:
        """Return when there may be room; `is_full` is called again then. Many tasks may wait here at once.

        While the connector stays full, `room` is called again after a short pause.
        """
        ...


@runtime_checkable
class Buffering(Backpressure, Protocol):
    """Optional for connectors with a bounded queue of their own: messages do not pass through the engine's queue as well."""

    def put(self, topic: str, payload: dict[str, Any], qos: int = 0) -> bool:
        """Queue a message, in the event loop, without blocking. Return False, without an effect, if the connector is full.

        The engine then calls `publish` when the connector is not full any more, or at the end of the run.
        """
        ...


@runtime_checkable
class Selective(Protocol):
    """Optional for connectors: the messages that the connector does not use. The engine does not create them."""

    @property
    def ignored(self) -> frozenset[str]:
        """Some of `OPTIONAL_MESSAGES`; read once."""
        ...


@runtime_checkable
class Displaying(Protocol):
    """Optional for connectors: shows the progress of runs on the terminal, in place of some lines of the log."""

    def shows(self, msg_id: str) -> bool:
        """Return whether the line of this message is not printed now.

        Called for messages of the level INFO, unless the level of the run is DEBUG. Must not block or raise.
        """
        ...


@runtime_checkable
class Unsubscribing(Protocol):
    """Optional for connectors: ends a subscription. Without it, a subscription ends with the connection."""

    async def unsubscribe(self, topic: str, callback: MessageCallback) -> None:
        """Stop calling `callback` for `topic`. Has no effect without a subscription."""
        ...
