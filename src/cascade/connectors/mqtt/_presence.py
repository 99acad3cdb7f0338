"""Saying that this process is there, and that it is not any more."""

import os
import threading
import time
from collections import Counter

from cascade.connectors.mqtt._link import Link
from cascade.connectors.mqtt._options import MqttOptions

ONLINE, OFFLINE = b"online", b"offline"
GOODBYE = 0.5
"""Seconds for the broker to acknowledge the last words."""


class _Company:
    """How many connections there are that speak for this process, by broker and topic.

    The lock is held over the last words of the last one: who comes meanwhile must be heard after them.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A forked child has none of its parent's connections, and its lock may be held by a thread that is not there."""
        self.lock = threading.Lock()
        self.count = Counter[tuple[str, int, str]]()


_company = _Company()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_company.begin)


class Presence:
    """One connection's share in what is said of the process: the last one to end says goodbye for all."""

    def __init__(self, options: MqttOptions, topic: str) -> None:
        self.topic = topic
        self._key = (options.hostname, options.port, topic)
        self._is_counted = False

    def greet(self, link: Link) -> None:
        """Say so to those who look now and later. The Last Will takes it back."""
        with _company.lock:
            _company.count[self._key] += 1
            self._is_counted = True
        link.publish(self.topic, ONLINE, retain=True)

    def part(self, link: Link, *, waits: bool) -> None:
        """Disconnect, so that there is no Last Will; `waits` for the broker's answers if there is something to say."""
        with _company.lock:
            if self._leave():
                _say_goodbye(link, self.topic, waits=waits)
        link.client.disconnect()
        link.write()

    def vanish(self) -> None:
        """The connection is over, whether it has parted or not."""
        with _company.lock:
            self._leave()

    def _leave(self) -> bool:
        """Whether it was the last."""
        if not self._is_counted:
            return False
        self._is_counted = False
        _company.count[self._key] -= 1
        if _company.count[self._key]:
            return False
        del _company.count[self._key]
        return True


def _say_goodbye(link: Link, topic: str, *, waits: bool) -> None:
    """Say so to those who look now, and leave nothing for later.

    A broker reads this in order even if we do not wait for its answers; but what it answers to a closed connection
    can make the system throw away what it has not read yet.
    """
    link.publish(topic, OFFLINE)
    link.publish(topic, b"", retain=True)
    deadline = time.monotonic() + (GOODBYE if waits else 0.0)
    while not link.is_over:
        link.write()
        left = deadline - time.monotonic()
        if left <= 0 or not link.own_publishes:
            break
        if link.wait(left):
            link.read()
