"""The thread that keeps the connection: connect, serve, back off, and connect again."""

import contextlib
import socket
import threading
import time

from cascade.connectors.mqtt import _presence
from cascade.connectors.mqtt._client_id import ClientId
from cascade.connectors.mqtt._link import Link, reason_of
from cascade.connectors.mqtt._options import MqttOptions
from cascade.connectors.mqtt._peer import PATIENCE, Peer
from cascade.connectors.mqtt._service import Service, Surroundings
from cascade.connectors.mqtt._suspects import Suspects
from cascade.telemetry.topics import source, status_topic

LONGEST_NAP = 2.0
"""Seconds after which an idle connection is looked at; a quarter of the keepalive if that is less."""


class Session:
    """One thread, and one connection after another. The thread is a daemon: a name server that hangs holds nobody back."""

    def __init__(self, options: MqttOptions, owner: tuple[str, str], around: Surroundings) -> None:
        self.peer = Peer()
        self.is_closed = False
        self._options = options
        self._around = around
        self._client_id = ClientId(options.client_id)
        self._status_topic = status_topic(*owner, source())
        self._nap = min(LONGEST_NAP, options.keepalive / 4)
        self._suspects = Suspects()
        self._is_asleep = self._is_ending = self._is_hurried = False
        self._waits = True
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        threading.Thread(target=self._run, name="cascade-mqtt", daemon=True).start()

    def wake(self) -> None:
        """There is something to do; cheap while the thread is awake."""
        if self._is_asleep:
            self._is_asleep = False
            self._prod()

    def hurry(self) -> None:
        """Somebody waits: if there is no connection, try at once."""
        self._is_hurried = True
        self._prod()

    def end(self, *, waits: bool) -> None:
        """Say goodbye and end, soon: `is_closed` says when. It `waits` for answers if there is somebody to give them."""
        self._waits = waits
        self._is_ending = True
        self._prod()

    def is_alive(self) -> bool:
        """Whether there is a broker that takes what it is sent."""
        return self.peer.is_connected and not self._around.outbox.is_stuck(PATIENCE)

    def _prod(self) -> None:
        with contextlib.suppress(OSError):  # it is full of prods, or the session is over
            self._waker.send(b"x")

    def _run(self) -> None:
        try:
            while not self._is_ending:
                self._pause(self.peer.next_pause())
                if not self._is_ending:
                    self._live()
        finally:
            self.is_closed = True
            self._wake.close()
            self._waker.close()
            self._around.changes.tell()

    def _pause(self, seconds: float) -> None:
        """Wait, for as long as nobody is in a hurry."""
        deadline = time.monotonic() + seconds
        while not (self._is_ending or self._is_hurried) and (left := deadline - time.monotonic()) > 0:
            self._wake.settimeout(left)
            with contextlib.suppress(TimeoutError):
                self._wake.recv(4096)
        self._wake.setblocking(False)

    def _live(self) -> None:
        """A connection's life, or an attempt at one."""
        self._is_hurried = False
        link = Link(self._options, self._client_id.value, self._status_topic, self._wake)
        began = time.monotonic()
        try:
            link.open()
            while not (link.is_up or link.is_over or self._is_ending):
                self._turn(link)
            if link.is_up:
                self._serve(link)
        except Exception as error:  # noqa: BLE001 - paho may raise anything, and telemetry never breaks a run
            link.drop(reason_of(error))
        finally:
            link.close()
        self._learn_from(link, time.monotonic() - began)
        self._around.changes.tell()

    def _serve(self, link: Link) -> None:
        self.peer.connected()
        service = Service(link, self._around, self._suspects, self._client_id.value)
        _presence.greet(link, self._status_topic)
        while not link.is_over and not self._is_ending:
            self._turn(link, service)
            if service.is_proven:
                self.peer.proved_good()
        if link.is_up:
            _presence.say_goodbye(link, self._status_topic, waits=self._waits)

    def _turn(self, link: Link, service: Service | None = None) -> None:
        # Asleep first, then the look at what there is to do: who puts something in between wakes us.
        self._is_asleep = True
        has_work = self._is_ending or (service is not None and service.has_work())
        readable = link.wait(0.0 if has_work else self._nap)
        self._is_asleep = False
        if readable:
            link.read()
        if service is not None and not link.is_over:
            service.work()
        link.write()
        link.keep_alive()
        if service is not None:
            service.settle()

    def _learn_from(self, link: Link, lived: float) -> None:
        """Remember why a connection has ended, or has never begun; what it has not brought over waits for the next."""
        had_been_up = self.peer.is_connected
        if had_been_up:
            if not self._is_ending:
                self._suspects.lost(self._around.outbox, lived, link.reason)
            self._around.outbox.recall()
            self.peer.lost(link.reason)
        else:
            self.peer.failed(link.reason, is_refused=link.is_refused)
        if warning := self._client_id.learn(link, lived if had_been_up else None):
            self._around.warn(warning)
