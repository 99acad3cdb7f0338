"""The wait at a run's end, for the broker to have all: bounded, and short for one that is dead."""

import asyncio
import time

from cascade.connectors.mqtt._peer import PATIENCE
from cascade.connectors.mqtt._presence import GOODBYE
from cascade.connectors.mqtt._service import Surroundings
from cascade.connectors.mqtt._session import Session

LOOK = 0.1
"""Seconds between two looks at whether a broker that says nothing is dead."""
ROOM_LOOK = 0.5
"""Seconds after which tasks that wait for room look again by themselves."""
_GRACE = 0.5
"""Seconds for a session to end beside its last words."""


class Flush:
    """Waits for what was put until now."""

    def __init__(self, session: Session, around: Surroundings, timeout: float) -> None:
        self._session = session
        self._around = around
        self._start = time.monotonic()
        self._deadline = self._start + timeout
        self.before = around.outbox.put_count

    async def wait(self) -> bool:
        """Whether all of it has arrived, or was lost, in time."""
        if self._has_settled():
            return True
        self._begin()
        while not self._is_vain():
            left = self._deadline - time.monotonic()
            await self._around.changes.until(lambda: self._has_settled() or self._is_vain(), min(LOOK, left))
            if self._has_settled():
                return True
        return self._has_settled()

    def wait_blocking(self) -> None:
        """The same without an event loop: the interpreter exits."""
        self._begin()
        while not (self._has_settled() or self._is_vain()):
            time.sleep(LOOK / 10)

    @property
    def reason(self) -> str:
        """Why it was in vain."""
        if self._session.peer.is_connected or not self._session.peer.reason:
            return f"not acknowledged within {time.monotonic() - self._start:.2g} s"
        return self._session.peer.reason

    def _begin(self) -> None:
        if not self._session.peer.is_connected:
            self._session.hurry()

    def _has_settled(self) -> bool:
        return self._around.outbox.has_settled(self.before)

    def _is_vain(self) -> bool:
        is_dead = self._session.peer.is_hopeless(self._start) or self._around.outbox.is_stuck(PATIENCE, self._start)
        return is_dead or time.monotonic() >= self._deadline


async def until_closed(session: Session, around: Surroundings) -> None:
    """Wait for a session's end as long as it may take if all is well. One that hangs ends by itself later."""
    await around.changes.until(lambda: session.is_closed, _time_to_close(session))


def until_closed_blocking(session: Session) -> None:
    deadline = time.monotonic() + _time_to_close(session)
    while not session.is_closed and time.monotonic() < deadline:
        time.sleep(LOOK / 10)


def _time_to_close(session: Session) -> float:
    # Without a connection the thread may be in the middle of a system call that takes seconds.
    return GOODBYE + _GRACE if session.peer.is_connected else LOOK


async def room(around: Surroundings) -> None:
    """Return when the outbox has room again, or half a second has passed; however many wait, it costs little."""
    change = around.room.next()
    if not around.outbox.is_tight:
        return
    # Done by a timer too, not by a time limit for each who waits: taking back ten thousand of those takes seconds.
    handle = asyncio.get_running_loop().call_later(ROOM_LOOK, around.room.tell)
    try:
        await asyncio.wait({change})
    finally:
        handle.cancel()
