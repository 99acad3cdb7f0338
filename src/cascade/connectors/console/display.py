"""Keeps a live view at the bottom of a terminal, below the text that the program prints meanwhile.

`rich.live.Live` replaces `sys.stderr`, so that the text of a logging handler that keeps the stream overwrites the view. It also
draws the view again for each printed text: a program that prints 500 lines a second below 100 tasks then uses 0.4 of a core
instead of 0.02.
"""

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TextIO

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors.console.terminal import encodable, is_same_terminal, size_of
from cascade.connectors.console.view import fitted

logger = get_logger(__name__)

FRAME_SECONDS = 0.15
"""Shortest time between two frames."""
TICK_SECONDS = 1.0
"""Time after which the view is drawn again because of the durations in it, and the size of the terminal is read."""
MAX_PENDING = 256 * 1024
"""Characters that wait for the next frame. A thread that prints more of them prints them itself."""
_MAX_UNFINISHED = 8 * 1024
"""Characters of a line without its end that are not printed yet."""
_UP, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[{}A", "\x1b[K", "\x1b[J"


class LiveDisplay:
    """A view on a terminal, drawn by a thread at most every `FRAME_SECONDS`, and only after a change.

    Text that any thread writes to `sys.stderr`, or to `sys.stdout` on the same terminal, is printed above the view with the
    next frame. The cursor stays below the view, so that a process that is killed leaves a usable terminal.

    Args:
        stream: The terminal.
        draw: Returns the lines of the view for a number of columns and lines, and whether it changes with time.
    """

    def __init__(self, stream: TextIO, draw: Callable[[int, int], tuple[list[str], bool]]) -> None:
        self._stream, self._draw = stream, draw
        self._changed, self._ending = threading.Event(), threading.Event()
        self._is_changed = False
        self._screen = threading.RLock()
        self._frame: list[str] = []
        self._size = (0, 0)
        self._pending: deque[tuple[int, str]] = deque()
        self._pending_size = 0
        self._unfinished: dict[int, str] = {}
        self._write: Callable[[str], object] = stream.write
        self.is_open = True
        self.ended: Future[None] = Future()
        same = [sys.stdout] if sys.stdout is not stream and is_same_terminal(stream, sys.stdout) else []
        self._redirected = [_RedirectedStream(one, self) for one in (stream, *same) if one is not None]
        self._thread = threading.Thread(target=self._run, name="cascade-console", daemon=True)
        self._thread.start()

    def change(self) -> None:
        """Draw the view again soon. Any thread may call it; it must be quick."""
        if not self._is_changed:
            self._is_changed = True
            self._changed.set()

    def print(self, text: str, key: int = 0) -> None:
        """Print a text above the view. `key` identifies the stream of a text that may be a part of a line."""
        self._pending.append((key, text))
        self._pending_size += len(text)
        if not self.is_open or self._pending_size > MAX_PENDING:
            self._show(None)
        else:
            self.change()

    def end(self) -> "Future[None]":
        """Erase the view and print the rest of the text. The returned future is done when the terminal has it."""
        self._ending.set()
        self._changed.set()
        return self.ended

    def abandon(self) -> None:
        """Forget the view without printing: in a forked child, the terminal belongs to the parent."""
        self.is_open = False
        self._screen = threading.RLock()
        self._pending.clear()
        self._frame = []
        self._release()

    def _run(self) -> None:
        try:
            is_ticking = False
            while not self._ending.is_set():
                has_changed = self._changed.wait(TICK_SECONDS)
                self._changed.clear()
                self._is_changed = False
                if has_changed or is_ticking or size_of(self._stream) != self._size:
                    columns, rows = self._size = size_of(self._stream)
                    # Not while this thread holds the lock of the screen: another thread may print while it changes a run.
                    lines, is_ticking = self._draw(columns - 1, rows - 1 - len(self._unfinished))
                    self._show([encodable(line, self._stream) for line in lines])
                    self._ending.wait(FRAME_SECONDS)
        except Exception as error:  # noqa: BLE001 - a fault of the view must not end the run
            self._fail(error)
        finally:
            self._close()

    def _fail(self, error: Exception) -> None:
        self._release()
        if not isinstance(error, (OSError, ValueError)):  # the terminal is closed
            logger.warning("The live view has ended: %s: %s", type(error).__name__, error)
            raise_in_tests(error)

    def _close(self) -> None:
        try:
            with contextlib.suppress(OSError, ValueError), self._screen:
                self.is_open = False
                self._release()
                self._show([])
        finally:
            self.ended.set_result(None)

    def _release(self) -> None:
        for stream in self._redirected:
            stream.release()

    def _show(self, lines: list[str] | None) -> None:
        """Print the pending text, and the lines of the view below it; None leaves the view as it is."""
        with self._screen:
            text = self._take_text()
            if not self.is_open:
                text, lines = text + "".join(self._unfinished.values()), []
                self._unfinished.clear()
            elif lines is not None:
                width = self._size[0] - 1
                lines = [*(fitted(one.rpartition("\r")[2], width) for one in self._unfinished.values()), *lines]
            if text or (lines is not None and lines != self._frame):
                self._put(text, self._frame if lines is None else lines)

    def _put(self, text: str, lines: list[str]) -> None:
        output = _UP.format(len(self._frame)) + "\r" if self._frame else ""
        if text:
            output += (_CLEAR_BELOW if self._frame else "") + text
        output += "".join(f"{line}{_CLEAR_LINE}\n" for line in lines)
        if self._frame and not text and len(lines) < len(self._frame):
            output += _CLEAR_BELOW
        self._frame = lines
        try:
            self._write(output)
        except UnicodeEncodeError:  # a text of the program
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            self._write(output.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()

    def _take_text(self) -> str:
        """Return the pending text up to the last end of a line. The rest stays in `_unfinished`."""
        found = []
        while self._pending:
            key, text = self._pending.popleft()
            text = self._unfinished.pop(key, "") + text
            lines, end, rest = text.rpartition("\n")
            if len(rest) > _MAX_UNFINISHED:
                lines, end, rest = text, "\n", ""
            found.append(lines + end)
            if rest:
                self._unfinished[key] = rest
        self._pending_size = 0
        return "".join(found)


class _RedirectedStream:
    """Sends the text that is written to a stream to a display, until `release`.

    It replaces the method of the stream and not `sys.stderr`, because handlers of logging keep the stream.
    """

    def __init__(self, stream: TextIO, display: LiveDisplay) -> None:
        self._attributes: dict[str, Any] = vars(stream)
        self.previous = self._attributes.get("write")
        self._original: Callable[[Any], int] = stream.write
        self._display, self._key = display, id(stream)
        self.is_released = False
        stream.flush()
        self._attributes["write"] = self._write

    def release(self) -> None:
        """Restore the method, at once or when the displays that have replaced it later are released."""
        self.is_released = True
        while isinstance(top := getattr(self._attributes.get("write"), "__self__", None), _RedirectedStream):
            if not top.is_released:
                return
            if top.previous is None:
                del self._attributes["write"]
            else:
                self._attributes["write"] = top.previous

    def _write(self, text: Any) -> int:
        if not isinstance(text, str):
            return self._original(text)
        self._display.print(text, self._key)
        return len(text)
