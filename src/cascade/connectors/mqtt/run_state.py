"""Retained states of the runs of a connector: the latest state of each run, at most once a second."""

import contextlib
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from paho.mqtt.reasoncodes import ReasonCode

from cascade.connectors.mqtt.client import FAILURE, TAKEN_OVER, TRANSIENT, Client
from cascade.connectors.mqtt.packets import packet_bytes, state_properties
from cascade.telemetry.limits import MAX_LISTED_TASKS, MAX_MESSAGE_BYTES
from cascade.telemetry.run_state import RunStateFold, encode_state
from cascade.telemetry.topics import events_topic, state_topic
from cascade.telemetry.wire import dumps

INTERVAL = 1.0
"""Seconds between two states of a run. The final state does not wait; so there are never three of them in a second."""
EXPIRY = 86_400
"""Seconds for which the broker retains the state of a run that goes on: one day after its process was killed."""
FINAL_EXPIRY = 60
"""Seconds for which the broker retains the final state of a run."""
MAX_ENDS = 4
"""Connections in a row that end early while a state is unacknowledged, before states pause. Mosquitto closes the
connection, without a reason, for a message over its `message_size_limit`."""
PAUSE = 600.0
"""Seconds without states after such connections. The network may have been at fault."""
MAX_FINAL = 10_000
"""Final states that wait for the broker: about 25 MB. Above that, the oldest one is dropped."""

_REFRESH = EXPIRY / 2
TICK = 0.05
"""Seconds between two looks at all runs, of which there may be thousands."""
_SMALL = 2_000
"""Bytes: a smaller state was not refused for its size. Without tasks and errors it has about 700."""
_NOT_AUTHORIZED = 0x87
_BLAMELESS = TRANSIENT | {TAKEN_OVER}
"""Reason codes of DISCONNECT for which no message is the reason."""
_LISTED = (MAX_LISTED_TASKS, MAX_LISTED_TASKS // 4, 0)
"""Tasks to list, for a broker with a small Maximum Packet Size."""
_SHORT = 200
"""Characters of the last error in a state that lists no tasks because of its size."""
_INVALID = (AttributeError, KeyError, OverflowError, TypeError, ValueError)
"""Errors because of a payload that the engine has not made."""


@dataclass(slots=True, eq=False)
class _Run:
    """A run and its latest state. Times are those of `time.monotonic`."""

    topic: str
    fold: RunStateFold
    is_changed: bool = False
    is_out: bool = False
    sent_at: float = -math.inf
    wake_at: float = math.inf
    """Time of the next change that no message reports."""
    refusal: str = ""
    """Why the latest update was not accepted."""
    number: int = -1
    """Position in the order of the runs that have ended."""
    ended_at: float = 0.0

    def due_at(self) -> float:
        """Time of the next update; infinite while one is unacknowledged."""
        if self.is_out:
            return math.inf
        wanted = -math.inf if self.is_changed else self.wake_at
        return min(max(wanted, self.sent_at + INTERVAL), self.sent_at + _REFRESH)


@dataclass(frozen=True, slots=True, eq=False)
class StateUpdate:
    """A state that is due. `expiry` is in seconds."""

    topic: str
    expiry: int
    is_final: bool
    run: _Run = field(repr=False)

    def body(self, most: float) -> bytes | None:
        """The state as JSON in at most so many bytes, with less detail if need be. None if that is not possible.

        The body is empty if the final state has expired: it clears the state that is retained.
        """
        if not self.expiry:
            return b""
        now_ns = time.time_ns()
        for listed in _LISTED:
            state = encode_state(self.run.fold.state(now_ns, listed))
            if not listed and state["last_error"]:
                state["last_error"]["message"] = state["last_error"]["message"][:_SHORT]
            found = dumps(state)
            if len(found) <= most:
                next_ns = self.run.fold.next_change_ns()
                self.run.wake_at = math.inf if next_ns is None else time.monotonic() + (next_ns - now_ns) / 1e9
                return found
        return None


class RunStates:
    """Folds the messages of runs and decides when their states are published.

    Any thread adds messages. The network thread takes the updates that are due, and settles them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[str, _Run] = {}  # by topic of their messages
        self._final: dict[int, _Run] = {}  # by number: those whose final state is not acknowledged
        self._ready: dict[_Run, None] = {}  # at once: runs that start or end
        self._scan_at = math.inf
        self._scanned_at = -math.inf
        self._ends = 0
        self._paused_until = -math.inf
        self.ended = 0
        """Number of runs that have ended."""
        self.most: float = math.inf
        """Bytes of a state that the broker is believed to accept."""
        self.refusal = ""
        """Why the latest state was not published."""

    def add(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Fold a message that was published on a topic. A payload that is not a message of a run has no effect."""
        run = self._active.get(topic)
        try:
            if run is None:
                if not _is_start(topic, payload):
                    return
                run = self._start(topic, payload)
            run.fold.add(payload)
        except _INVALID:
            return
        if run.fold.is_over:
            self._end(topic, run)
        elif not run.is_changed:
            run.is_changed = True
            self._look_at(run.due_at())

    def delay(self, now: float) -> float:
        """Seconds until an update is due; infinite if there is none."""
        return max(0.0, (now if self._ready else self._scan_at) - now, self._paused_until - now)

    def take(self, now: float, limit: int) -> list[StateUpdate]:
        """Return at most `limit` updates that are due. Each is out until `settle`."""
        if self.delay(now) > 0:
            return []
        with self._lock:
            if now >= self._scan_at:
                self._ready |= dict.fromkeys(self._scan(now))
            taken = list(islice(self._ready, max(0, limit)))
            for run in taken:
                del self._ready[run]
            return [self._taken(run, now) for run in taken]

    def settle(self, update: StateUpdate, refusal: str = "", *, retry: bool = False) -> None:
        """Record that the broker has acknowledged or refused an update. With `retry` it is sent again after the interval."""
        run = update.run
        with self._lock:
            run.refusal = refusal
            if not refusal:
                self._ends = 0
            elif not retry:
                self.refusal = refusal
            if run.number >= 0 and not update.is_final:  # the final state has replaced it
                return
            run.is_out = False
            if retry:
                run.is_changed = True
            if update.is_final and not retry:
                self._final.pop(run.number, None)
        self._look_at(run.due_at())

    def forbid(self, refusal: str) -> None:
        """Send no more states until `clear`: an access list that refuses one refuses all."""
        with self._lock:
            self._pause(math.inf, refusal)

    def lost(self, size: int) -> None:
        """Record the early end of a connection on which a state of so many bytes was unacknowledged.

        The first one may be a restart of the broker. After each further one in a row, the states are smaller. Then they
        pause.
        """
        with self._lock:
            self._ends += 1
            if self._ends > 1:
                self.most = max(_SMALL, min(self.most, size // 2))
            if self._ends >= MAX_ENDS:
                self._pause(time.monotonic() + PAUSE, "the connection broke whenever it was sent")

    def restart(self) -> None:
        """Send all states again over a new connection, since the broker may have lost its retained messages."""
        with self._lock:
            for run in (*self._active.values(), *self._final.values()):
                run.is_out, run.is_changed = False, True
            self._ready |= dict.fromkeys(self._final.values())
        self._look_at(-math.inf)

    def has_settled(self, before: int) -> bool:
        """Whether the final states of the first `before` runs that have ended are acknowledged."""
        with self._lock:
            return next(iter(self._final), before) >= before

    def clear(self) -> None:
        """Forget all runs."""
        with self._lock:
            for run in self._final.values():
                self.refusal = run.refusal or self.refusal
            self._active.clear()
            self._final.clear()
            self._ready.clear()
            self._scan_at, self._ends, self._paused_until, self.most = math.inf, 0, -math.inf, math.inf

    def _start(self, topic: str, payload: Mapping[str, Any]) -> _Run:
        address = state_topic(payload["org_id"], payload["project_id"], payload["run_id"])
        run = _Run(address, RunStateFold(payload), is_changed=True)
        with self._lock:
            self._active[topic] = run
            self._ready[run] = None
        return run

    def _end(self, topic: str, run: _Run) -> None:
        with self._lock:
            del self._active[topic]
            run.number, run.ended_at = self.ended, time.monotonic()
            self.ended += 1
            if self._paused_until > run.ended_at:
                self._ready.pop(run, None)
                return
            self._final[run.number] = run
            if len(self._final) > MAX_FINAL:
                self._ready.pop(self._final.pop(next(iter(self._final))), None)
                self.refusal = f"more than {MAX_FINAL:,} final states waited"
            self._ready[run] = None

    def _pause(self, until: float, refusal: str) -> None:
        """Send no states until then, not even those of runs that have ended; with the lock."""
        self._paused_until, self._scan_at, self.refusal = until, until, refusal
        self._final.clear()
        self._ready.clear()

    def _look_at(self, due_at: float) -> None:
        with self._lock:
            self._scan_at = min(self._scan_at, max(due_at, self._scanned_at + TICK))

    def _scan(self, now: float) -> list[_Run]:
        """The runs that are due; with the lock."""
        due, later = list[_Run](), math.inf
        for run in (*self._active.values(), *self._final.values()):
            due_at = run.due_at()
            if due_at <= now:
                due.append(run)
            else:
                later = min(later, due_at)
        self._scanned_at, self._scan_at = now, max(later, now + TICK)
        return due

    def _taken(self, run: _Run, now: float) -> StateUpdate:
        # First the flag and then the state: a message that comes in between is in both this state and the next one.
        run.is_changed, run.is_out, run.sent_at, run.wake_at = False, True, now, math.inf
        if run.number < 0:
            return StateUpdate(run.topic, EXPIRY, is_final=False, run=run)
        expiry = max(0, FINAL_EXPIRY - int(now - run.ended_at))
        return StateUpdate(run.topic, expiry, is_final=True, run=run)


class StateSender:
    """Sends the states of runs over one connection."""

    def __init__(self, client: Client, states: RunStates) -> None:
        self.has_passed = False
        """Whether the connection has lasted longer than the answer to its first state."""
        self._has_sent = False
        self._client = client
        self._states = states
        self._out: dict[int, tuple[StateUpdate, int]] = {}  # by packet id, with the size
        states.restart()

    def __len__(self) -> int:
        """Number of states that the broker has not acknowledged."""
        return len(self._out)

    @property
    def is_on_trial(self) -> bool:
        """Whether the answer to the first state of the connection may end it.

        Mosquitto with `max_queued_messages 0` closes the connection after it has refused a message. Messages of QoS 0 that
        were written after that one would be lost. After a refusal, a further answer from the broker ends the trial.
        """
        return self._has_sent and not self.has_passed

    def delay(self) -> float:
        """Seconds until a state is due; infinite if there is none."""
        return self._states.delay(time.monotonic())

    def send(self, limit: int) -> None:
        """Send at most `limit` states that are due. A broker without retained messages gets none."""
        limits = self._client.limits
        for update in self._states.take(time.monotonic(), limit):
            if not limits.retain_available:
                self._states.settle(update)
                continue
            most = min(limits.maximum_packet_size, MAX_MESSAGE_BYTES, self._states.most)
            properties = state_properties(update.expiry)
            try:
                body = update.body(most - packet_bytes(update.topic, len(properties.pack())))
            except _INVALID as error:  # would end each connection
                self._states.settle(update, f"a message of the run is invalid: {error}, on topic {update.topic}")
                continue
            if body is None:
                self._states.settle(update, f"it has more than {most:,} bytes, on topic {update.topic}")
                continue
            qos = limits.maximum_qos
            packet_id = self._client.send(update.topic, body, qos, properties, retain=True)
            if qos:
                self._out[packet_id] = (update, len(body))
                self._has_sent = True
            else:
                self._states.settle(update)

    def acknowledged(self, packet_id: int, reason: ReasonCode) -> bool:
        """Record the broker's answer; whether it was the answer to a state."""
        found = self._out.pop(packet_id, None)
        if found is None:
            return False
        update, _ = found
        refusal = f"{reason}, on topic {update.topic}" if reason.value >= FAILURE else ""
        self.has_passed |= not refusal
        if reason.value == _NOT_AUTHORIZED:
            self._states.forbid(refusal)
        self._states.settle(update, refusal, retry=reason.value in TRANSIENT)
        return True

    def lost(self) -> bool:
        """Record the early end of the connection; whether a state may have caused it."""
        if not self._out or self._client.code in _BLAMELESS:
            return False
        self._states.lost(max(size for _, size in self._out.values()))
        return True


def _is_start(topic: str, payload: Mapping[str, Any]) -> bool:
    """Whether this is the first message of a run, on the topic of its messages."""
    body = payload.get("body")
    if not isinstance(body, Mapping) or body.get("event") != "ENGINE_STARTED":
        return False
    org_id, project_id, run_id = (str(payload.get(name)) for name in ("org_id", "project_id", "run_id"))
    with contextlib.suppress(ValueError):  # a topic like that is too long
        return topic == events_topic(org_id, project_id, run_id)
    return False
