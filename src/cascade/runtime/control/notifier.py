"""Rate limit of the decisions about constraints that a run publishes."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cascade.runtime.control.constraint import Constraint, ConstraintKey, Scope
from cascade.runtime.control.limiters import TokenBucket
from cascade.telemetry.limits import MAX_NAME_BYTES, truncate

PER_SECOND, AT_ONCE = 20.0, 100.0
"""Maximum number of published decisions per second, and at once. Decisions are messages with high priority."""
REFUSALS_PER_SECOND, REFUSALS_AT_ONCE = 5.0, 50.0
MAX_PENDING = 512
"""Maximum number of keys with a pending decision."""

Publish = Callable[[dict[str, Any], Scope | None], None]
"""Called with the fields of a `ControlDecision` and its scope; None if the topic has no valid scope."""


def decision_fields(action: str, constraint: Constraint, reason: str | None = None) -> dict[str, Any]:
    """Return the fields of a `ControlDecision` about a constraint."""
    return {
        "action": action,
        "scope": truncate(str(constraint.scope), MAX_NAME_BYTES),
        "constraint_type": constraint.type,
        "constraint_id": constraint.id,
        "reason": reason,
        "params": constraint.params,
    }


def refused_fields(location: str, kind: str, payload: Any, reason: str) -> dict[str, Any]:
    """Return the fields of a `ControlDecision` about a refused message.

    `location` is its scope, or a part of its topic.
    """
    own_id = payload.get("id") if isinstance(payload, dict) else None
    return {
        "action": "REFUSED",
        "scope": truncate(location, MAX_NAME_BYTES),
        "constraint_type": truncate(kind, MAX_NAME_BYTES),
        "constraint_id": truncate(own_id, MAX_NAME_BYTES) if isinstance(own_id, str) else None,
        "reason": reason,
        "params": {},
    }


class DecisionNotifier:
    """Rate limit of decisions. Above the rate, it publishes only the latest decision of each scope and type, later.

    The reason of the next published decision contains the number of decisions that were not published.
    """

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._bucket = TokenBucket(PER_SECOND, AT_ONCE, time.monotonic)
        self._refusals = TokenBucket(REFUSALS_PER_SECOND, REFUSALS_AT_ONCE, time.monotonic)
        self._pending: dict[ConstraintKey, tuple[str, Constraint, str | None]] = {}
        self._unpublished = 0
        self._timer: asyncio.TimerHandle | None = None

    def notify(self, action: str, constraint: Constraint, reason: str | None = None) -> None:
        """Publish, now or later, that a constraint was applied, has expired or was cleared."""
        if not self._pending and self._bucket.has_token:
            self._bucket.take()
            self._send(decision_fields(action, constraint, reason), constraint.scope)
            return
        self._unpublished += self._pending.pop(constraint.key, None) is not None
        self._pending[constraint.key] = action, constraint, reason
        if len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
            self._unpublished += 1
        self._start_timer()

    def refuse(self, fields: dict[str, Any], scope: Scope | None) -> None:
        """Publish that a message was refused. Above the rate, the refusal is only counted."""
        if self._refusals.has_token:
            self._refusals.take()
            self._send(fields, scope)
        else:
            self._unpublished += 1

    def flush(self) -> None:
        """Publish all pending decisions, at the end of a run."""
        while self._pending:
            self._send_first()

    def close(self) -> None:
        """Drop the pending decisions, after the last run."""
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._bucket.delay, self._send_some)

    def _send_some(self) -> None:
        self._timer = None
        while self._pending and self._bucket.has_token:
            self._bucket.take()
            self._send_first()
        if self._pending:
            self._start_timer()

    def _send_first(self) -> None:
        decision = self._pending.pop(next(iter(self._pending)))
        self._send(decision_fields(*decision), decision[1].scope)

    def _send(self, fields: dict[str, Any], scope: Scope | None) -> None:
        if self._unpublished:
            more = f"{self._unpublished} earlier decisions were not published"
            fields = {**fields, "reason": f"{fields['reason']} ({more})" if fields["reason"] else more}
            self._unpublished = 0
        self._publish(fields, scope)
