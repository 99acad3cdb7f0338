"""The network thread of a connector: connect, serve, back off, and connect again."""

import asyncio
import contextlib
import secrets
import threading
import time

import aiomqtt

from cascade.connectors._health import ConnectionHealth
from cascade.connectors.mqtt.client import PERMANENT, TAKEN_OVER, BrokerLimits, Client, NetworkLoop, reason_of
from cascade.connectors.mqtt.connection import SOON, Connection, PoisonMessageFilter, Shared
from cascade.connectors.mqtt.options import MqttOptions
from cascade.connectors.mqtt.presence import Presence
from cascade.telemetry.topics import AWS_LIMITS, source, status_topic

LONGEST_WAIT = 2.0
"""Seconds after which an idle connection is checked; a quarter of the keepalive if that is less."""
ANSWER_WAIT = 0.1
"""Seconds after which a due answer counts as missing."""
_MOST_EARLY_ENDS = 4
"""Early ends in a row that indicate two clients with one id."""


class Session:
    """A thread with an event loop of its own, and one connection after another.

    The thread is a daemon, so that a name server that does not answer never delays the interpreter's exit.
    """

    def __init__(
        self, options: MqttOptions, owner: tuple[str, str], shared: Shared, previous: ConnectionHealth | None
    ) -> None:
        self.health = ConnectionHealth(previous)
        self.is_closed = False
        self._options = options
        self._shared = shared
        self._client_id = ClientId(options.client_id)
        self._presence = Presence(options, status_topic(*owner, source()))
        self._limits = BrokerLimits(shared.warn)
        self._poison = PoisonMessageFilter(shared.outbox)
        self._is_asleep = self._is_ending = self._is_hurried = False
        self._waits = True
        self._loop = NetworkLoop()
        self._wakeup = asyncio.Event()
        threading.Thread(target=self._run, name="cascade-mqtt", daemon=True).start()

    def wake(self) -> None:
        """Start to send what was put. Cheap while the thread is awake."""
        if self._is_asleep:
            self._is_asleep = False
            self._interrupt()

    def hurry(self) -> None:
        """End a pause between two attempts to connect, because a caller waits."""
        self._is_hurried = True
        self._interrupt()

    def end(self, *, waits: bool) -> None:
        """Publish the absence, disconnect and end soon; then `is_closed` is true. `waits` for acknowledgements."""
        self._waits = waits
        self._is_ending = True
        self._interrupt()

    def is_alive(self) -> bool:
        """Whether there is a broker that accepts messages."""
        return self.health.is_alive

    def _interrupt(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wakeup.set)

    def _run(self) -> None:
        try:
            with asyncio.Runner(debug=False, loop_factory=lambda: self._loop) as runner:
                runner.run(self._live())
        finally:
            self.is_closed = True
            self._shared.changes.notify()

    async def _live(self) -> None:
        while not self._is_ending:
            await self._back_off(self.health.next_pause())
            if not self._is_ending:
                await self._connect()
                self._shared.changes.notify()

    async def _back_off(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not (self._is_ending or self._is_hurried) and (left := deadline - time.monotonic()) > 0:
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        """Wait for an interruption or the broker, at most so many seconds."""
        timer = self._loop.call_later(seconds, self._wakeup.set)
        await self._wakeup.wait()
        self._wakeup.clear()
        timer.cancel()

    async def _connect(self) -> None:
        """Connect, and serve the connection until it ends."""
        self._is_hurried = False
        start = time.monotonic()
        reason, code = "", 0
        try:
            presence = self._presence
            client = Client(self._options, self._client_id.value, presence.topic, presence.session_id, self._limits)
            client.when_reached(self.health.reached)
            with contextlib.suppress(aiomqtt.MqttError):
                async with client:
                    await self._use(client)
            reason, code = client.reason, client.code
        except Exception as error:  # noqa: BLE001 - paho may raise anything, and telemetry never breaks a run
            reason, code = reason_of(error)
        finally:
            self._presence.leave()
        self._learn(reason, code, time.monotonic() - start)

    async def _use(self, client: Client) -> None:
        connection = Connection(client, self._shared, self._poison, self._wakeup, self._presence.topic)
        try:
            self.health.connected()
            self._client_id.used = client.identifier
            self._shared.changes.notify()
            self._presence.join(connection)
            await asyncio.sleep(0)  # the task queues `online` before any other message
            await self._serve(connection)
            if not client.is_over:
                await self._presence.part(connection, waits=self._waits)
        finally:
            connection.end(is_wanted=self._is_ending)

    async def _serve(self, connection: Connection) -> None:
        longest = min(LONGEST_WAIT, connection.client.keepalive / 4 or LONGEST_WAIT)
        while not (self._is_ending or connection.client.is_over):
            await self._listen(connection, longest)
            if not connection.client.is_over:
                connection.work()
            connection.settle()
            connection.client.keep_alive()
            if connection.is_proven:
                self.health.proved_good()

    async def _listen(self, connection: Connection, longest: float) -> None:
        """Run the event loop until there is work, at most `longest` seconds."""
        # First the flag and then the look at the work: `wake` interrupts if messages are put in between.
        self._is_asleep = True
        if self._is_ending or connection.has_work():
            self._is_asleep = False
            await asyncio.sleep(0)
            waited = 0.0
        else:
            timeout = min(longest, connection.delay(), ANSWER_WAIT if connection.is_answer_due else longest)
            start = time.monotonic()
            await self._sleep(timeout)
            self._is_asleep = False
            # The thread may get its turn much later. For that time the broker was not silent.
            waited = min(timeout, time.monotonic() - start)
        if connection.has_activity:
            connection.has_activity = False
            self.health.heard()
        elif connection.is_answer_due:
            self.health.kept_silent(waited)

    def _learn(self, reason: str, code: int, seconds: float) -> None:
        """Remember why a connection has ended, or was not made."""
        was_connected = self.health.is_connected
        can_succeed = self._limits.refuse(code)
        if was_connected:
            self.health.lost(reason)
        elif can_succeed:  # the next attempt follows at once: the broker is not dead
            return
        else:
            self.health.failed(reason, is_refused=code in PERMANENT)
        if warning := self._client_id.learn(code, seconds if was_connected else None):
            self._shared.warn(warning)


class ClientId:
    """The given client id, or a unique one.

    A broker ends the older of two connections with one id, and both clients would reconnect for ever. MQTT 5 has a reason
    code for it. Some versions of Mosquitto do not send it; there, the number of early ends is the sign.
    """

    def __init__(self, wanted: str | None) -> None:
        self._wanted = wanted
        self._early_ends = 0
        self._may_change = True
        self.value = self.used = wanted or _unique(None)
        """The id of the next connection, and the id that the broker has for the latest one."""

    def learn(self, code: int, seconds: float | None) -> str:
        """Record the end of a connection after so many seconds, or a failed attempt (None); return a warning or ""."""
        if seconds is None:
            if code in PERMANENT and self._wanted not in {None, self.value}:
                # Some access lists identify clients by their ids.
                self.value, self._may_change = self._wanted or self.value, False
            return ""
        self._early_ends = self._early_ends + 1 if seconds < SOON else 1
        is_guess = self._wanted is not None and self._early_ends >= _MOST_EARLY_ENDS
        if not (self._may_change and (code == TAKEN_OVER or is_guess)):
            return ""
        self._early_ends = 0
        before, self.value = self.used, _unique(self._wanted)
        verb = "has" if code == TAKEN_OVER else "seems to have"
        return f"another client {verb} the id {before!r}: going on as {self.value!r}"


def _unique(wanted: str | None) -> str:
    suffix = f"-{secrets.token_hex(4)}"
    begin = (wanted or f"cascade-{source()}").encode()[: AWS_LIMITS.max_client_id_bytes - len(suffix)]
    return begin.decode(errors="ignore") + suffix
