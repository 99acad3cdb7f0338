"""Ctrl-C and SIGTERM during `cs.run` in the main thread: the first signal cancels the run, a second one ends the process."""

import _thread
import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from cascade._context_managers import context_manager
from cascade.runtime.exceptions import by_signal
from cascade.runtime.threads import is_left_running

_DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_REPORTED = "_cascade_reported"


class RunSignals:
    """Handles SIGINT and SIGTERM inside the `with` block. A handler of the program is not replaced.

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

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            _watcher.stop()  # the watcher of an earlier run must not handle the first signal of this one
            for number, default in _DEFAULTS.items():
                if signal.getsignal(number) in (default, _after_run):
                    self._handled.append(number)
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._handled:
            return
        is_over = not is_left_running()
        for number in self._handled:
            if signal.getsignal(number) == self._handle:
                signal.signal(number, _DEFAULTS[number] if is_over else _after_run)
        if is_over:
            _watcher.stop()
        else:
            _watcher.start()

    async def run_cancellable(self, work: Coroutine[Any, Any, None]) -> None:
        """Await the coroutine, in a task that the first signal cancels."""
        self._task = asyncio.current_task()
        with _signals_wake(asyncio.get_running_loop()):
            if self.received is not None:
                self._cancel()
            try:
                await work
            finally:
                self._task = None

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
        _watcher.start()
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._cancel)
        self._on_signal(frame)

    def _cancel(self) -> None:
        if self._task is not None and self.received is not None:
            self._task.cancel(by_signal(self.received.name))


@context_manager
def _signals_wake(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Make each signal wake the event loop, so that the handler runs immediately.

    Without it, a signal that arrives just before the loop begins to wait is handled only when the loop wakes for another
    reason.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        try:
            # A function of Python: the interpreter handles signals between bytecodes, and uvloop's loop has none.
            loop.add_reader(reader, lambda: reader.recv(4096))
        except NotImplementedError:  # the loop of Windows does this itself
            yield
            return
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            _replace_wakeup_fd(writer.fileno(), previous)
            loop.remove_reader(reader)


def _replace_wakeup_fd(expected: int, new: int) -> None:
    """Set the wakeup file descriptor to `new` if it is `expected`."""
    current = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(new if current == expected else current, warn_on_full_buffer=False)


class _Watcher:
    """Thread that ends the process at a second signal, by the rules of the handlers.

    The interpreter calls a handler only in the main thread, between two bytecodes, and not during a call of a C function.
    Examples are the wait for a lock, and the wait for threads at the exit. A signal that arrives just before the
    wait does not interrupt it. The process has one watcher.
    """

    def __init__(self) -> None:
        self._writer: socket.socket | None = None
        self._owner = 0

    def start(self) -> None:
        """Watch for signals. Called in the handler of the first one, before the interpreter can handle a second one."""
        if self._owner != os.getpid():  # no watcher, or that of the parent process
            reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._owner = os.getpid()
            # Not a `threading.Thread`: the signal may have interrupted code that holds a lock of that module.
            _thread.start_new_thread(self._run, (reader,))
        assert self._writer is not None  # noqa: S101 - for the type checker
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def stop(self) -> None:
        """Stop watching. In a forked child, the watcher of the parent is not affected."""
        if self._writer is not None and threading.current_thread() is threading.main_thread():
            _replace_wakeup_fd(self._writer.fileno(), -1)

    def _run(self, reader: socket.socket) -> None:
        while numbers := reader.recv(4096):
            for number in numbers:
                handler = signal.getsignal(number)
                run = getattr(handler, "__self__", None)
                if isinstance(run, RunSignals) and run.received is not None:
                    _end_process(number)
                if handler is _after_run:
                    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001
                    with contextlib.suppress(KeyboardInterrupt):  # the main thread raises it too
                        _after_run(number, frame)


_watcher = _Watcher()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watcher.stop)


def _after_run(number: int, frame: FrameType | None) -> None:
    """Handle a signal after a run that an earlier signal cancelled and whose functions may still run.

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
    """Suppress the traceback of an uncaught KeyboardInterrupt whose run has reported the cancellation."""
    previous = sys.excepthook
    if getattr(previous, _REPORTED, False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not (isinstance(error, KeyboardInterrupt) and vars(error).get(_REPORTED)):
            previous(kind, error, trace)

    vars(hook)[_REPORTED] = True
    sys.excepthook = hook
