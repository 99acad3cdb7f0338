"""What steers the runs of one engine: constraints come in, hold together, and go."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from cascade._blocks import async_block, block
from cascade._loggers import get_logger
from cascade.runtime._run_context import RunContext
from cascade.runtime.control.admission import Admission
from cascade.runtime.control.constraint import (
    Capacity,
    Constraint,
    RefusedError,
    Scope,
    parse_constraint,
    parse_topic,
)
from cascade.runtime.control.decisions import Decisions, Place
from cascade.runtime.events import ControlDecision
from cascade.runtime.gates import Gates
from cascade.runtime.guard import awaited
from cascade.runtime.protocols import Connector, Unsubscribing
from cascade.runtime.resource_manager import ResourceManager
from cascade.telemetry.limits import MAX_NAME_BYTES
from cascade.telemetry.safe import error_text, text
from cascade.telemetry.topics import control_filter

logger = get_logger(__name__)

MAX_CONSTRAINTS = 256
"""In force at once: each start asks all that are for it. More is a mistake, or meant to slow us down."""
SUBSCRIBE_TIMEOUT = 2.0
"""Seconds; a connector returns after one, this is for one that does not."""
_LONGEST_TIMER = 10.0
"""Seconds after which the wall clock, which may have been set, is asked again."""
_UNSAID = 100


class Control:
    """The constraints in force for one engine, as its connector brings them.

    Args:
        org_id: Whose constraints count.
        project_id: Of which project.
        capacity: The system resources whose capacity can be changed.
        gates: Of the telemetry that must keep up.
        clock: Gives Unix seconds.
    """

    def __init__(
        self,
        org_id: str,
        project_id: str,
        capacity: ResourceManager,
        gates: Gates | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.admission = Admission(gates)
        self._filter = control_filter(org_id, project_id)
        self._capacity = capacity
        self._clock = clock
        self._held: dict[Place, Constraint] = {}
        self._timers: dict[Place, asyncio.TimerHandle] = {}
        self._runs: dict[str, RunContext] = {}
        self._unsaid: list[dict[str, Any]] = []
        self._decisions = Decisions(self._say)
        self._users = 0
        self._subscribing: asyncio.Task[None] | None = None

    @async_block
    async def attached(self, connector: Connector) -> AsyncIterator[None]:
        """Obey what the connector brings; what it already holds is in force when the block begins."""
        self._users += 1
        try:
            if self._subscribing is None:
                self._subscribing = asyncio.create_task(self._subscribe(connector), name="cascade-control")
            await asyncio.wait({self._subscribing}, timeout=SUBSCRIBE_TIMEOUT)
            yield
        finally:
            self._users -= 1
            if not self._users:
                await self._detach(connector)

    @block
    def joined(self, run: RunContext) -> Iterator[None]:
        """Steer the run, and tell it of each decision that concerns it, first of those that were made before."""
        self._runs[run.run_id] = run
        for constraint in self._held.values():
            if _concerns(constraint.scope, run):
                run.emit(ControlDecision, **_fields("APPLIED", constraint))
        unsaid, self._unsaid = self._unsaid, []
        for fields in unsaid:
            run.emit(ControlDecision, **fields)
        try:
            yield
        finally:
            self._decisions.tell_all()
            del self._runs[run.run_id]
            self.admission.forget(run.run_id)
            own = Scope("run", run.run_id)
            for place in [place for place, held in self._held.items() if held.scope == own]:
                self._lift(place)

    def run_ids(self, run_id: str) -> tuple[str, ...]:
        """A run's id and those of the runs that it is nested in; none for a run that is not here."""
        run = self._runs.get(run_id)
        return run.run_ids if run is not None else ()

    async def on_message(self, topic: str, payload: dict[str, Any]) -> None:
        """Apply, replace or clear a constraint; refuse what is none, and say why. Never raises."""
        if not self._users:
            return
        place = topic.removeprefix(self._filter.removesuffix("#"))
        scope, kind = None, ""
        try:
            scope, kind = parse_topic(topic, self._filter.removesuffix("#"))
            if scope.kind == "run" and scope.name not in self._runs:
                return
            if type(payload) is dict and not payload:
                self._clear((str(scope), kind))
            else:
                self._apply(parse_constraint(scope, kind, payload))
        except RefusedError as refusal:
            self._refuse(str(scope or place), kind, scope, payload, str(refusal))
        except Exception:
            logger.exception("A control message on %r could not be read; it is ignored", place[:MAX_NAME_BYTES])

    def _apply(self, constraint: Constraint) -> None:
        place = _place(constraint)
        before = self._held.get(place)
        if before == constraint:
            return  # a connection that came back brings again what is held already
        if constraint.expires_at is not None and constraint.expires_at <= self._clock():
            self._lift(place)
            self._tell("EXPIRED", constraint, "it had expired before it came")
            return
        if before is None and len(self._held) >= MAX_CONSTRAINTS:
            raise RefusedError(f"{MAX_CONSTRAINTS} constraints hold already; clear some")
        if not isinstance(constraint, Capacity):
            self.admission.put(constraint)
        self._held[place] = constraint
        if isinstance(constraint, Capacity):
            self._steer(constraint.name)
            if isinstance(before, Capacity):
                self._steer(before.name)
        self._watch(place, constraint)
        self._tell("APPLIED", constraint)

    def _clear(self, place: Place) -> None:
        if constraint := self._lift(place):
            self._tell("CLEARED", constraint)

    def _lift(self, place: Place) -> Constraint | None:
        """Let a constraint hold no more."""
        if timer := self._timers.pop(place, None):
            timer.cancel()
        constraint = self._held.pop(place, None)
        if isinstance(constraint, Capacity):
            self._steer(constraint.name)
        elif constraint is not None:
            self.admission.remove(constraint)
        return constraint

    def _steer(self, name: str) -> None:
        """Set a resource to the least of what the constraints on it say, or to what it has by itself."""
        said = [held.capacity for held in self._held.values() if isinstance(held, Capacity) and held.name == name]
        self._capacity.steer(name, min(said, default=None))

    def _watch(self, place: Place, constraint: Constraint) -> None:
        if timer := self._timers.pop(place, None):
            timer.cancel()
        if constraint.expires_at is not None:
            delay = min(_LONGEST_TIMER, max(0.0, constraint.expires_at - self._clock()))
            self._timers[place] = asyncio.get_running_loop().call_later(delay, self._expire, place, constraint)

    def _expire(self, place: Place, constraint: Constraint) -> None:
        if constraint.expires_at is not None and constraint.expires_at > self._clock():
            self._watch(place, constraint)
            return
        self._lift(place)
        self._tell("EXPIRED", constraint)

    def _tell(self, action: str, constraint: Constraint, reason: str | None = None) -> None:
        self._decisions.say(_place(constraint), _fields(action, constraint, reason), constraint.scope)

    def _refuse(self, place: str, kind: str, scope: Scope | None, payload: Any, reason: str) -> None:
        own_id = payload.get("id") if isinstance(payload, dict) else None
        fields: dict[str, Any] = {
            "action": "REFUSED",
            "scope": text(place, MAX_NAME_BYTES),
            "constraint_type": text(kind, MAX_NAME_BYTES),
            "constraint_id": text(own_id, MAX_NAME_BYTES) if isinstance(own_id, str) else None,
            "reason": reason,
            "params": {},
        }
        self._decisions.refuse(fields, scope)

    def _say(self, fields: dict[str, Any], scope: Scope | None) -> None:
        if not self._runs and fields["action"] == "REFUSED" and len(self._unsaid) < _UNSAID:
            self._unsaid.append(fields)  # what holds is told to each run as it begins
        for run in list(self._runs.values()):
            if scope is None or _concerns(scope, run):
                run.emit(ControlDecision, **fields)

    async def _subscribe(self, connector: Connector) -> None:
        try:
            await awaited(lambda: connector.subscribe(self._filter, self.on_message))
        except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
            logger.warning("%s cannot bring control: %s", type(connector).__name__, error_text(error))

    async def _detach(self, connector: Connector) -> None:
        for place in list(self._held):
            self._lift(place)
        self._unsaid.clear()
        self._decisions.close()
        self.admission.close()
        subscribing, self._subscribing = self._subscribing, None
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


def _fields(action: str, constraint: Constraint, reason: str | None = None) -> dict[str, Any]:
    return {
        "action": action,
        "scope": text(str(constraint.scope), MAX_NAME_BYTES),
        "constraint_type": constraint.type,
        "constraint_id": constraint.id,
        "reason": reason,
        "params": constraint.params,
    }
