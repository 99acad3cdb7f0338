"""Shrinks or drops messages that are larger than the broker accepts, and detects those that make it close the connection."""

import contextlib
import math

from cascade.connectors.mqtt.outbox import Outbox, OutgoingMessage
from cascade.connectors.mqtt.packets import packet_bytes, publish_properties
from cascade.telemetry import wire
from cascade.telemetry.limits import shrink
from cascade.telemetry.state_schedule import RunStates

MIN_LIFETIME = 5.0
"""Seconds. The end of a connection that lasted longer is not attributed to the first messages."""
_SUSPICIOUS_LOSSES, MAX_LOSSES = 2, 4
"""Early ends of connections after which the only unacknowledged message is shrunk, and after which it is dropped. For the
states of runs: consecutive early ends with an unacknowledged state after which states are shrunk, and after which they pause."""
PAUSE = 600.0
"""Seconds without states of runs after such connections. A fault of the network may have been the cause."""
_BIG, _BIG_STATE = 4_096, 2_000
"""Bytes below which a message, or a state of a run, is not shrunk. A state without tasks has about 700."""


class PoisonMessageFilter:
    """Detects messages that make the broker close the connection, shrinks them, and finally drops them.

    Mosquitto closes the connection, without a reason, for messages over its `message_size_limit`. It would close each further
    connection if all messages were sent again. After two early ends in a row, the filter therefore allows one unacknowledged
    message at a time, until it has found the cause. It first attributes an early end to an unacknowledged state of a run,
    because a lost state costs less.
    """

    def __init__(self, outbox: Outbox, states: RunStates) -> None:
        self.max_packet_bytes = self.max_state_bytes = math.inf
        """Bytes of the largest packet, and of the largest state, that the broker seems to accept."""
        self._maximum_packet_size = self._largest_accepted = math.inf
        self.state_losses = 0
        """Early ends with an unacknowledged state since the latest accepted state."""
        self._outbox = outbox
        self._states = states
        self.is_searching = False
        """Whether the filter searches for the cause of early ends, so that `window` may be 1."""
        self._early_ends = 0
        self._search_end = 0

    def begin(self, maximum_packet_size: int) -> None:
        """Prepare for a new connection, with the Maximum Packet Size of its CONNACK."""
        self._maximum_packet_size = maximum_packet_size
        self.max_packet_bytes = min(maximum_packet_size, self._largest_accepted)

    def shrink_or_drop(self, message: OutgoingMessage, size: int) -> bool:
        """Handle a message whose packet has `size` bytes, more than `max_packet_bytes`. Return whether it may be sent.

        A message that cannot be shrunk to `max_packet_bytes` may still be sent if the Maximum Packet Size allows it.
        """
        if self._shrink(message, self.max_packet_bytes) <= self._maximum_packet_size:
            return True
        self._outbox.drop(message, f"a message of {size:,} bytes is larger than the broker accepts")
        return False

    def window(self, most: int) -> int:
        """Return the number of messages that may be unacknowledged: `most`, or 1 during the search for the cause of early ends."""
        if self.is_searching and self._outbox.has_settled(self._search_end):
            self.is_searching = False
        return 1 if self.is_searching else most

    def record_end(self, seconds: float, reason: str, state_bytes: int = 0) -> bool:
        """Record the end of a connection, before its messages are put back. `seconds` is its duration.

        `state_bytes` is the size of the largest unacknowledged state. Returns whether one message is known to be the cause.
        """
        if state_bytes and seconds < MIN_LIFETIME:
            self._lost_state(state_bytes)
            return False
        self._early_ends = self._early_ends + 1 if seconds < MIN_LIFETIME else 1
        suspects = self._outbox.in_flight()
        if not suspects or seconds >= MIN_LIFETIME:
            return False
        if len(suspects) > 1:
            if self._early_ends > 1:
                self.is_searching, self._search_end = True, suspects[-1].number + 1
            return False
        message = suspects[0]
        message.losses += 1
        if message.losses >= MAX_LOSSES:
            self._outbox.drop(message, f"the broker closed the connection each time it was sent: {reason}")
        elif message.losses == _SUSPICIOUS_LOSSES and len(message.body) > _BIG:
            self._largest_accepted = min(self._largest_accepted, max(_BIG, _packet_bytes(message) // 2))
            self._shrink(message, 1)
        return message.losses >= _SUSPICIOUS_LOSSES

    def _lost_state(self, size: int) -> None:
        self.state_losses += 1
        if self.state_losses >= _SUSPICIOUS_LOSSES:  # the first end may be a restart of the broker
            self.max_state_bytes = max(_BIG_STATE, min(self.max_state_bytes, size // 2))
        if self.state_losses >= MAX_LOSSES:
            self._states.pause("the broker closed the connection each time it was sent", PAUSE)

    def _shrink(self, message: OutgoingMessage, most: float) -> int:
        """Remove optional parts of a message until its packet has at most `most` bytes. Return its size, which may be larger."""
        beside = _packet_bytes(message) - len(message.body)
        with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):  # the message is not one of a run
            payload = shrink(wire.loads(message.body), int(most) - beside)
            self._outbox.replace(message, wire.dumps(payload))
        return beside + len(message.body)


def _packet_bytes(message: OutgoingMessage) -> int:
    """Return the largest size of a packet with the message: with its topic and an alias."""
    properties = publish_properties(message.traceparent, message.tracestate, alias=1)
    return packet_bytes(message.topic, len(properties) + len(message.body))
