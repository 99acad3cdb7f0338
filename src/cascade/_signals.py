"""Ctrl-C and SIGTERM during `cs.run` in the main thread: the first signal cancels the run, a second one ends the process."""

import _thread
import asyncio
import os
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from cascade._blocks import block
from cascade.runtime._outcome import by_signal
from cascade.runtime.threads import is_left_running

Handler = Callable[[int, FrameType | None], Any]

_DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_REPORTED = "_cascade_reported"


class RunSignals:
    """Handles SIGINT and SIGTERM inside the `with` block. A handler that the program has set itself stays.

    Args:
        on_signal: Called in the signal handler for the first signal, with the interrupted frame.

    Attributes:
        received: The first signal; None before it.
    """

    def __init__(self, on_signal: Callable[[FrameType | None], None]) -> None:
        self.received: signal.Signals | None = None
        self._on_signal = on_signal
        self._task: asyncio.Task[Any] | None = None
        self._handled: list[int] = []
        self._wakeups: socket.socket | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULTS.items():
                if signal.getsignal(number) in (default, _after_run):
                    self._handled.append(number)
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._handled:
            if signal.getsignal(number) == self._handle:
                signal.signal(number, _after_run if is_left_running() else _DEFAULTS[number])

    async def cancels(self, work: Coroutine[Any, Any, None]) -> None:
        """Await the coroutine, in a task that the first signal cancels."""
        self._task = asyncio.current_task()
        with _signals_wake(asyncio.get_running_loop()) as wakeups:
            self._wakeups = wakeups
            if self.received is not None:
                self._cancel()
            try:
                await work
            finally:
                self._task = self._wakeups = None

    def raise_received(self, first: BaseException | None) -> NoReturn:
        """Raise the exception of the first signal: KeyboardInterrupt, or SystemExit with code 143.

        `first` is an error from before the signal. Without it, the interpreter prints no traceback of the
        KeyboardInterrupt: messages have reported the cancellation.
        """
        if self.received is signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from first
        interrupt = KeyboardInterrupt()
        if first is None:
            vars(interrupt)[_REPORTED] = True
            _hide_reported()
        raise interrupt from first

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            _end_process(number)
        self.received = signal.Signals(number)
        if self._wakeups is not None:
            _watch_for_second(self._wakeups, frozenset(self._handled))
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._cancel)
        self._on_signal(frame)

    def _cancel(self) -> None:
        if self._task is not None and self.received is not None:
            self._task.cancel(by_signal(self.received.name))


@block
def _signals_wake(loop: asyncio.AbstractEventLoop) -> Iterator[socket.socket | None]:
    """Make each signal wake the event loop, so that the handler runs at once.

    Without it, a signal that arrives just before the loop begins to wait is handled only when the loop wakes for another
    reason. The value is the socket that receives the numbers of the signals; None if the loop needs none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        try:
            loop.add_reader(reader, _received, reader)
        except NotImplementedError:  # the loop of Windows does this itself
            yield None
            return
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(previous)
            loop.remove_reader(reader)


def _received(wakeups: socket.socket) -> bytes | None:
    """The numbers of the signals since the last call; empty at the end of the run; None if there are none."""
    try:
        return wakeups.recv(4096)
    except BlockingIOError:
        return None


def _watch_for_second(wakeups: socket.socket, handled: frozenset[int]) -> None:
    """End the process at the next of the signals `handled`, from a thread, until the run ends.

    The interpreter calls a handler in the main thread only, between two bytecodes: not while a function in C occupies that
    thread. A wait for a lock is such a function: a signal that arrives just before the wait does not interrupt it.
    """
    _received(wakeups)  # the first signal
    # Not a `threading.Thread`: the signal may have interrupted code that holds a lock of that module.
    _thread.start_new_thread(_end_at_second, (wakeups.dup(), handled))


def _end_at_second(wakeups: socket.socket, handled: frozenset[int]) -> None:
    with wakeups, selectors.DefaultSelector() as selector:
        selector.register(wakeups, selectors.EVENT_READ)
        numbers: bytes | None = None
        while numbers != b"":
            selector.select()
            numbers = _received(wakeups)
            for number in handled.intersection(numbers or b""):
                _end_process(number)


def _after_run(number: int, frame: FrameType | None) -> None:
    """Handle a signal after a run that an earlier signal cancelled, and that has left functions running.

    The process ends at once while these functions run, and while the interpreter waits for threads at its exit. After
    that, a signal has its default effect.
    """
    if number == signal.SIGTERM or is_left_running() or _waits_for_threads(frame):
        _end_process(number)
    signal.default_int_handler(number, frame)


def _waits_for_threads(frame: FrameType | None) -> bool:
    """Whether the frame belongs to the interpreter's exit, which waits for threads."""
    while frame is not None and not (frame.f_code.co_name == "_shutdown" and frame.f_globals is vars(threading)):
        frame = frame.f_back
    return frame is not None


def _end_process(number: int) -> NoReturn:
    # Not by the signal's default effect: the kernel does not apply it to the first process of a container.
    os._exit(128 + number)


def _hide_reported() -> None:
    """Make the interpreter print no traceback of an uncaught KeyboardInterrupt that is reported."""
    previous = sys.excepthook
    if getattr(previous, _REPORTED, False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not (isinstance(error, KeyboardInterrupt) and vars(error).get(_REPORTED)):
            previous(kind, error, trace)

    vars(hook)[_REPORTED] = True
    sys.excepthook = hook
