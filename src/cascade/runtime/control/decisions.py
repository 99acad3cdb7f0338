"""What became of constraints, told at once as a rule, and in a flood no faster than anybody can read."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cascade.runtime.control._bucket import TokenBucket
from cascade.runtime.control.constraint import Scope

PER_SECOND, AT_ONCE = 20.0, 100.0
"""Decisions that are told. Whoever floods us must not flood those who listen to us: each is a message of high priority."""
REFUSALS_PER_SECOND, REFUSALS_AT_ONCE = 5.0, 50.0
MAX_PENDING = 512
"""Scopes and types of which the latest decision waits to be told."""

Place = tuple[str, str]
"""Scope and type: at most one constraint holds there."""
Tell = Callable[[dict[str, Any], Scope | None], None]
"""Called with the fields of a `ControlDecision` and whom it is for; None is everybody."""


class Decisions:
    """Tells all of them while they are few. Of many, of each place the latest, late; and how many were not told."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._bucket = TokenBucket(PER_SECOND, AT_ONCE, time.monotonic)
        self._refusals = TokenBucket(REFUSALS_PER_SECOND, REFUSALS_AT_ONCE, time.monotonic)
        self._pending: dict[Place, tuple[dict[str, Any], Scope]] = {}
        self._untold = 0
        self._timer: asyncio.TimerHandle | None = None

    def say(self, place: Place, fields: dict[str, Any], scope: Scope) -> None:
        """A constraint was applied, has expired, or was cleared."""
        if not self._pending and self._bucket.has_token:
            self._bucket.take()
            self._out(fields, scope)
            return
        self._untold += self._pending.pop(place, None) is not None
        self._pending[place] = fields, scope
        if len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
            self._untold += 1
        self._book()

    def refuse(self, fields: dict[str, Any], scope: Scope | None) -> None:
        """A message was no constraint. Nothing has changed by that, so nobody misses it if it is not told."""
        if self._refusals.has_token:
            self._refusals.take()
            self._out(fields, scope)
        else:
            self._untold += 1

    def tell_all(self) -> None:
        """Let nothing wait any longer: a run ends."""
        pending, self._pending = self._pending, {}
        for fields, scope in pending.values():
            self._out(fields, scope)

    def close(self) -> None:
        """Nobody listens any more."""
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _book(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._bucket.delay, self._tell_some)

    def _tell_some(self) -> None:
        self._timer = None
        while self._pending and self._bucket.has_token:
            self._bucket.take()
            place = next(iter(self._pending))
            self._out(*self._pending.pop(place))
        if self._pending:
            self._book()

    def _out(self, fields: dict[str, Any], scope: Scope | None) -> None:
        if self._untold:
            more = f"{self._untold} decisions before this one were not told"
            fields = {**fields, "reason": f"{fields['reason']} ({more})" if fields["reason"] else more}
            self._untold = 0
        self._tell(fields, scope)
