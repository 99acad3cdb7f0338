"""Constraints of the runs of one engine: received from its connector, applied, replaced, expired and cleared."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from cascade._context_managers import async_context_manager, context_manager
from cascade._loggers import get_logger
from cascade.runtime._run_context import RunContext
from cascade.runtime.backpressure import CombinedBackpressure
from cascade.runtime.control._expiry import ExpiryTimer, Place
from cascade.runtime.control.admission import Admission
from cascade.runtime.control.constraint import (
    CONSTRAINT_TYPES,
    Capacity,
    Constraint,
    RefusedError,
    Scope,
    parse_constraint,
    parse_topic,
)
from cascade.runtime.control.notifier import DecisionNotifier, fields_of
from cascade.runtime.events import ControlDecision
from cascade.runtime.guard import awaited
from cascade.runtime.protocols import Connector, Unsubscribing
from cascade.runtime.resource_manager import ResourceManager
from cascade.telemetry.limits import MAX_NAME_BYTES, truncate
from cascade.telemetry.safe import error_text
from cascade.telemetry.topics import control_filter

logger = get_logger(__name__)

MAX_CONSTRAINTS = 200_000
"""Constraints for single task names that apply at once. They are found by name; the limit bounds memory."""
MAX_PATTERNS = 256
"""Constraints beyond which no pattern is added: the first start of each task name evaluates all patterns."""
MAX_LISTED = 256
"""Constraints in force that a run publishes as it begins."""
EXPIRY_TOLERANCE = 2.0
"""Seconds. A broker counts Message Expiry in whole seconds, so that the end of a repeated message varies."""
SUBSCRIBE_TIMEOUT = 10.0
"""Seconds to wait for `subscribe` of a connector while it brings no message. This is for one that has no limit of its own."""
LONGEST_SUBSCRIBE = 60.0
"""Seconds to wait for `subscribe` of a connector while it brings messages."""
_MAX_REFUSED = 100
"""Refusals that are kept for the first run."""


class Controller:
    """Applies the constraints that the connector of one engine receives.

    Args:
        org_id: Organization of the constraints.
        project_id: Project of the constraints.
        capacity: The system resources whose capacity can be changed.
        backpressure: Of the telemetry queues. While it is full, no waiting task starts.
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
        self._broad: dict[Place, Constraint] = {}
        self._named: dict[Place, Constraint] = {}
        self._expiry = ExpiryTimer(self._now, self._expire)
        self._runs: dict[str, RunContext] = {}
        self._starting: set[str] = set()
        self._refused: list[dict[str, Any]] = []
        self._notifier = DecisionNotifier(self._publish)
        self._users = 0
        self._received = 0
        self._subscribing: asyncio.Task[None] | None = None
        self._unsubscribing: asyncio.Event | None = None

    @async_context_manager
    async def attached(self, connector: Connector, run_id: str) -> AsyncIterator[None]:
        """Apply the constraints of the connector in the block, from the beginning those that it receives at once.

        `run_id` is the id of the run that will be attached: constraints for that run apply too.
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
                await self._detach(connector)

    @context_manager
    def attach(self, run: RunContext, names: Iterable[str] = ()) -> Iterator[None]:
        """Apply the constraints to the run for the block, and publish the decisions that concern it.

        The first ones are the constraints that are in force. `names` are the names of the run's tasks: if not all
        constraints are published, those of its tasks are.
        """
        self._runs[run.run_id] = run
        self._list_held(run, names)
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
                self._lift((str(Scope("run", run.run_id)), kind))

    def run_ids(self, run_id: str) -> tuple[str, ...]:
        """Return the id of an attached run and those of the runs around it; none for another run."""
        run = self._runs.get(run_id)
        return run.run_ids if run is not None else ()

    async def on_message(self, topic: str, payload: dict[str, Any]) -> None:
        """Apply, replace or clear a constraint, or refuse an invalid message with the reason. Never raises."""
        if not self._users:
            return
        self._received += 1
        scope, kind = None, ""
        try:
            scope, kind = parse_topic(topic, self._prefix)
            if scope.kind == "run" and scope.name not in self._runs and scope.name not in self._starting:
                return
            if type(payload) is dict and not payload:
                self._clear((str(scope), kind))
            else:
                self._apply(parse_constraint(scope, kind, payload))
        except RefusedError as refusal:
            self._refuse(str(scope or topic.removeprefix(self._prefix)), kind, scope, payload, str(refusal))
        except Exception:
            logger.exception("A control message on %r could not be read; it is ignored", topic[:MAX_NAME_BYTES])

    def _apply(self, constraint: Constraint) -> None:
        place = _place(constraint)
        held = self._named if constraint.scope.is_name else self._broad
        before = held.get(place)
        if before == constraint:
            return  # a retained message is received again after a reconnection
        if constraint.expires_at is not None and constraint.expires_at <= self._now():
            self._lift(place)
            self._notify("EXPIRED", constraint, "it had expired before it came")
            return
        if before is None:
            self._check_room(constraint.scope)
        is_extension = before is not None and replace(before, expires_at=constraint.expires_at) == constraint
        if not is_extension and not isinstance(constraint, Capacity):
            self.admission.put(constraint)
        held[place] = constraint
        for capacity in (constraint, before):
            if isinstance(capacity, Capacity):
                self._set_capacity(capacity.name)
        self._expiry.set(place, constraint.expires_at)
        if before is None or not is_extension or not _ends_alike(before, constraint):
            self._notify("APPLIED", constraint)

    def _check_room(self, scope: Scope) -> None:
        if scope.is_name:
            if len(self._named) >= MAX_CONSTRAINTS:
                raise RefusedError(f"{MAX_CONSTRAINTS:,} constraints for single tasks apply already; clear some")
        elif scope.kind == "task" and len(self._broad) >= MAX_PATTERNS:
            raise RefusedError(f"{MAX_PATTERNS} constraints with patterns apply already; clear some, or use full names")

    def _clear(self, place: Place) -> None:
        if constraint := self._lift(place):
            self._notify("CLEARED", constraint)

    def _lift(self, place: Place) -> Constraint | None:
        """End a constraint."""
        constraint = self._broad.pop(place, None) or self._named.pop(place, None)
        self._expiry.set(place, None)
        if isinstance(constraint, Capacity):
            self._set_capacity(constraint.name)
        elif constraint is not None:
            self.admission.remove(constraint)
        return constraint

    def _set_capacity(self, name: str) -> None:
        """Set a resource to the smallest capacity of its constraints, or to its own capacity without one."""
        found = [held.capacity for held in self._broad.values() if isinstance(held, Capacity) and held.name == name]
        self._capacity.override(name, min(found, default=None))

    def _now(self) -> float:
        return self._clock()

    def _expire(self, place: Place) -> None:
        if constraint := self._lift(place):
            self._notify("EXPIRED", constraint)

    def _notify(self, action: str, constraint: Constraint, reason: str | None = None) -> None:
        if self._runs:  # each run publishes the constraints in force as it begins
            self._notifier.notify(_place(constraint), action, constraint, reason)

    def _list_held(self, run: RunContext, names: Iterable[str]) -> None:
        """Publish the constraints in force, at most `MAX_LISTED`: those of the run's tasks first, of other tasks last.

        A nested run publishes neither patterns nor constraints for other tasks: the outermost run has published them.
        """
        broad = [held for held in self._broad.values() if _concerns(held.scope, run)]
        wide = [held for held in broad if held.scope.kind != "task"]
        places = ((f"task/{name}", kind) for name in dict.fromkeys(names) for kind in CONSTRAINT_TYPES)
        own = {place: self._named[place] for place in places if place in self._named} if self._named else {}
        if len(run.run_ids) > 1:
            ranked, count = chain(wide, own.values()), len(wide) + len(own)
        else:
            patterns = (held for held in broad if held.scope.kind == "task")
            others = (held for place, held in self._named.items() if place not in own)
            ranked, count = chain(wide, own.values(), patterns, others), len(broad) + len(self._named)
        more = f"{count - MAX_LISTED:,} more constraints are not listed" if count > MAX_LISTED else None
        for number, constraint in enumerate(islice(ranked, MAX_LISTED), 1):
            reason = more if number == MAX_LISTED else None
            run.emit(ControlDecision, **fields_of("APPLIED", constraint, reason))

    def _refuse(self, place: str, kind: str, scope: Scope | None, payload: Any, reason: str) -> None:
        own_id = payload.get("id") if isinstance(payload, dict) else None
        fields: dict[str, Any] = {
            "action": "REFUSED",
            "scope": truncate(place, MAX_NAME_BYTES),
            "constraint_type": truncate(kind, MAX_NAME_BYTES),
            "constraint_id": truncate(own_id, MAX_NAME_BYTES) if isinstance(own_id, str) else None,
            "reason": reason,
            "params": {},
        }
        self._notifier.refuse(fields, scope)

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
            await awaited(lambda: connector.subscribe(self._filter, self.on_message))
        except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
            logger.warning("%s cannot bring control: %s", type(connector).__name__, error_text(error))

    async def _detach(self, connector: Connector) -> None:
        self._named.clear()
        for place in list(self._broad):
            self._lift(place)
        self._expiry.clear()
        self._refused.clear()
        self._notifier.close()
        self.admission.close()
        subscribing, self._subscribing = self._subscribing, None
        # An event and not a task: a forked child may come here without an event loop that runs.
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
                await awaited(lambda: connector.unsubscribe(self._filter, self.on_message), SUBSCRIBE_TIMEOUT)
            except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
                logger.warning("%s cannot unsubscribe: %s", type(connector).__name__, error_text(error))


def _place(constraint: Constraint) -> Place:
    return str(constraint.scope), constraint.type


def _concerns(scope: Scope, run: RunContext) -> bool:
    return scope.kind != "run" or scope.name in run.run_ids


def _ends_alike(one: Constraint, other: Constraint) -> bool:
    if one.expires_at is None or other.expires_at is None:
        return one.expires_at == other.expires_at
    return abs(one.expires_at - other.expires_at) <= EXPIRY_TOLERANCE
