"""Schedules the retained states of runs: at once at the start and at the end of a run, otherwise once a second."""

import contextlib
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cascade.telemetry.limits import MAX_LISTED_TASKS
from cascade.telemetry.run_state import RunStateFold, encode_state
from cascade.telemetry.topics import events_topic, state_topic
from cascade.telemetry.wire import dumps

INTERVAL = 1.0
"""Seconds between two states of a run. Only the final state does not wait, so that a run has at most two states in a second."""
EXPIRY = 86_400
"""Seconds for which the broker retains the state of an active run: one day, if its process was killed."""
FINAL_EXPIRY = 60
"""Seconds for which the broker retains the final state of a run."""
MAX_FINAL = 10_000
"""Maximum number of final states that wait for the broker, about 25 MB. The oldest one is dropped."""
TICK = 0.05
"""Seconds between two scans of all runs, because there may be thousands."""

_REFRESH = EXPIRY / 2
_LISTED = (MAX_LISTED_TASKS, MAX_LISTED_TASKS // 4, 0)  # numbers of tasks that a state lists until it is small enough
_MIN_MESSAGE_CHARACTERS = 200  # of the last error, in a state that lists no tasks
_INVALID = (AttributeError, KeyError, OverflowError, TypeError, ValueError)  # raised for payloads of other programs


@dataclass(slots=True, eq=False)
class ScheduledState:
    """The state of an active run, or the final state of a run. Times are those of `time.monotonic`."""

    topic: str
    fold: RunStateFold
    number: int = -1
    """Position of a final state in the order of ended runs; -1 for an active run."""
    ended_at: float = 0.0
    is_changed: bool = True
    is_in_flight: bool = False
    sent_at: float = -math.inf
    wake_at: float = math.inf
    """Time of the next change that no message reports."""
    refusal: str = ""
    """Reason for which the broker refused the latest update."""

    def due_at(self) -> float:
        """Return the time of the next update. It is infinite while an update is unacknowledged."""
        if self.is_in_flight:
            return math.inf
        wanted = -math.inf if self.is_changed else self.wake_at
        return min(max(wanted, self.sent_at + INTERVAL), self.sent_at + _REFRESH)

    @property
    def expiry(self) -> int:
        """Seconds for which the broker retains the update; 0 if the final state has expired."""
        return EXPIRY if self.number < 0 else max(0, FINAL_EXPIRY - int(self.sent_at - self.ended_at))

    def body(self, max_bytes: float) -> bytes:
        """Return the state as JSON. It has fewer details if it would be larger than `max_bytes`.

        The body of an expired final state is empty, which clears the retained state.

        Raises:
            ValueError: The state is too large, or a message of the run is invalid.
        """
        if not self.expiry:
            return b""
        now_ns = time.time_ns()
        try:
            for listed in _LISTED:
                state = encode_state(self.fold.state(now_ns, listed))
                if not listed and state["last_error"]:
                    state["last_error"]["message"] = state["last_error"]["message"][:_MIN_MESSAGE_CHARACTERS]
                found = dumps(state)
                if len(found) <= max_bytes:
                    next_ns = self.fold.next_change_ns()
                    self.wake_at = math.inf if next_ns is None else time.monotonic() + (next_ns - now_ns) / 1e9
                    return found
        except _INVALID as error:
            raise ValueError(f"a message of the run is invalid: {error}") from None
        raise ValueError(f"the state of the run has more than {max_bytes:,} bytes")


class RunStates:
    """Folds the messages of runs and decides when their states are published.

    `add` may be called in any thread. The network thread takes the states that are due, and settles them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[str, ScheduledState] = {}  # by topic of the run's messages
        self._final: dict[int, ScheduledState] = {}  # by number, the unacknowledged ones
        self._ready: dict[ScheduledState, None] = {}  # due at once, because a run has started or ended
        self._scan_at = math.inf
        self._scanned_at = self._paused_until = -math.inf
        self.ended = 0
        """Number of runs that have ended."""
        self.refusal = ""
        """Reason for which the latest state was not published."""

    def add(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Fold a published message. A payload that is not a message of a run has no effect."""
        state = self._active.get(topic)
        try:
            if state is None:
                if not _is_start(topic, payload):
                    return
                state = self._start(topic, payload)
            state.fold.add(payload)
        except _INVALID:
            return
        if state.fold.is_over:
            self._end(topic, state)
        elif not state.is_changed:
            state.is_changed = True
            self._schedule_scan(state.due_at())

    def delay(self, now: float) -> float:
        """Return the seconds until a state is due, or infinity."""
        return max(0.0, (now if self._ready else self._scan_at) - now, self._paused_until - now)

    def take(self, now: float, limit: int) -> list[ScheduledState]:
        """Return at most `limit` states that are due. Each state is in flight until `settle`."""
        if self.delay(now) > 0:
            return []
        with self._lock:
            if now >= self._scan_at:
                self._ready |= dict.fromkeys(self._scan(now))
            taken = list(islice(self._ready, max(0, limit)))
            for state in taken:
                del self._ready[state]
                # Before the state is encoded, so that a concurrent message causes another update.
                state.is_changed, state.is_in_flight, state.sent_at, state.wake_at = False, True, now, math.inf
        return taken

    def settle(self, state: ScheduledState, refusal: str = "", *, retry: bool = False) -> None:
        """Record that the broker has acknowledged or refused a state. With `retry`, it is sent again after the interval."""
        with self._lock:
            state.refusal = refusal
            if refusal and not retry:
                self.refusal = refusal
            state.is_in_flight = False
            state.is_changed |= retry
            if not retry:
                self._final.pop(state.number, None)
        self._schedule_scan(state.due_at())

    def pause(self, refusal: str, seconds: float = math.inf) -> None:
        """Send no states for some seconds, or until `clear`. The final states of runs that end meanwhile are dropped."""
        with self._lock:
            self._paused_until = self._scan_at = time.monotonic() + seconds
            self.refusal = refusal
            self._final.clear()
            self._ready.clear()

    def restart(self) -> None:
        """Send all states again over a new connection, since the broker may have lost its retained messages."""
        with self._lock:
            for state in (*self._active.values(), *self._final.values()):
                state.is_in_flight, state.is_changed = False, True
            self._ready |= dict.fromkeys(self._final.values())
        self._schedule_scan(-math.inf)

    def has_settled(self, before: int) -> bool:
        """Return whether the final states of the first `before` ended runs are acknowledged."""
        with self._lock:
            return next(iter(self._final), before) >= before

    def clear(self) -> None:
        """Remove all runs."""
        with self._lock:
            for state in self._final.values():
                self.refusal = state.refusal or self.refusal
            self._active.clear()
            self._final.clear()
            self._ready.clear()
            self._scan_at, self._paused_until = math.inf, -math.inf

    def _start(self, topic: str, payload: Mapping[str, Any]) -> ScheduledState:
        address = state_topic(payload["org_id"], payload["project_id"], payload["run_id"])
        state = ScheduledState(address, RunStateFold(payload))
        with self._lock:
            self._active[topic] = state
            self._ready[state] = None
        return state

    def _end(self, topic: str, state: ScheduledState) -> None:
        """Replace the state by the final one. The acknowledgement of an earlier update has no effect on it."""
        with self._lock:
            if self._active.pop(topic, None) is not state:  # `clear` in another thread
                return
            self._ready.pop(state, None)
            final = ScheduledState(state.topic, state.fold, self.ended, time.monotonic())
            self.ended += 1
            if self._paused_until > final.ended_at:
                return
            self._final[final.number], self._ready[final] = final, None
            if len(self._final) > MAX_FINAL:
                self._ready.pop(self._final.pop(next(iter(self._final))), None)
                self.refusal = f"more than {MAX_FINAL:,} final states waited"

    def _schedule_scan(self, due_at: float) -> None:
        with self._lock:
            self._scan_at = min(self._scan_at, max(due_at, self._scanned_at + TICK))

    def _scan(self, now: float) -> list[ScheduledState]:
        """Return the states that are due. The caller holds the lock."""
        due, later = list[ScheduledState](), math.inf
        for state in (*self._active.values(), *self._final.values()):
            due_at = state.due_at()
            if due_at <= now:
                due.append(state)
            else:
                later = min(later, due_at)
        self._scanned_at, self._scan_at = now, max(later, now + TICK)
        return due


def _is_start(topic: str, payload: Mapping[str, Any]) -> bool:
    """Return whether this is the first message of a run, on the topic of its messages."""
    body = payload.get("body")
    if not isinstance(body, Mapping) or body.get("event") != "ENGINE_STARTED":
        return False
    org_id, project_id, run_id = (str(payload.get(name)) for name in ("org_id", "project_id", "run_id"))
    with contextlib.suppress(ValueError):  # the topic would be too long
        return topic == events_topic(org_id, project_id, run_id)
    return False
