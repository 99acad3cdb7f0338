"""Controller: receives the constraints of one engine, applies and replaces them, and ends them on expiry or clear."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Protocol

from cascade._context_managers import async_context_manager, context_manager
from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.runtime.bus import CombinedBackpressure
from cascade.runtime.control.admission import Admission
from cascade.runtime.control.constraint import (
    CONSTRAINT_TYPES,
    Capacity,
    Constraint,
    ConstraintKey,
    RefusedError,
    Scope,
    parse_constraint,
    parse_topic,
)
from cascade.runtime.control.expiry import ExpiryTimer
from cascade.runtime.control.notifier import DecisionNotifier, decision_fields, refused_fields
from cascade.runtime.events import ControlDecision, Event
from cascade.runtime.guard import call_connector
from cascade.runtime.protocols import Connector, Unsubscribing
from cascade.runtime.resource_manager import ResourceManager
from cascade.telemetry.limits import MAX_NAME_BYTES
from cascade.telemetry.sanitize import error_text
from cascade.telemetry.topics import control_filter

logger = get_logger(__name__)

MAX_CONSTRAINTS = 200_000
"""Constraints for single task names that apply at once. They are found by name; the limit bounds memory."""
MAX_PATTERNS = 256
"""Constraints for patterns, runs and all tasks that apply at once. Each of them is evaluated for each new task name."""
MAX_LISTED = 256
"""Maximum number of constraints that a run publishes at its start."""
EXPIRY_TOLERANCE = 2.0
"""Seconds. A broker counts Message Expiry in whole seconds, so the `expires_at` of a repeated message varies."""
SUBSCRIBE_TIMEOUT = 10.0
"""Seconds to wait for `subscribe` of a connector that delivers no message. A connector may have no limit of its own."""
LONGEST_SUBSCRIBE = 60.0
"""Seconds to wait for `subscribe` of a connector that delivers messages."""
_MAX_REFUSED = 100
"""Refusals that are kept for the first run."""


class ControlledRun(Protocol):
    """The part of a run that control uses. `run_ids` are the ids of the run and of the runs that it is nested in."""

    run_id: str
    run_ids: tuple[str, ...]

    def emit(self, event_type: type[Event], **fields: Any) -> None:
        """Publish an event of the run."""
        ...


class Controller:
    """Applies the constraints that the connector of one engine receives.

    Args:
        org_id: Organization of the constraints.
        project_id: Project of the constraints.
        capacity: The system resources whose capacity can be changed.
        backpressure: State of the telemetry queues. While it is full, no waiting task starts.
        clock: Returns Unix seconds.
    """

    def __init__(
        self,
        org_id: str,
        project_id: str,
        capacity: ResourceManager,
        backpressure: CombinedBackpressure | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.admission = Admission(backpressure)
        self._filter = control_filter(org_id, project_id)
        self._prefix = self._filter.removesuffix("#")
        self._capacity = capacity
        self._clock = clock
        self._by_scope: dict[ConstraintKey, Constraint] = {}
        self._by_name: dict[ConstraintKey, Constraint] = {}
        self._expiry = ExpiryTimer(clock, lambda key: self._end(key, "EXPIRED"))
        self._runs: dict[str, ControlledRun] = {}
        self._starting: set[str] = set()
        self._refused: list[dict[str, Any]] = []
        self._notifier = DecisionNotifier(self._publish)
        self._users = 0
        self._received = 0
        self._subscribing: asyncio.Task[None] | None = None
        self._unsubscribing: asyncio.Event | None = None

    @async_context_manager
    async def subscribed(self, connector: Connector, run_id: str) -> AsyncIterator[None]:
        """Apply the constraints of the connector in the block. Its retained constraints apply from the beginning.

        `run_id` is the id of the run that will be attached.
        """
        self._users += 1
        self._starting.add(run_id)
        try:
            if self._subscribing is None:
                self._subscribing = asyncio.create_task(self._subscribe(connector), name="cascade-control")
            await self._await_retained(self._subscribing)
            yield
        finally:
            self._users -= 1
            self._starting.discard(run_id)
            if not self._users:
                await self._close(connector)

    @context_manager
    def attached(self, run: ControlledRun, names: Iterable[str] = ()) -> Iterator[None]:
        """Apply the constraints to the run in the block, and publish the decisions that concern it.

        First, the constraints that already apply are published. `names` are the names of the run's tasks, whose constraints
        precede those of other tasks.
        """
        self._runs[run.run_id] = run
        self._publish_constraints(run, names)
        refused, self._refused = self._refused, []
        for fields in refused:
            run.emit(ControlDecision, **fields)
        try:
            yield
        finally:
            self._notifier.flush()
            del self._runs[run.run_id]
            self.admission.forget(run.run_id)
            for kind in CONSTRAINT_TYPES:
                self._remove((str(Scope("run", run.run_id)), kind))

    def run_ids(self, run_id: str) -> tuple[str, ...]:
        """Return the `run_ids` of an attached run; an empty tuple for another run."""
        run = self._runs.get(run_id)
        return run.run_ids if run is not None else ()

    async def on_message(self, topic: str, payload: dict[str, Any]) -> None:
        """Apply, replace or clear a constraint, or refuse an invalid message. Never raises."""
        if not self._users:
            return
        self._received += 1
        scope, kind = None, ""
        try:
            scope, kind = parse_topic(topic, self._prefix)
            if scope.kind == "run" and scope.name not in self._runs and scope.name not in self._starting:
                return
            if type(payload) is dict and not payload:
                self._end((str(scope), kind), "CLEARED")
            else:
                self._apply(parse_constraint(scope, kind, payload))
        except RefusedError as refusal:
            location = str(scope or topic.removeprefix(self._prefix))
            self._notifier.refuse(refused_fields(location, kind, payload, str(refusal)), scope)
        except Exception as error:
            raise_in_tests(error)
            logger.exception("A control message on %r is ignored because of an error", topic[:MAX_NAME_BYTES])

    def _apply(self, constraint: Constraint) -> None:
        key = constraint.key
        constraints = self._by_name if constraint.scope.is_name else self._by_scope
        replaced = constraints.get(key)
        if replaced == constraint:
            return  # a retained message is received again after a reconnection
        if constraint.expires_at is not None and constraint.expires_at <= self._clock():
            self._remove(key)
            self._notify("EXPIRED", constraint, "it had expired before it arrived")
            return
        if replaced is None:
            self._check_limits(constraint.scope)
        is_extension = replaced is not None and replace(replaced, expires_at=constraint.expires_at) == constraint
        if not is_extension and not isinstance(constraint, Capacity):
            self.admission.put(constraint)
        constraints[key] = constraint
        for capacity in (constraint, replaced):
            if isinstance(capacity, Capacity):
                self._set_capacity(capacity.name)
        self._expiry.set(key, constraint.expires_at)
        if replaced is None or not is_extension or not _ends_alike(replaced, constraint):
            self._notify("APPLIED", constraint)

    def _check_limits(self, scope: Scope) -> None:
        if scope.is_name:
            if len(self._by_name) >= MAX_CONSTRAINTS:
                raise RefusedError(f"{MAX_CONSTRAINTS:,} constraints for single tasks apply already; clear some")
        elif scope.kind == "task" and len(self._by_scope) >= MAX_PATTERNS:
            raise RefusedError(f"{MAX_PATTERNS} constraints with patterns apply already; clear some, or use full names")

    def _end(self, key: ConstraintKey, action: str) -> None:
        if constraint := self._remove(key):
            self._notify(action, constraint)

    def _remove(self, key: ConstraintKey) -> Constraint | None:
        constraint = self._by_scope.pop(key, None) or self._by_name.pop(key, None)
        self._expiry.set(key, None)
        if isinstance(constraint, Capacity):
            self._set_capacity(constraint.name)
        elif constraint is not None:
            self.admission.remove(constraint)
        return constraint

    def _set_capacity(self, name: str) -> None:
        """Set a resource to the smallest capacity of its constraints, or to its original capacity without one."""
        found = [c.capacity for c in self._by_scope.values() if isinstance(c, Capacity) and c.name == name]
        self._capacity.override(name, min(found, default=None))

    def _publish_constraints(self, run: ControlledRun, names: Iterable[str]) -> None:
        """Publish the constraints that apply, at most `MAX_LISTED`. The constraints of other tasks are last.

        A nested run publishes neither patterns nor constraints of other tasks: the outermost run has published them.
        """
        by_scope = [constraint for constraint in self._by_scope.values() if _concerns(constraint.scope, run)]
        general = [constraint for constraint in by_scope if constraint.scope.kind != "task"]
        keys = ((f"task/{name}", kind) for name in dict.fromkeys(names) for kind in CONSTRAINT_TYPES)
        own = {key: self._by_name[key] for key in keys if key in self._by_name} if self._by_name else {}
        if len(run.run_ids) > 1:
            ranked, count = chain(general, own.values()), len(general) + len(own)
        else:
            patterns = (constraint for constraint in by_scope if constraint.scope.kind == "task")
            others = (constraint for key, constraint in self._by_name.items() if key not in own)
            ranked = chain(general, own.values(), patterns, others)
            count = len(by_scope) + len(self._by_name)
        more = f"{count - MAX_LISTED:,} more constraints are not listed" if count > MAX_LISTED else None
        for number, constraint in enumerate(islice(ranked, MAX_LISTED), 1):
            reason = more if number == MAX_LISTED else None
            run.emit(ControlDecision, **decision_fields("APPLIED", constraint, reason))

    def _notify(self, action: str, constraint: Constraint, reason: str | None = None) -> None:
        if self._runs:  # each run lists the constraints as it begins
            self._notifier.notify(action, constraint, reason)

    def _publish(self, fields: dict[str, Any], scope: Scope | None) -> None:
        if not self._runs and fields["action"] == "REFUSED" and len(self._refused) < _MAX_REFUSED:
            self._refused.append(fields)
        for run in list(self._runs.values()):
            if scope is None or _concerns(scope, run):
                run.emit(ControlDecision, **fields)

    async def _await_retained(self, subscribing: asyncio.Task[None]) -> None:
        """Wait until `subscribe` has returned, within the limits."""
        end, received = time.monotonic() + LONGEST_SUBSCRIBE, -1
        while not subscribing.done() and received != self._received:
            if time.monotonic() >= end:
                logger.warning(
                    "Constraints still arrive after %g s: the run starts; some may not apply yet", LONGEST_SUBSCRIBE
                )
                return
            received = self._received
            await asyncio.wait({subscribing}, timeout=SUBSCRIBE_TIMEOUT)

    async def _subscribe(self, connector: Connector) -> None:
        if self._unsubscribing is not None:
            await self._unsubscribing.wait()
        try:
            await call_connector(lambda: connector.subscribe(self._filter, self.on_message))
        except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
            raise_in_tests(error)
            logger.warning("%s cannot receive constraints: %s", type(connector).__name__, error_text(error))

    async def _close(self, connector: Connector) -> None:
        self._by_name.clear()
        for key in list(self._by_scope):
            self._remove(key)
        self._expiry.clear()
        self._refused.clear()
        self._notifier.close()
        self.admission.close()
        subscribing, self._subscribing = self._subscribing, None
        # An event and not a task: a forked child may call this without a running event loop.
        self._unsubscribing = done = asyncio.Event()
        try:
            await self._unsubscribe(connector, subscribing)
        finally:
            done.set()

    async def _unsubscribe(self, connector: Connector, subscribing: asyncio.Task[None] | None) -> None:
        if subscribing is not None and not subscribing.done():
            subscribing.cancel()
            await asyncio.wait({subscribing})
        if isinstance(connector, Unsubscribing):
            try:
                await call_connector(lambda: connector.unsubscribe(self._filter, self.on_message), SUBSCRIBE_TIMEOUT)
            except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
                raise_in_tests(error)
                logger.warning("%s cannot unsubscribe: %s", type(connector).__name__, error_text(error))


def _concerns(scope: Scope, run: ControlledRun) -> bool:
    return scope.kind != "run" or scope.name in run.run_ids


def _ends_alike(one: Constraint, other: Constraint) -> bool:
    if one.expires_at is None or other.expires_at is None:
        return one.expires_at == other.expires_at
    return abs(one.expires_at - other.expires_at) <= EXPIRY_TOLERANCE
