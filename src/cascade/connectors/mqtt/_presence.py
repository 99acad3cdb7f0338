"""Saying that this process is there, and that it is not any more."""

import time

from cascade.connectors.mqtt._link import Link

ONLINE, OFFLINE = b"online", b"offline"
GOODBYE = 0.5
"""Seconds for the broker to acknowledge the last words."""


def greet(link: Link, topic: str) -> None:
    """Say so to those who look now and later. The Last Will takes it back."""
    link.publish(topic, ONLINE, retain=True)


def say_goodbye(link: Link, topic: str, *, waits: bool) -> None:
    """Say so to those who look now, leave nothing for later, and disconnect so that there is no Last Will.

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
    link.client.disconnect()
    link.write()
