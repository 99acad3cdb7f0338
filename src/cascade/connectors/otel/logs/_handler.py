"""The handler on the root logger: records made inside of tasks of certain runs, and no others."""

import contextlib
import logging
import threading
from collections.abc import Callable, Container

from cascade.connectors.otel.logs._records import encode
from cascade.runtime.task_context import TaskContext, current_task

OWN_LOGGERS = ("cascade.connectors", "opentelemetry")
"""What these say is about exporting: to export it would make more of it."""

_here = threading.local()


class TaskLogHandler(logging.Handler):
    """Takes the records that a task of one of `runs` makes, from `min_level` on, encodes them, and puts them away.

    It never raises: a record that cannot be handled or encoded is refused with the reason.
    """

    def __init__(
        self,
        put: Callable[[bytes], object],
        refuse: Callable[[str], None],
        runs: Container[str],
        min_level: int = logging.NOTSET,
    ) -> None:
        super().__init__()  # without a level of its own: it must see each record that would else go to lastResort
        self._put = put
        self._refuse = refuse
        self._runs = runs
        self._min_level = min_level

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the lock that logging's own takes: threads need not wait for each other to encode."""
        try:
            passed = bool(self.filter(record))
            if passed:
                self.emit(record)
        except Exception as error:  # noqa: BLE001 - a filter of the program, or a record whose fields have other types
            self._refuse(f"a record cannot be handled: {type(error).__name__}")
            return False
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and self._is_alone(record.name):
            _last_resort(record)
        task = current_task()
        if task is None or task.run_id not in self._runs or record.levelno < self._min_level:
            return
        if _is_own(str(record.name)) or getattr(_here, "is_encoding", False):
            return
        self._take(record, task)

    def _take(self, record: logging.LogRecord, task: TaskContext) -> None:
        # An argument whose own __str__ logs must not lead to itself.
        _here.is_encoding = True
        try:
            self._put(encode(record, task))
        except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
            self._refuse(f"a record cannot be encoded: {type(error).__name__}")
        finally:
            _here.is_encoding = False

    def _is_alone(self, name: str) -> bool:
        """Whether there is no other handler, and this is the first of ours."""
        on_root = logging.root.handlers
        if any(not isinstance(handler, TaskLogHandler) for handler in on_root) or on_root[:1] != [self]:
            return False
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None and logger is not logging.root:
            if logger.handlers:
                return False
            logger = logger.parent
        return True


def _last_resort(record: logging.LogRecord) -> None:
    """Show what a program without any handler shows: that ours is there must not make its warnings silent."""
    if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
        with contextlib.suppress(Exception):  # stderr may be closed
            logging.lastResort.handle(record)


def _is_own(name: str) -> bool:
    return name.startswith(OWN_LOGGERS) and any(name == own or name.startswith(f"{own}.") for own in OWN_LOGGERS)
