"""`ConsoleConnector` shows runs in the terminal: a live view, and at the end the trace as a tree."""

import asyncio
import sys
from typing import Any

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors.console.display import LiveDisplay
from cascade.connectors.console.runs import END_SECONDS, RUNS
from cascade.connectors.console.terminal import can_move_cursor
from cascade.connectors.report import ConnectorReport
from cascade.runtime.guard import FAULTS
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.sanitize import error_text

logger = get_logger(__name__)

_SHOWN = frozenset({"task.started", "task.finished_success", "task.skipped", "map.progress"})
"""Messages of the level INFO that the live view shows in place of a line."""


class ConsoleConnector:
    """Shows runs on stderr.

    While a run is active and stderr is a terminal, a view shows its tasks, its maps with a bar, waits and retries. Other
    text on stderr and stdout is printed above it. At the end, the trace is printed as a tree. Of a large run, the tree has
    the failed and the slowest parts, and the numbers of the others.

    If stderr is not a terminal, if TERM is "dumb", or if CI is set, there is no view. The first wait of each task, with its
    reason, is then a line, in addition to the lines of the run's log.

    All active runs of a process share one view. The memory does not depend on the number of tasks.

    Args:
        live: Show the view.
        tree: Print the tree.
    """

    def __init__(self, *, live: bool = True, tree: bool = True) -> None:
        self._is_live, self._has_tree = live, tree
        self._displays: list[LiveDisplay | None] = []
        self._count = 0
        self._last_error = ""

    @property
    def ignored(self) -> frozenset[str]:
        """The messages that only the view uses, if there is no view."""
        has_view = self._is_live and can_move_cursor(sys.stderr)
        return frozenset() if has_view else frozenset({"RUNNING"})

    def report(self) -> ConnectorReport:
        """Return the number of messages that were shown, and whether a run is connected."""
        return ConnectorReport(sent=self._count, connected=bool(self._displays), last_error=self._last_error)

    def shows(self, msg_id: str) -> bool:
        """Whether the view shows this message of the run's log now."""
        return msg_id in _SHOWN and any(display is not None and display.is_open for display in self._displays)

    async def connect(self) -> None:
        self._displays.append(RUNS.open_display() if self._is_live else None)

    async def disconnect(self) -> None:
        display = self._displays.pop() if self._displays else None
        last = None if display is None else RUNS.close_display(display)
        if last is not None:
            await asyncio.wait({asyncio.wrap_future(last.end())}, timeout=END_SECONDS)

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        self.put(topic, payload, qos)

    def put(self, topic: str, payload: dict[str, Any], qos: int = 0) -> bool:  # noqa: ARG002 - the signature of the protocol
        """Fold a message into the view and the tree. Returns True."""
        self._count += 1
        display = self._displays[-1] if self._displays else None
        try:
            RUNS.add(payload, display, has_tree=self._has_tree)
        except FAULTS as error:
            raise_in_tests(error)
            if not self._last_error:
                logger.warning(
                    "The console cannot show a message; further failures are not logged: %s", error_text(error)
                )
            self._last_error = error_text(error)
        return True

    def is_full(self) -> bool:
        return False

    async def room(self) -> None:
        """Messages are folded at once."""

    async def subscribe(self, topic: str, callback: MessageCallback) -> None:
        """A terminal sends no control messages."""
