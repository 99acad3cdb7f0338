"""Rate limit of the decisions about constraints that a run publishes."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cascade.runtime.control._bucket import TokenBucket
from cascade.runtime.control._expiry import Place
from cascade.runtime.control.constraint import Constraint, Scope
from cascade.telemetry.limits import MAX_NAME_BYTES, truncate

PER_SECOND, AT_ONCE = 20.0, 100.0
"""Published decisions. Each is a message of high priority: a flood of constraints must not become a flood of telemetry."""
REFUSALS_PER_SECOND, REFUSALS_AT_ONCE = 5.0, 50.0
MAX_PENDING = 512
"""Scopes and types whose latest decision waits to be published."""

Publish = Callable[[dict[str, Any], Scope | None], None]
"""Called with the fields of a `ControlDecision` and its scope; None is the scope of a topic that names none."""


def fields_of(action: str, constraint: Constraint, reason: str | None = None) -> dict[str, Any]:
    """Return the fields of a `ControlDecision` about a constraint."""
    return {
        "action": action,
        "scope": truncate(str(constraint.scope), MAX_NAME_BYTES),
        "constraint_type": constraint.type,
        "constraint_id": constraint.id,
        "reason": reason,
        "params": constraint.params,
    }


class DecisionNotifier:
    """Rate limit: publishes all decisions while they are few, else the latest decision of each scope and type.

    The reason of the next decision contains the number of unpublished ones.
    """

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._bucket = TokenBucket(PER_SECOND, AT_ONCE, time.monotonic)
        self._refusals = TokenBucket(REFUSALS_PER_SECOND, REFUSALS_AT_ONCE, time.monotonic)
        self._pending: dict[Place, tuple[str, Constraint, str | None]] = {}
        self._unpublished = 0
        self._timer: asyncio.TimerHandle | None = None

    def notify(self, place: Place, action: str, constraint: Constraint, reason: str | None = None) -> None:
        """Publish that a constraint was applied, has expired, or was cleared."""
        if not self._pending and self._bucket.has_token:
            self._bucket.take()
            self._out(fields_of(action, constraint, reason), constraint.scope)
            return
        self._unpublished += self._pending.pop(place, None) is not None
        self._pending[place] = action, constraint, reason
        if len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
            self._unpublished += 1
        self._book()

    def refuse(self, fields: dict[str, Any], scope: Scope | None) -> None:
        """Publish that a message was refused, or count it if there are too many: no constraint has changed."""
        if self._refusals.has_token:
            self._refusals.take()
            self._out(fields, scope)
        else:
            self._unpublished += 1

    def flush(self) -> None:
        """Publish all pending decisions, at the end of a run."""
        pending, self._pending = self._pending, {}
        for decision in pending.values():
            self._out_late(decision)

    def close(self) -> None:
        """Drop the pending decisions, after the last run."""
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _book(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._bucket.delay, self._publish_some)

    def _publish_some(self) -> None:
        self._timer = None
        while self._pending and self._bucket.has_token:
            self._bucket.take()
            place = next(iter(self._pending))
            self._out_late(self._pending.pop(place))
        if self._pending:
            self._book()

    def _out_late(self, decision: tuple[str, Constraint, str | None]) -> None:
        self._out(fields_of(*decision), decision[1].scope)

    def _out(self, fields: dict[str, Any], scope: Scope | None) -> None:
        if self._unpublished:
            more = f"{self._unpublished} decisions before this one were not told"
            fields = {**fields, "reason": f"{fields['reason']} ({more})" if fields["reason"] else more}
            self._unpublished = 0
        self._publish(fields, scope)
