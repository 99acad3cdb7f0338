"""The network thread of a connector: connect, serve, back off, and connect again; and the flush of a run."""

import asyncio
import contextlib
import threading
import time

import aiomqtt

from cascade.connectors._health import ConnectionHealth
from cascade.connectors.mqtt.client import Client
from cascade.connectors.mqtt.connection import Connection, SessionState
from cascade.connectors.mqtt.options import ClientId, MqttOptions
from cascade.connectors.mqtt.outbox import PoisonMessageFilter
from cascade.connectors.mqtt.packets import OTHER_SERVER, PERMANENT, TAKEN_OVER, TRANSIENT, BrokerLimits
from cascade.connectors.mqtt.presence import OFFLINE_TIMEOUT, Presence
from cascade.connectors.mqtt.subscriber import CHECK
from cascade.connectors.mqtt.transport import CLOSE_TIMEOUT, NetworkLoop, fault, reason_of
from cascade.telemetry.topics import source, status_topic

LONGEST_WAIT = 2.0
"""Seconds after which an idle connection is checked; a quarter of the keepalive if that is less."""
ANSWER_WAIT = 0.1
"""Seconds after which a due answer counts as missing."""
LONGEST_TURN = 0.005
"""Seconds. A turn that takes longer waits for the interpreter's lock (GIL).

An event loop releases the lock for about a microsecond in each of its turns. That is too short for a thread that waits, but
starts the wait of 5 ms again after which the interpreter forces a switch. Beside a busy loop with short turns, each system
call of the thread could so take seconds."""
LOCK_RELEASE = 1e-4
"""Seconds for which a publishing thread then releases the lock: long enough for another thread to take it."""


_GRACE = 0.5
"""Seconds that a session may take to end beside its last messages."""


class Session:
    """A thread with an event loop of its own, and one connection after another.

    The thread is a daemon, so that a name server that does not answer never delays the interpreter's exit.
    """

    def __init__(
        self, options: MqttOptions, owner: tuple[str, str], shared: SessionState, previous: ConnectionHealth | None
    ) -> None:
        self.health = ConnectionHealth(previous)
        self.is_closed = False
        self._options = options
        self._shared = shared
        self._client_id = ClientId(options.client_id, options.username)
        self._presence = Presence(options, status_topic(*owner, source()))
        self._limits = BrokerLimits(shared.warn)
        self._poison = PoisonMessageFilter(shared.outbox, shared.states)
        self._is_asleep = self._is_ending = self._is_hurried = False
        self._is_serving, self._turn_at = False, 0.0  # begin of the turn, while a connection is served
        self._waits, self._is_caused = True, False
        self._client: Client | None = None
        self._loop = NetworkLoop()
        self._wakeup = asyncio.Event()
        threading.Thread(target=self._run, name="cascade-mqtt", daemon=True).start()

    def wake(self) -> None:
        """Start to send what was put. Cheap while the thread is awake, unless it waits for the interpreter's lock."""
        if self._is_asleep:
            self._is_asleep, self._turn_at = False, time.monotonic()
            self._interrupt()
        elif self._is_serving and time.monotonic() - self._turn_at > LONGEST_TURN:
            time.sleep(LOCK_RELEASE)

    def end_pause(self) -> None:
        """End a pause between two attempts to connect, because a caller waits."""
        self._is_hurried = True
        self._interrupt()

    def end(self, *, waits: bool) -> None:
        """Publish the absence, disconnect and end soon; then `is_closed` is true. `waits` for acknowledgements."""
        self._waits = waits
        self._is_ending = True
        self._interrupt()

    def close_in_child(self) -> None:
        """Close the socket in a forked child, which has none of the threads."""
        if self._client is not None:
            self._client.close_in_child()

    def is_alive(self) -> bool:
        """Whether there is a broker that accepts messages, now or soon."""
        return self.health.is_alive or self.health.is_busy

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
            throttle = self._shared.backpressure.throttle
            await self._back_off(max(self.health.next_pause(), throttle.pause, self._client_id.pause))
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
            presence = self._presence.topic, self._presence.session_id
            client = Client(self._options, self._client_id.value, *presence, self._limits, self.health.tcp_connected)
            self._client = client
            with contextlib.suppress(aiomqtt.MqttError):
                async with client:
                    await self._use(client)
            reason, code = client.reason, client.code
            if code in OTHER_SERVER:
                other = f" ({client.other_server})" if client.other_server else ""
                self._shared.warn(f"{reason}{other}: the connector does not follow; give the address of that broker")
        except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
            reason, code = reason_of(error)
            if not isinstance(error, OSError | ValueError):
                self._shared.warn(fault(error))
        finally:
            self._client = None
            self._presence.leave()
        self._learn(reason, code, time.monotonic() - start)

    async def _use(self, client: Client) -> None:
        connection = Connection(client, self._shared, self._poison, self._wakeup, self._presence.topic)
        try:
            self.health.connected()
            self._client_id.used = client.identifier
            self._shared.changes.notify()
            self._presence.join(connection)
            await self._serve(connection)
            if not client.is_over:
                await self._presence.part(connection, waits=self._waits)
        finally:
            is_contested = self._client_id.is_contested
            self._is_caused = connection.end(is_wanted=self._is_ending, is_contested=is_contested)

    async def _serve(self, connection: Connection) -> None:
        longest = min(LONGEST_WAIT, connection.client.keepalive / 4 or LONGEST_WAIT)
        self._turn_at = time.monotonic()
        self._is_serving = True
        try:
            while not (self._is_ending or connection.client.is_over):
                await self._listen(connection, longest)
                connection.client.keep_alive()
                if not connection.client.is_over:
                    connection.work()
                connection.settle()
                if connection.is_proven:
                    self.health.reset_backoff()
        finally:
            self._is_serving = False

    async def _listen(self, connection: Connection, longest: float) -> None:
        """Run the event loop until there is work, at most `longest` seconds."""
        # First the flag and then the look at the work: `wake` interrupts if messages are put in between.
        self._is_asleep = True
        if self._is_ending or connection.has_work():
            self._is_asleep = False
            self._turn_at = time.monotonic()
            await asyncio.sleep(0)
            waited = 0.0
        else:
            timeout = min(ANSWER_WAIT if connection.is_answer_due else longest, connection.delay())
            start = time.monotonic()
            await self._sleep(timeout)
            self._is_asleep = False
            self._turn_at = time.monotonic()
            # The thread may get its turn much later. For that time the broker was not silent.
            waited = min(timeout, time.monotonic() - start)
        if connection.has_activity:
            connection.has_activity = False
            self.health.record_activity()
        elif connection.is_answer_due:
            self.health.record_silence(waited)

    def _learn(self, reason: str, code: int, seconds: float) -> None:
        """Remember why a connection has ended, or was not made."""
        was_connected, is_busy = self.health.is_connected, code in TRANSIENT
        can_succeed = self._limits.refuse(code)
        if was_connected:
            self.health.lost(reason, is_busy=is_busy)
        elif can_succeed:  # the next attempt follows at once: the broker is not dead
            return
        else:
            self.health.failed(reason, is_refused=code in PERMANENT, is_busy=is_busy)
            if is_busy:
                self._shared.backpressure.refused()
        # "Session taken over" may come right after CONNACK, before the client reports the connection.
        was_connected |= code == TAKEN_OVER
        warning = self._client_id.learn(code, seconds if was_connected else None, is_explained=self._is_caused)
        if warning:
            self._shared.warn(warning)


class Flush:
    """Waits until all messages, and the final states of runs, from before now have arrived or are lost."""

    def __init__(self, session: Session, shared: SessionState, timeout: float) -> None:
        self.session = session
        self._shared = shared
        self._start = time.monotonic()
        self._deadline = self._start + timeout
        self.before = shared.outbox.put_count
        self._ended = shared.states.ended

    async def wait(self) -> None:
        """Return after `timeout` seconds, and earlier if the broker is dead."""
        health = self.session.health
        while not self._is_over():
            if not (health.is_connected or health.is_busy):
                self.session.end_pause()
            await self._shared.changes.until(self._is_over, min(CHECK, self._deadline - time.monotonic()))
        if not self._has_settled():
            health.record_failed_wait()

    @property
    def reason(self) -> str:
        """Why messages have not arrived."""
        if self.session.health.is_connected or not self.session.health.reason:
            return f"not acknowledged within {time.monotonic() - self._start:.2g} s"
        return self.session.health.reason

    def _has_settled(self) -> bool:
        return self._shared.outbox.has_settled(self.before) and self._shared.states.has_settled(self._ended)

    def _is_over(self) -> bool:
        is_hopeless = self.session.health.is_hopeless(self._start) or time.monotonic() >= self._deadline
        return is_hopeless or self._has_settled()


async def until_closed(session: Session, shared: SessionState) -> None:
    """Wait for the end of a session, as long as a clean end takes. A session that hangs ends by itself later."""
    # Without a connection the thread may be in a system call that takes seconds.
    await shared.changes.until(
        lambda: session.is_closed, OFFLINE_TIMEOUT + CLOSE_TIMEOUT + _GRACE if session.health.is_connected else CHECK
    )
