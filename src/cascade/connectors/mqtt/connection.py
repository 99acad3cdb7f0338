"""One MQTT connection: its window of unacknowledged messages, and its subscriptions."""

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
from cascade.connectors.mqtt.outbox import Outbox, OutgoingMessage
from cascade.connectors.mqtt.oversize_messages import MIN_LIFETIME, PoisonMessageFilter
from cascade.connectors.mqtt.packets import (
    CLIENT_ONLY,
    FAILURE,
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
"""Largest number of unacknowledged messages, which are sent again after a lost connection. 500 allow 25,000 messages per second
at a round trip of 20 ms. With a broker on the same machine, 100 are as fast."""
BATCH = 128
"""Messages that are sent between two reads."""
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
        """Whether the broker has sent or accepted bytes since the session last reset it."""
        self._wakeup = wakeup
        self._shared = shared
        self._outbox = shared.outbox
        self._throttle = shared.backpressure.throttle
        self._poison = poison
        self._start = time.monotonic()
        self._has_progress = self._has_changes = self._has_incoming = False
        self._active_at = self._start
        # Kept until all messages are sent, so that `end` puts back the rest after an error.
        self._batch: list[OutgoingMessage] = []
        self._unacknowledged: dict[int, OutgoingMessage] = {}
        self._unwritten: list[OutgoingMessage] = []
        self._to_settle: list[OutgoingMessage] = []
        self._unsent: deque[RetainedMessage] = deque()
        self._retained: dict[int, RetainedMessage] = {}  # unacknowledged
        self._has_sent_state = self._state_accepted = False
        self._subscriber = Subscriber(client, shared.subscriptions, presence_topic)
        self._barrier = self._subscriber.barrier
        self._aliases = TopicAliases(client.limits.topic_alias_maximum)
        self._states = shared.states
        self.on_presence: Callable[[bytes], None] = lambda _: None
        """Called with each message on the presence topic."""
        self._presence_topic = presence_topic
        poison.begin(client.limits.maximum_packet_size)
        shared.subscriptions.begin()
        shared.states.restart()
        shared.backpressure.restart()
        client.on_acknowledged = self._on_acknowledged
        client.on_received = self._on_received
        client.on_activity = self._on_activity

    @property
    def is_useful(self) -> bool:
        """Whether a message was acknowledged over the connection, or it has lasted for `MIN_LIFETIME`."""
        return self._has_progress or time.monotonic() - self._start > MIN_LIFETIME

    @property
    def is_answer_due(self) -> bool:
        """Whether an answer of the broker is due."""
        return self._subscriber.is_waiting or len(self._retained) > 0 or self._outbox.has_in_flight

    def has_work(self) -> bool:
        """Return whether `work` can send a packet now."""
        if self._subscriber.is_outdated:
            return True
        if self.client.wants_write:
            return False
        can_send = self._room() > 0 and self._outbox.can_take(self._room_for_qos_1())
        return can_send or (self._room_for_states() > 0 and not self._states.delay(time.monotonic()))

    def delay(self) -> float:
        """Return the seconds until a state of a run is due, or messages may be sent again after a transient refusal."""
        pause = self._throttle.pause if self._outbox.is_waiting else 0.0
        return min(max(TICK, self._states.delay(time.monotonic())), pause or math.inf)

    def work(self) -> int:
        """Queue a batch of messages, and the changed subscriptions. Return the number of messages."""
        if self._subscriber.is_outdated:
            self._subscriber.update()
        return self.fill()

    def fill(self) -> int:
        """Write the states of runs that are due, and a batch of messages, within the limits of the window.

        The packets are written at once: for QoS 0 there is no answer that would start the next batch. Returns the number of
        messages in the batch.
        """
        if self.client.wants_write:
            self.client.flush()
        if self.client.wants_write:
            return 0
        self._send_states()
        self._batch = self._outbox.take(min(self._room(), BATCH), self._room_for_qos_1())
        self._throttle.record_sent(len(self._batch))
        for message in self._batch:
            self._send(message)
        count, self._batch = len(self._batch), []
        if self.client.wants_write:
            self.client.flush()
        return count

    def settle(self) -> None:
        """Count the acknowledged messages, and notify the event loops."""
        is_acknowledged = bool(self._to_settle)
        if self._unwritten and not (self.client.is_over or self.client.wants_write):
            # MQTT has no acknowledgement for QoS 0: these messages are settled once the system has accepted them.
            self._to_settle += self._unwritten
            self._unwritten.clear()
        if self._to_settle:
            self._outbox.settle(self._to_settle)
            self._throttle.record_accepted(len(self._to_settle), is_acknowledged=is_acknowledged)
            self._to_settle, self._has_changes = [], True
        if self._has_changes:
            self._has_changes, self._has_progress = False, True
            self._shared.changes.notify()
            self._shared.backpressure.notify()
        self._shared.backpressure.measure()

    def publish(self, topic: str, body: bytes, properties: bytes, *, retain: bool) -> None:
        """Send a presence message, before the queued messages.

        A message that is larger than the broker accepts is dropped, with a warning.
        """
        size, most = packet_bytes(topic, len(properties) + len(body)), self.client.limits.maximum_packet_size
        if size > most:
            self._shared.warn(f"a message on topic {topic} has {size:,} bytes; the broker accepts {most:,}")
            self._barrier.record_refusal()
            return
        self._unsent.append(RetainedMessage(topic, body, properties, retain=retain))
        self._send_unsent()

    async def wait_acknowledged(self, seconds: float) -> bool:
        """Wait at most `seconds` until the messages of `publish` are acknowledged. Return whether all were sent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if not self.client.limits.maximum_qos:
                    await self._subscriber.make_round_trip()
                while (self._retained or self._unsent) and not self.client.is_over:
                    self._wakeup.clear()
                    await self._wakeup.wait()
        return not self._unsent

    def end(self, *, is_ending: bool, is_duplicate: bool) -> bool:
        """Put the unacknowledged messages back into the outbox. Return whether one of them is the cause of the end.

        `is_ending`: the session ends the connection. `is_duplicate` is the attribute of ClientId.
        """
        self._subscriber.cancel()
        self.settle()
        code, seconds = self.client.code, time.monotonic() - self._start
        is_unrelated = is_ending or is_duplicate or code in CLIENT_ONLY | TRANSIENT
        state_bytes = max((len(one.body) for one in self._retained.values() if one.state), default=0)
        is_caused = not is_unrelated and self._poison.record_end(seconds, self.client.reason, state_bytes)
        is_refused = code in TRANSIENT and not is_ending
        in_flight = [*self._unacknowledged.values(), *self._unwritten, *self._batch]
        self._outbox.put_back(in_flight, self.client.reason if is_refused else "")
        if is_refused:
            self._shared.backpressure.record_refusal()
        if is_ending or code not in CLIENT_ONLY:
            self._outbox.resend(math.inf if is_ending else self._active_at)
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
        if self._awaits_first_state:
            return 0
        window = self._poison.window(WINDOW) if self._poison.is_searching else WINDOW
        in_window = window - len(self._unacknowledged) - len(self._unwritten)
        return max(0, int(min(in_window, self._throttle.room())))

    def _room_for_qos_1(self) -> int:
        limits = self.client.limits
        return limits.receive_maximum - self._in_flight() - len(self._unsent) if limits.maximum_qos else WINDOW

    def _in_flight(self) -> int:
        return len(self._unacknowledged) + len(self._retained)

    def _room_for_states(self) -> int:
        """Return the number of states that may be sent: at most half of the window. If the window is one, queued messages are first."""
        share = min(WINDOW, self.client.limits.receive_maximum) // 2 or not self._outbox.is_waiting
        return min(self._room_for_qos_1(), share - len(self._retained))

    @property
    def _awaits_first_state(self) -> bool:
        """Whether the first state of the connection is unanswered, so that no message may be sent.

        Mosquitto with `max_queued_messages 0` closes the connection after it has refused a message. Messages of QoS 0 that
        were written after that one would be lost. After a refusal, a further answer of the broker ends this restriction.
        """
        return self._has_sent_state and not self._state_accepted

    def _send(self, message: OutgoingMessage) -> None:
        limits = self.client.limits
        topic, alias = self._aliases.find(message.topic)
        properties = publish_properties(message.traceparent, message.tracestate, alias)
        size = packet_bytes(topic, len(properties) + len(message.body))
        if size > self._poison.max_packet_bytes and not self._poison.shrink_or_drop(message, size):
            self._has_changes = True
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
        """Send the states that are due, unless the broker does not support retained messages."""
        limits = self.client.limits
        most = min(limits.maximum_packet_size, MAX_MESSAGE_BYTES, self._poison.max_state_bytes)
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

    def _on_acknowledged(self, packet_id: int, reason: ReasonCode) -> None:
        message = self._unacknowledged.pop(packet_id, None)
        if message is None:
            retained = self._retained.pop(packet_id, None)
            if retained is not None and retained.state is not None:
                self._on_state_answered(retained.state, reason)
            elif reason.value >= FAILURE:
                self._barrier.record_refusal()
        elif reason.value in TRANSIENT:
            self._outbox.put_back([message], str(reason))
            self._shared.backpressure.record_refusal()
        elif reason.value >= FAILURE:
            self._outbox.drop(message, f"{reason}, on topic {message.topic}")
            self._has_changes = True
        else:
            self._to_settle.append(message)
        if self._unsent:
            self._send_unsent()

    def _on_state_answered(self, state: ScheduledState, reason: ReasonCode) -> None:
        is_refused = reason.value >= FAILURE
        refusal = f"{reason}, on topic {state.topic}" if is_refused else ""
        if reason.value == _NOT_AUTHORIZED:  # an access list that refuses one state refuses all
            self._states.pause(refusal)
        self._states.settle(state, refusal, retry=reason.value in TRANSIENT)
        self._has_changes = True
        if not is_refused:
            self._state_accepted, self._poison.state_losses = True, 0
        elif self._awaits_first_state:
            self._subscriber.start(self._confirm_state())

    async def _confirm_state(self) -> None:
        await self._subscriber.make_round_trip()
        self._state_accepted = True
        self._wakeup.set()

    # Incoming messages.

    def _on_received(self, message: IncomingMessage) -> None:
        topic, payload, retain, expiry = message
        if retain:
            self._barrier.record_retained(topic)
        if topic == self._presence_topic:
            self.on_presence(payload)
        self._has_incoming = True
        self._shared.subscriptions.receive(topic, payload, retained=retain, expiry=expiry)
