"""One connection in use: the window of unacknowledged messages, and the subscriptions."""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from paho.mqtt.reasoncodes import ReasonCode

from cascade.connectors.mqtt.backpressure import Backpressure, LoopNotifier
from cascade.connectors.mqtt.client import Client
from cascade.connectors.mqtt.outbox import SOON, Outbox, OutgoingMessage, PoisonMessageFilter
from cascade.connectors.mqtt.packets import (
    FAILURE,
    OWN,
    TRANSIENT,
    IncomingMessage,
    RetainedMessage,
    TopicAliases,
    packet_bytes,
    publish_properties,
    state_properties,
)
from cascade.connectors.mqtt.subscriber import Subscriber
from cascade.connectors.mqtt.subscriptions import Subscriptions
from cascade.telemetry.limits import MAX_MESSAGE_BYTES
from cascade.telemetry.state_schedule import TICK, RunStates, ScheduledState

WINDOW = 500
"""Unacknowledged messages: 25,000 a second at a round trip of 20 ms. At most so many are sent twice after a lost
connection. Nearby, 100 are as fast."""
BATCH = 128
"""Messages between two reads."""
_NOT_AUTHORIZED = 0x87


@dataclass(frozen=True, slots=True)
class SessionState:
    """State that the network thread shares with the event loops of the runs.

    `changes` is notified when messages are acknowledged, an attempt to connect succeeds or fails, the retained messages
    are complete, or the session ends.
    """

    outbox: Outbox
    states: RunStates
    backpressure: Backpressure
    subscriptions: Subscriptions
    changes: LoopNotifier
    warn: Callable[[str], None]


class Connection:
    """Sends the messages of the outbox and keeps the subscriptions, over a client that is connected."""

    def __init__(
        self,
        client: Client,
        shared: SessionState,
        poison: PoisonMessageFilter,
        wakeup: asyncio.Event,
        presence_topic: str,
    ) -> None:
        self.client = client
        self.has_activity = False
        """Whether the broker has sent or accepted anything. The session resets it."""
        self._wakeup = wakeup
        self._shared = shared
        self._outbox = shared.outbox
        self._throttle = shared.backpressure.throttle
        self._poison = poison
        self._start = time.monotonic()
        self._has_moved = self._has_news = self._has_incoming = False
        self._active_at = self._start
        self._taken: list[OutgoingMessage] = []  # it stays here if an error ends the connection before all are sent
        self._unacknowledged: dict[int, OutgoingMessage] = {}
        self._unwritten: list[OutgoingMessage] = []
        self._arrived: list[OutgoingMessage] = []
        self._unsent: deque[RetainedMessage] = deque()
        self._retained: dict[int, RetainedMessage] = {}  # unacknowledged
        self._has_sent_state = self._has_passed = False
        self._subscriber = Subscriber(client, shared.subscriptions, presence_topic)
        self._barrier = self._subscriber.barrier
        self._aliases = TopicAliases(client.limits.topic_alias_maximum)
        self._states = shared.states
        self.on_presence: Callable[[bytes], None] = lambda _: None
        """Called with each message on the presence topic."""
        self._presence_topic = presence_topic
        shared.subscriptions.begin()
        shared.states.restart()
        shared.backpressure.restart()
        client.on_acknowledged = self._acknowledged
        client.on_received = self._received
        client.on_activity = self._on_activity

    @property
    def is_proven(self) -> bool:
        """Whether a message has arrived over the connection, or it has lasted."""
        return self._has_moved or time.monotonic() - self._start > SOON

    @property
    def is_answer_due(self) -> bool:
        """Whether the broker has something to answer."""
        return self._subscriber.is_waiting or len(self._retained) > 0 or self._outbox.is_out

    def has_work(self) -> bool:
        """Whether `work` can do anything before the broker sends something."""
        if self._subscriber.is_outdated:
            return True
        if self.client.wants_write:
            return False
        can_send = self._room() > 0 and self._outbox.can_take(self._room_for_acknowledged())
        return can_send or (self._room_for_states() > 0 and not self._states.delay(time.monotonic()))

    def delay(self) -> float:
        """Seconds until a state of a run is due, or messages may be sent again after a transient refusal."""
        pause = self._throttle.pause if self._outbox.is_waiting else 0.0
        return min(max(TICK, self._states.delay(time.monotonic())), pause or math.inf)

    def work(self) -> None:
        """Queue a batch of messages, and the changed subscriptions."""
        if self._subscriber.is_outdated:
            self._subscriber.update()
        self.fill()

    def fill(self) -> None:
        """Write the states of runs that are due, and a batch of messages, as far as there is room.

        They are written at once, since no answer to messages of QoS 0 starts the next batch. Neither does the write of a
        packet that paho has queued before.
        """
        if self.client.wants_write:
            self.client.flush()
        if self.client.wants_write:
            return
        self._send_states()
        self._taken = self._outbox.take(min(self._room(), BATCH), self._room_for_acknowledged())
        self._throttle.sent(len(self._taken))
        for message in self._taken:
            self._send(message)
        self._taken = []
        if self.client.wants_write:
            self.client.flush()

    def settle(self) -> None:
        """Count the messages that have arrived, and notify the event loops."""
        is_acknowledged = bool(self._arrived)
        if self._unwritten and not (self.client.is_over or self.client.wants_write):
            # MQTT has no acknowledgement for QoS 0: these count as arrived once the system has accepted them.
            self._arrived += self._unwritten
            self._unwritten.clear()
        if self._arrived:
            self._outbox.settle(self._arrived)
            self._throttle.accepted(len(self._arrived), is_acknowledged=is_acknowledged)
            self._arrived, self._has_news = [], True
        if self._has_news:
            self._has_news, self._has_moved = False, True
            self._shared.changes.notify()
            self._shared.backpressure.notify()
        self._shared.backpressure.measure()

    def publish(self, topic: str, body: bytes, properties: bytes, *, retain: bool) -> None:
        """Send a message about the presence, before the messages that wait.

        It is not sent, which is reported, if it is larger than the broker accepts.
        """
        size, most = packet_bytes(topic, len(properties) + len(body)), self.client.limits.maximum_packet_size
        if size > most:
            self._shared.warn(f"a message on topic {topic} has {size:,} bytes; the broker accepts {most:,}")
            self._barrier.refuse()
            return
        self._unsent.append(RetainedMessage(topic, body, properties, retain=retain))
        self._send_unsent()

    async def arrive(self, seconds: float) -> bool:
        """Wait until the messages of `publish` have arrived, at most so many seconds; return whether all were sent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if not self.client.limits.maximum_qos:
                    await self._subscriber.make_round_trip()
                while (self._retained or self._unsent) and not self.client.is_over:
                    self._wakeup.clear()
                    await self._wakeup.wait()
        return not self._unsent

    def end(self, *, is_wanted: bool, is_contested: bool) -> bool:
        """Give the messages that have not arrived back to the outbox; return whether one of them caused the end.

        `is_contested` as in ClientId.
        """
        self._subscriber.cancel()
        self.settle()
        code, seconds = self.client.code, time.monotonic() - self._start
        is_innocent = is_wanted or is_contested or code in OWN | TRANSIENT
        state_bytes = max((len(one.body) for one in self._retained.values() if one.state), default=0)
        is_caused = not is_innocent and self._poison.lost(seconds, self.client.reason, state_bytes)
        is_refused = code in TRANSIENT and not is_wanted
        out = [*self._unacknowledged.values(), *self._unwritten, *self._taken]
        self._outbox.recall(out, self.client.reason if is_refused else "")
        if is_refused:
            self._shared.backpressure.refused()
        if is_wanted or code not in OWN:
            self._outbox.resend(math.inf if is_wanted else self._active_at)
        return is_caused

    def _on_activity(self) -> None:
        self.has_activity = True
        if not self.client.is_over:
            self._active_at = time.monotonic()
        if self._has_incoming:
            self._has_incoming = False
            self._shared.subscriptions.wake()
        self._wakeup.set()

    # Outgoing messages.

    def _room(self) -> int:
        if self._is_on_trial:
            return 0
        in_window = self._poison.window(WINDOW) - len(self._unacknowledged) - len(self._unwritten)
        return max(0, int(min(in_window, self._throttle.room())))

    def _room_for_acknowledged(self) -> int:
        limits = self.client.limits
        return limits.receive_maximum - self._in_flight() - len(self._unsent) if limits.maximum_qos else WINDOW

    def _in_flight(self) -> int:
        return len(self._unacknowledged) + len(self._retained)

    def _room_for_states(self) -> int:
        """The states of many runs take half of the window at most. If it has one place, messages go first."""
        share = min(WINDOW, self.client.limits.receive_maximum) // 2 or not self._outbox.is_waiting
        return min(self._room_for_acknowledged(), share - len(self._retained))

    @property
    def _is_on_trial(self) -> bool:
        """Whether the answer to the first state of the connection may end it.

        Mosquitto with `max_queued_messages 0` closes the connection after it has refused a message. Messages of QoS 0 that
        were written after that one would be lost. After a refusal, a further answer from the broker ends the trial.
        """
        return self._has_sent_state and not self._has_passed

    def _send(self, message: OutgoingMessage) -> None:
        limits = self.client.limits
        topic, alias = self._aliases.find(message.topic)
        properties = publish_properties(message.traceparent, message.tracestate, alias)
        size = packet_bytes(topic, len(properties) + len(message.body))
        most = limits.maximum_packet_size
        if size > min(most, self._poison.most) and not self._poison.fit(message, most):
            self._lose(message, f"a message of {size:,} bytes is more than the broker accepts")
            return
        if alias and topic:
            self._aliases.add(topic, alias)
        qos = message.qos and limits.maximum_qos
        packet_id = self.client.send(topic, message.body, qos, properties)
        if qos:
            self._unacknowledged[packet_id] = message
        else:
            self._unwritten.append(message)

    def _send_unsent(self) -> None:
        while self._unsent and self._in_flight() < self.client.limits.receive_maximum:
            self._send_retained(self._unsent.popleft())

    def _send_states(self) -> None:
        """Send the states that are due. A broker without retained messages gets none."""
        limits = self.client.limits
        most = min(limits.maximum_packet_size, MAX_MESSAGE_BYTES, self._poison.most_of_state)
        for state in self._states.take(time.monotonic(), self._room_for_states()):
            if not limits.retain_available:
                self._states.settle(state)
                continue
            properties = state_properties(state.expiry)
            try:
                body = state.body(most - packet_bytes(state.topic, len(properties)))
            except ValueError as error:
                self._states.settle(state, f"{error}, on topic {state.topic}")
            else:
                self._send_retained(RetainedMessage(state.topic, body, properties, state))

    def _send_retained(self, message: RetainedMessage) -> None:
        limits, topic, body = self.client.limits, message.topic, message.body
        retain = message.retain and limits.retain_available
        packet_id = self.client.send(topic, body, limits.maximum_qos, message.properties, retain=retain)
        if limits.maximum_qos:
            self._retained[packet_id] = message
            self._has_sent_state |= message.state is not None
        elif message.state is not None:
            self._states.settle(message.state)

    def _acknowledged(self, packet_id: int, reason: ReasonCode) -> None:
        message = self._unacknowledged.pop(packet_id, None)
        if message is None:
            retained = self._retained.pop(packet_id, None)
            if retained is not None and retained.state is not None:
                self._state_answered(retained.state, reason)
            elif reason.value >= FAILURE:
                self._barrier.refuse()
        elif reason.value in TRANSIENT:
            self._outbox.recall([message], str(reason))
            self._shared.backpressure.refused()
        elif reason.value >= FAILURE:
            self._lose(message, f"{reason}, on topic {message.topic}")
        else:
            self._arrived.append(message)
        if self._unsent:
            self._send_unsent()

    def _state_answered(self, state: ScheduledState, reason: ReasonCode) -> None:
        is_refused = reason.value >= FAILURE
        refusal = f"{reason}, on topic {state.topic}" if is_refused else ""
        if reason.value == _NOT_AUTHORIZED:  # an access list that refuses one state refuses all
            self._states.pause(refusal)
        self._states.settle(state, refusal, retry=reason.value in TRANSIENT)
        self._has_news = True
        if not is_refused:
            self._has_passed, self._poison.state_losses = True, 0
        elif self._is_on_trial:
            self._subscriber.start(self._pass_trial())

    async def _pass_trial(self) -> None:
        await self._subscriber.make_round_trip()
        self._has_passed = True
        self._wakeup.set()

    def _lose(self, message: OutgoingMessage, reason: str) -> None:
        self._outbox.lose(message, reason)
        self._has_news = True

    # Incoming messages.

    def _received(self, message: IncomingMessage) -> None:
        topic, payload, retain, expiry = message
        if retain:
            self._barrier.note(topic)
        if topic == self._presence_topic:
            self.on_presence(payload)
        self._has_incoming = True
        self._shared.subscriptions.receive(topic, payload, retained=retain, expiry=expiry)
