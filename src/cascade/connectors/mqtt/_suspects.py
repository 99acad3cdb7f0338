"""Messages for which a broker cuts the connection: found, made smaller, and in the end given up."""

import math
import time

from cascade.connectors.mqtt._outbox import Letter, Outbox
from cascade.connectors.mqtt._packets import packet_bytes
from cascade.telemetry import wire
from cascade.telemetry.limits import shrink

SOON = 5.0
"""Seconds: a connection that lives longer was not cut for what was sent over it at first."""
ENOUGH_LOSSES, MOST_LOSSES = 2, 4
"""So often may the connection break soon with a message that alone is out, before it is made smaller, or given up."""
BIG = 4_096
"""Bytes: what is smaller was not refused for its size."""


class Suspects:
    """Remembers, from one connection to the next, what was out when they broke.

    Mosquitto closes the connection for some messages, such as those over its `message_size_limit`, and does not say so.
    To send all again would have it closed for ever. So after two such ends in a row, what was out goes one by one: then
    it is known which message it is.
    """

    def __init__(self) -> None:
        self.most: float = math.inf
        """Bytes of a packet that a broker is believed to take."""
        self._streak = 0
        self._careful_until = 0

    def window(self, usual: int, outbox: Outbox) -> int:
        """How many messages may be out at once."""
        if self._careful_until and outbox.has_settled(self._careful_until):
            self._careful_until = 0
        return 1 if self._careful_until else usual

    def lost(self, outbox: Outbox, lived: float, reason: str) -> None:
        """A connection broke that had lived for so many seconds."""
        self._streak = self._streak + 1 if lived < SOON else 1
        out = outbox.out()
        if not out or lived >= SOON or time.monotonic() - outbox.moved_at > SOON:
            return
        if len(out) > 1:
            if self._streak > 1:
                self._careful_until = out[-1].number + 1
            return
        letter = out[0]
        letter.losses += 1
        if letter.losses >= MOST_LOSSES:
            outbox.lose(letter, f"the connection broke whenever it was sent: {reason}")
        elif letter.losses == ENOUGH_LOSSES and len(letter.body) > BIG:
            self.most = min(self.most, max(BIG, packet_bytes(letter.topic, len(letter.body), letter.tracestate) // 2))
            self.fit(letter, outbox, 1)

    def fit(self, letter: Letter, outbox: Outbox, most: int) -> bool:
        """Take from a message what can be missed, until its packet is small enough; whether it is."""
        beside = packet_bytes(letter.topic, 0, letter.tracestate)
        try:
            payload = shrink(wire.loads(letter.body), int(min(most, self.most)) - beside)
            outbox.replace(letter, wire.dumps(payload))
        except (ValueError, KeyError, AttributeError, TypeError):  # it is no message of ours
            pass
        return beside + len(letter.body) <= most
