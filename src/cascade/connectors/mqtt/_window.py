"""What is on its way over one connection: a window of messages, neither one by one nor a crowd."""

from collections import deque

from paho.mqtt.client import MQTTMessageInfo
from paho.mqtt.reasoncodes import ReasonCode

from cascade.connectors.mqtt._link import FAILURE, Link
from cascade.connectors.mqtt._outbox import Letter, Outbox
from cascade.connectors.mqtt._packets import packet_bytes, publish_properties
from cascade.connectors.mqtt._suspects import Suspects
from cascade.telemetry.limits import MAX_MESSAGE_BYTES

WINDOW = 500
"""Messages out at once: 25,000 a second if the broker is 20 ms away. Beside it, 100 are as fast. So many at most are
sent twice when the connection breaks."""
BATCH = 128
"""Messages between two looks at what comes in."""


class Window:
    """Takes from the outbox what may be sent over a link, and settles it when the broker has it."""

    def __init__(self, link: Link, outbox: Outbox, suspects: Suspects) -> None:
        self._link = link
        self._outbox = outbox
        self._suspects = suspects
        self._unacknowledged: dict[int, Letter] = {}
        self._unwritten: deque[tuple[MQTTMessageInfo, Letter]] = deque()
        self._arrived: list[Letter] = []
        link.on_acknowledged = self._acknowledged
        self._has_news = False

    def can_send(self) -> bool:
        """Whether a letter waits that there is room for."""
        return (
            not self._link.client.want_write()
            and self._room() > 0
            and self._outbox.can_take(self._room_for_acknowledged())
        )

    def fill(self) -> None:
        """Hand paho what there is room for."""
        if self._link.client.want_write():  # the system takes no more for now
            return
        room = self._room()
        if room > 0:
            for letter in self._outbox.take(min(room, BATCH), self._room_for_acknowledged()):
                self._send(letter)

    def settle(self) -> bool:
        """Count what has arrived since the last time; whether anything has, or was refused."""
        if self._unwritten and not self._link.is_over:
            self._settle_written()
        if self._arrived:
            self._outbox.settle(self._arrived)
            self._arrived, self._has_news = [], True
        has_news, self._has_news = self._has_news, False
        return has_news

    def recall(self) -> None:
        """Give back what nobody will acknowledge over this link. Another session may have letters out by now."""
        self._outbox.recall([*self._unacknowledged.values(), *(letter for _, letter in self._unwritten)])

    def _settle_written(self) -> None:
        """Of QoS 0 a message has arrived, as far as anybody can tell, when the system has taken it."""
        if not self._link.client.want_write():
            self._arrived.extend(letter for _, letter in self._unwritten)
            self._unwritten.clear()
        while self._unwritten and self._unwritten[0][0].is_published():
            self._arrived.append(self._unwritten.popleft()[1])

    def _room(self) -> int:
        return self._suspects.window(WINDOW, self._outbox) - len(self._unacknowledged) - len(self._unwritten)

    def _room_for_acknowledged(self) -> int:
        return self._link.receive_maximum - len(self._unacknowledged) - self._link.own_publishes

    def _send(self, letter: Letter) -> None:
        size = packet_bytes(letter.topic, len(letter.body), letter.tracestate)
        most = self._link.maximum_packet_size or packet_bytes(letter.topic, MAX_MESSAGE_BYTES)
        if size > min(most, self._suspects.most) and not self._suspects.fit(letter, self._outbox, most):
            self._lose(letter, f"a message of {size:,} bytes is more than the broker takes")
            return
        properties = publish_properties(letter.traceparent, letter.tracestate)
        info = self._link.client.publish(letter.topic, letter.body, letter.qos, properties=properties)
        if letter.qos:
            self._unacknowledged[info.mid] = letter
        else:
            self._unwritten.append((info, letter))

    def _lose(self, letter: Letter, reason: str) -> None:
        self._outbox.lose(letter, reason)
        self._has_news = True

    def _acknowledged(self, mid: int, reason: ReasonCode) -> None:
        letter = self._unacknowledged.pop(mid, None)
        if letter is None:
            return
        if reason.value >= FAILURE:
            self._lose(letter, f"{reason}, on topic {letter.topic}")
        else:
            self._arrived.append(letter)
