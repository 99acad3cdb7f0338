"""The active runs of the process, which share one view and one terminal."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from cascade._forks import ForkSafeLock
from cascade._internal_errors import raise_in_tests
from cascade.connectors import _lifetime
from cascade.connectors.console.display import LiveDisplay
from cascade.connectors.console.progress import RunProgress, label_of, wait_text
from cascade.connectors.console.run_tree import RunTree, prune
from cascade.connectors.console.span_nodes import SpanNode
from cascade.connectors.console.terminal import can_move_cursor, encodable, is_colored, is_terminal, size_of
from cascade.connectors.console.trace_drawing import DEFAULT_WIDTH, MIN_WIDTH, draw_trace, without_controls
from cascade.connectors.console.view import RunView, draw_view

Message = Mapping[str, Any]

END_SECONDS = 2.0
"""Seconds that the end of a run, or of the process, waits for the terminal."""
_UNREMARKABLE = {"executor", "retry"}
"""Reasons of waits without a line of their own: more tasks than threads are normal, and the log has a line for a retry."""
_MAX_WAIT_LINES = 100


class _Run:
    """State of one run. `tree` is None if the run prints no tree."""

    def __init__(self, started: Message, *, is_live: bool, has_tree: bool) -> None:
        self.progress = RunProgress(started) if is_live else None
        self.tree = RunTree() if has_tree else None
        self.outer_run_id = started["body"]["metadata"].get("outer_run_id", "")
        self.nested: list[_Run] = []
        self.waits: set[tuple[str, str]] = set()

    def view(self) -> RunView | None:
        if self.progress is None:
            return None
        return RunView(self.progress, [view for one in self.nested if (view := one.view()) is not None])


class ActiveRuns:
    """All runs of the process that console connectors show. Its methods may be called in any thread."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._runs: dict[str, _Run] = {}
        self._top: dict[str, _Run] = {}
        self._display: LiveDisplay | None = None
        self._users = 0
        _lifetime.watch(self)

    def open_display(self) -> LiveDisplay | None:
        """Return the display of the terminal; None if stderr is not a terminal. `close_display` must follow."""
        with self._lock:
            if self._display is None or not self._display.is_open:
                if not can_move_cursor(sys.stderr) or not hasattr(sys.stderr, "__dict__"):
                    return None
                self._display, self._users = LiveDisplay(sys.stderr, self._draw), 0
            self._users += 1
            return self._display

    def close_display(self, display: LiveDisplay) -> LiveDisplay | None:
        """Return the display if no other connector uses it: the caller ends it."""
        with self._lock:
            if display is not self._display:
                return None
            self._users -= 1
            if self._users:
                return None
            self._display = None
            return display

    def add(self, payload: Message, display: LiveDisplay | None, *, has_tree: bool) -> None:
        """Fold a message, and print a line for a wait, and the tree of a run that has ended."""
        body = payload["body"]
        event = body.get("event")
        text = ""
        with self._lock:
            if event == "ENGINE_STARTED":
                self._start(payload, display, has_tree=has_tree)
            elif (run := self._runs.get(payload["run_id"])) is None:
                return
            elif event == "ENGINE_STOPPED":
                tree = self._end(payload, run)
                text = "" if tree is None else _drawn(tree)
            else:
                if run.progress is not None:
                    run.progress.add(payload)
                elif body.get("state") == "PENDING":
                    text = _wait_line(run, body)
                if run.tree is not None:
                    run.tree.add(payload)
        if display is not None:
            display.change()
        if text:
            _print(encodable(text, sys.stderr), display)

    def reset_after_fork(self) -> None:
        """In the child, no run is active, and the terminal belongs to the parent."""
        self._runs, self._top, display, self._display, self._users = {}, {}, self._display, None, 0
        if display is not None:
            display.abandon()

    def start_exit(self) -> Any:
        display, self._display = self._display, None
        ended = None if display is None else display.end()
        return lambda: None if ended is None else ended.exception(END_SECONDS)

    def _start(self, payload: Message, display: LiveDisplay | None, *, has_tree: bool) -> None:
        run_id = payload["run_id"]
        run = _Run(payload, is_live=display is not None, has_tree=has_tree)
        self._runs[run_id] = run
        outer = self._runs.get(run.outer_run_id)
        if outer is None:
            self._top[run_id] = run
        else:
            outer.nested.append(run)

    def _end(self, payload: Message, run: _Run) -> SpanNode | None:
        """Remove a run. Return its tree, unless it belongs to the tree of its outer run."""
        run_id = payload["run_id"]
        del self._runs[run_id]
        self._top.pop(run_id, None)
        outer = self._runs.get(run.outer_run_id)
        if outer is not None and run in outer.nested:
            outer.nested.remove(run)
        if run.tree is None:
            return None
        tree, parent = run.tree.finish(payload), payload["parent_span_id"]
        if outer is not None and outer.tree is not None and parent:
            outer.tree.attach(parent, tree)
            return None
        return tree

    def _draw(self, width: int, height: int) -> tuple[list[str], bool]:
        with self._lock:
            views = [view for run in self._top.values() if (view := run.view()) is not None]
            is_ticking = any(run.progress is not None and run.progress.is_ticking for run in self._runs.values())
            color = is_colored(sys.stderr)
            return draw_view(views, width=width, height=height, now_ns=time.time_ns(), color=color), is_ticking


def _wait_line(run: _Run, body: Message) -> str:
    """Return a line for the first wait of each task with each reason."""
    metadata = body["metadata"]
    key = body["task_name"], metadata.get("reason", "")
    if key[1] in _UNREMARKABLE or key in run.waits or len(run.waits) >= _MAX_WAIT_LINES:
        return ""
    run.waits.add(key)
    return f"⏳ {without_controls(label_of(body))}: {without_controls(wait_text(metadata))}\n"


def _drawn(tree: SpanNode) -> str:
    prune(tree)
    stream = sys.stderr
    width = size_of(stream)[0] - 1 if is_terminal(stream) else DEFAULT_WIDTH
    return draw_trace([tree], width=max(MIN_WIDTH, width), color=is_colored(stream)) + "\n"


def _print(text: str, display: LiveDisplay | None) -> None:
    if display is not None and display.is_open:
        display.print(text)
        return
    stream = sys.stderr
    try:
        if stream is not None:  # as under pythonw
            stream.write(text)
            stream.flush()
    except Exception as error:  # noqa: BLE001 - a closed or broken stream must not end the run
        raise_in_tests(error)


RUNS = ActiveRuns()
