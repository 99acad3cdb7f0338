"""The network thread of a connector, which connects and reconnects, and the flush at the end of a run."""

import asyncio
import contextlib
import threading
import time

import aiomqtt

from cascade._internal_errors import raise_in_tests
from cascade.connectors.mqtt.client import Client
from cascade.connectors.mqtt.connection import BATCH, Connection, SessionState
from cascade.connectors.mqtt.health import ConnectionHealth
from cascade.connectors.mqtt.options import ClientId, MqttOptions
from cascade.connectors.mqtt.oversize_messages import PoisonMessageFilter
from cascade.connectors.mqtt.packets import OTHER_SERVER, PERMANENT, TAKEN_OVER, TRANSIENT, BrokerLimits
from cascade.connectors.mqtt.presence import OFFLINE_TIMEOUT, Presence
from cascade.connectors.mqtt.subscriber import CHECK_INTERVAL
from cascade.connectors.mqtt.transport import CLOSE_TIMEOUT, NetworkLoop, reason_of, unexpected_error_text
from cascade.telemetry.topics import source, status_topic

MAX_IDLE = 2.0
"""Seconds between two checks of an idle connection; a quarter of the keepalive if that is less."""
ANSWER_CHECK_INTERVAL = 0.1
"""Seconds between two checks while an answer is due."""
BATCH_DELAY = 0.002
"""Seconds after a batch that is not full. Messages and acknowledgements of this time are handled in one iteration, because an
iteration costs as much as ten messages."""
MAX_ITERATION = 0.005
"""Seconds. If one iteration of the network loop takes longer, the thread waits for the interpreter's lock (GIL).

A busy event loop releases the lock for about a microsecond in each iteration. That is too short for another thread to
acquire it, but it restarts the interval of 5 ms after which the interpreter forces a switch. Each system call of the network
thread can then take seconds."""
LOCK_RELEASE = 1e-4
"""Seconds for which a publishing thread then sleeps, which is long enough for the network thread to acquire the lock."""


_CLOSE_MARGIN = 0.5
"""Seconds to close a session, in addition to the time for its last messages."""


class Session:
    """A network thread with its own event loop, which reconnects until the session ends.

    The thread is a daemon: an unresponsive name server does not delay the exit of the interpreter.
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
        self._is_waiting = self._is_ending = self._skips_delay = False
        self._is_serving, self._iteration_start = False, 0.0  # of the network loop, while a connection is served
        self._waits, self._is_explained = True, False
        self._client: Client | None = None
        self._loop = NetworkLoop()
        self._wakeup = asyncio.Event()
        threading.Thread(target=self._run, name="cascade-mqtt", daemon=True).start()

    def wake(self) -> None:
        """Wake the network thread to send the queued messages. It costs little while the thread is awake and has the GIL."""
        if self._is_waiting:
            self._is_waiting, self._iteration_start = False, time.monotonic()
            self._interrupt()
        elif self._is_serving and time.monotonic() - self._iteration_start > MAX_ITERATION:
            time.sleep(LOCK_RELEASE)

    def skip_delay(self) -> None:
        """Make the next attempt to connect at once, because a caller waits."""
        self._skips_delay = True
        self._interrupt()

    def end(self, *, waits: bool) -> None:
        """Publish `offline`, disconnect, and set `is_closed`. `waits` selects whether to wait for the acknowledgements."""
        self._waits = waits
        self._is_ending = True
        self._interrupt()

    def close_in_child(self) -> None:
        """Close the copy of the socket in a forked child, where the network thread does not run."""
        if self._client is not None:
            self._client.close_in_child()

    def is_alive(self) -> bool:
        """Return whether the broker answers, or has refused the connection with a transient reason code."""
        return self.health.is_alive or self.health.is_busy

    def _interrupt(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wakeup.set)

    def _run(self) -> None:
        try:
            with asyncio.Runner(debug=False, loop_factory=lambda: self._loop) as runner:
                runner.run(self._run_connections())
        finally:
            self.is_closed = True
            self._shared.changes.notify()

    async def _run_connections(self) -> None:
        while not self._is_ending:
            throttle = self._shared.backpressure.throttle
            await self._back_off(max(self.health.next_delay(), throttle.pause, self._client_id.pause))
            if not self._is_ending:
                await self._connect()
                self._shared.changes.notify()

    async def _back_off(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not (self._is_ending or self._skips_delay) and (left := deadline - time.monotonic()) > 0:
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        """Wait for `_wakeup`, at most `seconds`."""
        timer = self._loop.call_later(seconds, self._wakeup.set)
        await self._wakeup.wait()
        self._wakeup.clear()
        timer.cancel()

    async def _connect(self) -> None:
        """Connect, and run the connection until it ends."""
        self._skips_delay = False
        start = time.monotonic()
        reason, code = "", 0
        try:
            presence = self._presence.topic, self._presence.session_id
            client = Client(
                self._options, self._client_id.value, *presence, self._limits, self.health.record_tcp_connected
            )
            self._client = client
            with contextlib.suppress(aiomqtt.MqttError):
                async with client:
                    await self._use_connection(client)
            reason, code = client.reason, client.code
            if code in OTHER_SERVER:
                other = f" ({client.other_server})" if client.other_server else ""
                self._shared.warn(
                    f"{reason}{other}: the connector does not follow redirections; set its address to that broker"
                )
        except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
            raise_in_tests(error)
            reason, code = reason_of(error)
            if not isinstance(error, OSError | ValueError):
                self._shared.warn(unexpected_error_text(error))
        finally:
            self._client = None
            self._presence.release()
        self._record_end(reason, code, time.monotonic() - start)

    async def _use_connection(self, client: Client) -> None:
        connection = Connection(client, self._shared, self._poison, self._wakeup, self._presence.topic)
        try:
            self.health.record_connected()
            self._client_id.used = client.identifier
            self._shared.changes.notify()
            self._presence.publish_online(connection)
            await self._serve(connection)
            if not client.is_over:
                await self._presence.publish_offline(connection, waits=self._waits)
        finally:
            is_duplicate = self._client_id.is_duplicate
            self._is_explained = connection.end(is_ending=self._is_ending, is_duplicate=is_duplicate)

    async def _serve(self, connection: Connection) -> None:
        longest = min(MAX_IDLE, connection.client.keepalive / 4 or MAX_IDLE)
        self._iteration_start = time.monotonic()
        self._is_serving = True
        try:
            while not (self._is_ending or connection.client.is_over):
                await self._wait_for_work(connection, longest)
                connection.client.keep_alive()
                if not connection.client.is_over and 0 < connection.work() < BATCH:
                    await asyncio.sleep(BATCH_DELAY)
                connection.settle()
                if connection.is_useful:
                    self.health.reset_backoff()
        finally:
            self._is_serving = False

    async def _wait_for_work(self, connection: Connection, longest: float) -> None:
        """Run the event loop until there is work, at most `longest` seconds, and record the activity of the broker."""
        # The flag is set before `has_work` is called, so that `wake` interrupts if a message is put in between.
        self._is_waiting = True
        if self._is_ending or connection.has_work():
            self._is_waiting = False
            self._iteration_start = time.monotonic()
            await asyncio.sleep(0)
            waited = 0.0
        else:
            timeout = min(ANSWER_CHECK_INTERVAL if connection.is_answer_due else longest, connection.delay())
            start = time.monotonic()
            await self._sleep(timeout)
            self._is_waiting = False
            self._iteration_start = time.monotonic()
            # The system may run the thread much later. That time does not count as silence of the broker.
            waited = min(timeout, time.monotonic() - start)
        if connection.has_activity:
            connection.has_activity = False
            self.health.record_activity()
        elif connection.is_answer_due:
            self.health.record_silence(waited)

    def _record_end(self, reason: str, code: int, seconds: float) -> None:
        """Record the reason for the end of a connection, or for a failed attempt."""
        was_connected, is_busy = self.health.is_connected, code in TRANSIENT
        can_succeed = self._limits.refuse(code)
        if was_connected:
            self.health.record_loss(reason, is_busy=is_busy)
        elif can_succeed:  # the next attempt has no delay
            return
        else:
            self.health.record_failure(reason, is_refused=code in PERMANENT, is_busy=is_busy)
            if is_busy:
                self._shared.backpressure.record_refusal()
        # "Session taken over" may come right after CONNACK, before the client reports the connection.
        was_connected |= code == TAKEN_OVER
        warning = self._client_id.record_end(code, seconds if was_connected else None, is_explained=self._is_explained)
        if warning:
            self._shared.warn(warning)


class Flush:
    """Waits until all messages and final states of runs, put before its creation, are acknowledged or lost."""

    def __init__(self, session: Session, shared: SessionState, timeout: float) -> None:
        self.session = session
        self._shared = shared
        self._start = time.monotonic()
        self._deadline = self._start + timeout
        self.before = shared.outbox.put_count
        self._ended = shared.states.ended

    async def wait(self) -> None:
        """Wait at most `timeout` seconds, and less if the broker does not answer."""
        health = self.session.health
        while not self._is_over():
            if not (health.is_connected or health.is_busy):
                self.session.skip_delay()
            await self._shared.changes.until(self._is_over, min(CHECK_INTERVAL, self._deadline - time.monotonic()))
        if not self._has_settled():
            health.record_failed_wait()

    @property
    def reason(self) -> str:
        """The reason why messages are not acknowledged."""
        if self.session.health.is_connected or not self.session.health.reason:
            return f"not acknowledged within {time.monotonic() - self._start:.2g} s"
        return self.session.health.reason

    def _has_settled(self) -> bool:
        return self._shared.outbox.has_settled(self.before) and self._shared.states.has_settled(self._ended)

    def _is_over(self) -> bool:
        should_stop_waiting = self.session.health.should_stop_waiting(self._start) or time.monotonic() >= self._deadline
        return should_stop_waiting or self._has_settled()


async def until_closed(session: Session, shared: SessionState) -> None:
    """Wait until a session is closed, at most for the time that a clean end takes."""
    # Without a connection the thread can be in a system call that takes seconds. It ends the session by itself later.
    await shared.changes.until(
        lambda: session.is_closed,
        OFFLINE_TIMEOUT + CLOSE_TIMEOUT + _CLOSE_MARGIN if session.health.is_connected else CHECK_INTERVAL,
    )
