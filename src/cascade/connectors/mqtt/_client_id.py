"""Under which id we connect, and what becomes of it when somebody else has the same."""

import secrets

from cascade.connectors.mqtt._link import Link
from cascade.connectors.mqtt._suspects import SOON
from cascade.telemetry.topics import source

MOST_LOSSES = 4
"""So many short connections in a row look like two clients that take each other's place."""


class ClientId:
    """The wanted id, or one that nobody else has.

    A broker ends the older of two connections with one id, and both would go on connecting for ever. MQTT 5 has a
    reason code for that. Some versions of Mosquitto do not send it; then the number of short connections is the sign.
    """

    def __init__(self, wanted: str | None) -> None:
        self._wanted = wanted
        self._short = 0
        self._may_change = True
        self.value = wanted or _unique(None)

    def learn(self, link: Link, lived: float | None) -> str:
        """A connection has ended that has lived for so many seconds, or was never there; what to warn of, if anything."""
        if lived is None:
            if link.is_refused and self._wanted not in {None, self.value}:
                # Some access lists know clients by their ids.
                self.value, self._may_change = self._wanted or self.value, False
            return ""
        self._short = self._short + 1 if lived < SOON else 1
        is_guessed = self._wanted is not None and self._short >= MOST_LOSSES
        if not (self._may_change and (link.is_taken_over or is_guessed)):
            return ""
        self._short = 0
        before, self.value = self.value, _unique(self._wanted)
        verb = "has" if link.is_taken_over else "seems to have"
        return f"another client {verb} the id {before!r}: going on as {self.value!r}"


def _unique(wanted: str | None) -> str:
    return f"{wanted or f'cascade-{source()}'}-{secrets.token_hex(4)}"
