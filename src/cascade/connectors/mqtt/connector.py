"""`MqttConnector` publishes the messages of runs over MQTT 5 and receives control messages."""

import asyncio
import os
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from cascade._loggers import LimitedWarnings, get_logger
from cascade.connectors import _lifetime
from cascade.connectors._options import captures, one_of, positive, seconds, whole
from cascade.connectors.mqtt.backpressure import Backpressure, LoopNotifier
from cascade.connectors.mqtt.connection import SessionState
from cascade.connectors.mqtt.health import ConnectionHealth
from cascade.connectors.mqtt.options import DEFAULT_URL, KEEPALIVE, VARIABLE, MqttOptions, arguments_of
from cascade.connectors.mqtt.outbox import CAPACITY, Outbox, OutgoingMessage
from cascade.connectors.mqtt.packets import traceparent, tracestate
from cascade.connectors.mqtt.session import Flush, Session, until_closed
from cascade.connectors.mqtt.subscriber import wait_for_retained
from cascade.connectors.mqtt.subscriptions import Inbox, Subscriptions
from cascade.connectors.report import ConnectorReport
from cascade.runtime.exceptions import TelemetryLostError
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.state_schedule import RunStates
from cascade.telemetry.topics import check_topic_limits, checked_filter, checked_topic, identity_from_environment
from cascade.telemetry.wire import dumps

logger = get_logger("cascade.connectors.mqtt")

FLUSH_TIMEOUT = 5.0
"""Seconds that the end of a run waits for the last acknowledgement. The wait for an unreachable broker is shorter."""
RESEND_WINDOW = 10.0
"""Seconds after which a broker has stored its messages, or sent them to subscribers."""

_MAX_KNOWN_TOPICS = 10_000


class MqttConnector:
    """Publishes the messages of runs to an MQTT 5 broker, and receives control messages from it.

    It has its own network thread, so that a task that blocks the event loop does not end the connection. Messages with QoS 1
    are kept until the broker acknowledges them. After a reconnection they are sent again, in order. MQTT has no
    acknowledgement for QoS 0: a message that the broker refuses, by its access list or limits, counts as sent.

    Args:
        hostname: Host name or address of the broker.
        port: 1883 by default, or 8883 with TLS.
        username: User name for the broker.
        password: Password of `username`. Without TLS it is sent unencrypted.
        tls: True for TLS with the system's certificate authorities, or an SSLContext.
        ca_certificate: PEM file of the certificate authority of the broker; enables TLS.
        client_certificate: PEM file of the client certificate; enables TLS.
        client_key: PEM file of its key, if it is not in the same file.
        client_id: Client id, which no other process may use. Unique by default.
        keepalive: Approximate seconds after which broker and client detect an interrupted connection; 0 disables it.
        capture: Values to publish: any of "params", "arguments" and "results". Secrets in them are masked.
        strict: Raise `TelemetryLostError` at the end of a run when messages were lost, instead of one warning.
        flush_timeout: Seconds that the end of a run waits for the broker, at most.
        on_full: "wait" delays new tasks while the broker answers and too many messages are queued for `max_buffer_bytes` or
            for the flush. "drop" drops messages instead. With an unreachable broker, messages are dropped in both cases.
        max_buffer_bytes: Memory for queued messages. The default of 64 MiB is enough for about 70,000. A full buffer drops
            messages of QoS 0 first.
        resend_window: Seconds. After a lost connection, messages with QoS 1 that were acknowledged within this time before its
            end are sent again, because the broker may have lost them; 0 disables it. They use up to a quarter of
            `max_buffer_bytes` in addition.

    Raises:
        ValueError: An argument is invalid. Or CASCADE_ORG_ID or CASCADE_PROJECT_ID cannot be part of a topic, or makes a
            topic longer than AWS IoT Core accepts, if the host name is one of AWS IoT Core.
    """

    _session: Session | None
    _health: ConnectionHealth | None
    _connections: int

    def __init__(
        self,
        hostname: str = "localhost",
        port: int | None = None,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: Literal[True] | ssl.SSLContext | None = None,
        ca_certificate: str | Path | None = None,
        client_certificate: str | Path | None = None,
        client_key: str | Path | None = None,
        client_id: str | None = None,
        keepalive: int = KEEPALIVE,
        capture: Iterable[str] = (),
        strict: bool = False,
        flush_timeout: float = FLUSH_TIMEOUT,
        on_full: Literal["wait", "drop"] = "wait",
        max_buffer_bytes: int = CAPACITY,
        resend_window: float = RESEND_WINDOW,
    ) -> None:
        self._options = MqttOptions(
            hostname,
            port,
            username=username,
            password=password,
            tls=tls,
            ca_certificate=ca_certificate,
            client_certificate=client_certificate,
            client_key=client_key,
            client_id=client_id,
            keepalive=keepalive,
        )
        self.capture = captures(capture)
        self._strict = strict
        self.flush_timeout = positive("flush_timeout", flush_timeout)
        self._waits = one_of("on_full", on_full, ("wait", "drop")) == "wait"
        self._capacity = whole("max_buffer_bytes", max_buffer_bytes)
        self._resend_window = seconds("resend_window", resend_window)
        self._owner = identity_from_environment()
        check_topic_limits(*self._owner, self._options.limits)
        self._warn = LimitedWarnings(logger, "MqttConnector: ")
        self._topics: set[str] = set()
        self._reset()
        _lifetime.watch(self)

    @classmethod
    def from_url(cls, url: str, **arguments: Any) -> Self:
        """Return a connector for `mqtt://` or `mqtts://user:password@host:port?ca_certificate=/ca.pem`.

        Arguments take precedence over the URL. The query may have `ca_certificate`, `client_certificate`, `client_key`,
        `client_id` and `keepalive`. User and password are percent-encoded.

        Raises:
            ValueError: The URL is invalid. The message contains no part of the URL that may be a password.
        """
        return cls(**{**arguments_of(url), **arguments})

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Return a connector for CASCADE_MQTT_URL, or for `mqtt://localhost:1883`.

        Raises:
            ValueError: The value of the variable is not a valid URL.
        """
        try:
            arguments = arguments_of(environ.get(VARIABLE, "").strip() or DEFAULT_URL)
            MqttOptions(**arguments)
        except ValueError as error:
            raise ValueError(f"{VARIABLE}: {error}") from None
        return cls(**arguments)

    def __repr__(self) -> str:
        return f"MqttConnector({self._options.hostname!r}, {self._options.port})"

    async def connect(self) -> None:
        """Begin a run: connect in the background, unless a connection exists."""
        with self._lock:
            self._connections += 1
            if self._session is None or self._session.is_closed:
                self._session = Session(self._options, self._owner, self._shared, self._health)
                self._health = self._session.health

    async def disconnect(self) -> None:
        """End a run: flush for at most `flush_timeout` seconds. The last run disconnects and ends all subscriptions.

        Raises:
            TelemetryLostError: Messages were lost, and the connector is strict.
        """
        session = self._session
        if session is not None:
            await self._end_run(Flush(session, self._shared, self.flush_timeout))
        self._report()

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        """Queue a message. It waits for room only if many messages are queued and the broker answers.

        Raises:
            ValueError: The topic is not valid, or the payload cannot be encoded as JSON.
        """
        self._queue(topic, payload, qos)
        if self.is_full():
            await self.room()

    def put(self, topic: str, payload: dict[str, Any], qos: int = 0) -> bool:
        """Queue a message and return True, or return False if `is_full`. Raises the errors of `publish`."""
        if self.is_full():
            return False
        self._queue(topic, payload, qos)
        return True

    def _queue(self, topic: str, payload: dict[str, Any], qos: int) -> None:
        if topic not in self._topics:
            if len(self._topics) >= _MAX_KNOWN_TOPICS:
                self._topics.clear()
            self._topics.add(checked_topic(topic, self._options.limits))
        state = tracestate(payload) if "tracestate" in payload else ""
        self._outbox.put(OutgoingMessage(topic, dumps(payload), 1 if qos else 0, traceparent(payload), state))
        self._states.add(topic, payload)
        session = self._session
        if session is not None:
            session.wake()

    async def subscribe(self, topic: str, callback: MessageCallback) -> None:
        """Call `callback`, in the running event loop, for each message on a topic filter, one at a time.

        If messages on a topic arrive faster than the callback returns, it receives only the latest one. After a reconnection
        it receives an empty message for each retained message that was removed meanwhile.

        Raises:
            ValueError: The topic filter is not valid.
        """
        subscription, inbox = self._subscriptions.add(checked_filter(topic, self._options.limits), callback)
        session = self._session
        if session is None:
            return
        session.wake()
        await wait_for_retained(self._subscriptions, self._shared.changes, session.health, subscription, inbox)

    async def unsubscribe(self, topic: str, callback: MessageCallback) -> None:
        inbox = self._subscriptions.remove(topic, callback)
        if self._session is not None:
            self._session.wake()
        if inbox is not None:
            await inbox.close()

    def report(self) -> ConnectorReport:
        """Return the counts of messages and the state of the connection. Any thread may call it.

        `sent` counts the messages that the broker has acknowledged, and those of QoS 0 that the system has accepted. `retried`
        counts the transient refusals, and the acknowledged repetitions of `resend_window`.
        """
        session, health = self._session, self._health
        return self._outbox.report(
            connected=session is not None and session.health.is_connected,
            connection_error="" if health is None else health.reason,
        )

    def is_full(self) -> bool:
        """Return whether new tasks must wait: the broker answers, and too many messages are queued."""
        session = self._session
        return self._waits and self._shared.backpressure.is_full and session is not None and session.is_alive()

    async def room(self) -> None:
        await self._shared.backpressure.room()

    def reset_after_fork(self) -> None:
        """Discard messages, connection and thread in a forked child: they belong to the parent."""
        if self._session is not None:
            self._session.close_in_child()
        self._reset()

    def start_exit(self) -> Callable[[], None]:
        """Begin the last flush of a connector at the exit of the process."""
        session = self._session
        if session is None:
            return lambda: None
        flush = Flush(session, self._shared, self.flush_timeout)
        self._connections, self._strict = 1, False

        async def finish() -> None:
            await self._end_run(flush)
            self._report()

        return lambda: asyncio.run(finish())

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._outbox, self._states = Outbox(self._capacity, self._resend_window), RunStates()
        changes = LoopNotifier()
        self._subscriptions = Subscriptions(changes.notify, self._warn)
        backpressure = Backpressure(self._outbox, self.flush_timeout)
        self._shared = SessionState(self._outbox, self._states, backpressure, self._subscriptions, changes, self._warn)
        self._session = None
        self._health = None
        self._connections = 0
        self._flushed = 0
        self._reported = (0, 0)

    async def _end_run(self, flush: Flush) -> None:
        """End a run: flush its messages. The last run ends the session."""
        session = flush.session
        try:
            await flush.wait()
        finally:
            # Counted after the flush: another run that ends meanwhile must not end the session.
            with self._lock:
                self._connections = max(0, self._connections - 1)
                self._flushed = max(self._flushed, flush.before)
                is_last = not self._connections and self._session is session
                inboxes = self._end_session(session, flush.reason) if is_last else []
            for inbox in inboxes:
                await inbox.close()
            if is_last:
                await until_closed(session, self._shared)

    def _end_session(self, session: Session, reason: str) -> list[Inbox]:
        """End the session. The caller holds the lock, because later messages and subscriptions belong to another run."""
        self._session = None
        session.end(waits=session.is_alive())
        self._outbox.abandon(self._flushed, reason)
        self._states.clear()
        return self._subscriptions.clear()

    def _report(self) -> None:
        """Log a warning about messages that were lost since the last report, or raise an error if the connector is strict."""
        with self._lock:
            sent, lost = self._outbox.sent, self._outbox.lost
            new_sent, new_lost = sent - self._reported[0], lost - self._reported[1]
            self._reported = (sent, lost)
            refusal, self._states.refusal = self._states.refusal, ""
        if not new_lost:
            if refusal:
                self._warn(f"the state of a run is not published at {self._options.address}: {refusal}")
            return
        what = f"{new_lost} of {new_sent + new_lost} messages were lost"
        message = f"MqttConnector: {what} at {self._options.address}: {self._outbox.reason}"
        if self._strict:
            raise TelemetryLostError(message, lost=new_lost)
        logger.warning("%s", message)
