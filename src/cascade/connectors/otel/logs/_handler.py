"""The handler above the root logger, for the records of tasks of certain runs."""

import contextlib
import logging
import math
import threading
import weakref
from collections.abc import Callable, Container

from cascade._forks import ModuleLock
from cascade._loggers import get_logger
from cascade.connectors.otel.logs._application import exports, handlers_of
from cascade.connectors.otel.logs._records import encode
from cascade.runtime.task_context import TaskContext, current_task

OWN_LOGGERS = ("cascade.connectors", "opentelemetry")
"""Loggers of the export itself. To export their records would produce more of them."""

logger = get_logger("cascade.connectors.otel")

_here = threading.local()

_above = logging.Logger("above the root logger")  # noqa: LOG001 - it is no descendant of the root logger
"""Parent of the root logger. `logging` passes records on to it after the handlers of the root logger.

`logging.config.dictConfig`, `fileConfig` and `basicConfig` replace the handlers of the root logger, not those of its parent.
And `basicConfig` does its work while the root logger itself has no handler.
"""
_placing = ModuleLock()


def attach(handler: logging.Handler) -> None:
    """Pass all records that reach the root logger to this handler, until `detach`."""
    with _placing:
        if not _is_placed():
            _above.parent, logging.root.parent = logging.root.parent, _above
        logging.root.propagate = True  # a configuration of the logger "" may have set it to False
        if handler not in _above.handlers:
            _above.handlers = _Handlers((_last_resort, *_above.handlers[1:], handler))


def detach(handler: logging.Handler) -> None:
    with _placing:
        left = [each for each in _above.handlers if each is not handler]
        _above.handlers = _Handlers(left if len(left) > 1 else ())


def _is_placed() -> bool:
    current: logging.Logger | None = logging.root
    while current is not None and current is not _above:
        current = current.parent
    return current is _above


class _Handlers(list[logging.Handler]):
    """Handlers above the root logger. A list is never changed: other threads may pass a record to its handlers.

    It is false even with handlers: `Logger.hasHandlers` is about the handlers of the application. A library may add one
    of its own where there are none.
    """

    def __bool__(self) -> bool:
        return False


class _LastResort(logging.Handler):
    """Passes a record to `logging.lastResort` if no handler of the application sees it.

    `logging` does so only with records that no handler sees.
    """

    def handle(self, record: logging.LogRecord) -> bool:
        last = logging.lastResort
        with contextlib.suppress(Exception):  # stderr may be closed, or the record's fields have other types
            if last is not None and record.levelno >= last.level and next(handlers_of(record.name), None) is None:
                last.handle(record)
        return True


_last_resort = _LastResort()


class TaskLogHandler(logging.Handler):
    """Encodes the records of tasks of `runs`, from `min_level` on, and passes them to `put`.

    A record that a handler of the application exports by OpenTelemetry is left to that handler. Unless `fills_gaps`, so is
    a record below the level of that handler, which then is not exported. `loggers` has the names of the loggers of the
    records that were passed on.

    It never raises: `refuse` gets the reason why a record cannot be handled or encoded.
    """

    def __init__(
        self,
        put: Callable[[bytes], object],
        refuse: Callable[[str], None],
        runs: Container[str],
        min_level: int = logging.NOTSET,
        *,
        fills_gaps: bool = True,
    ) -> None:
        super().__init__()
        self.loggers: set[str] = set()
        self._put = put
        self._refuse = refuse
        self._runs = runs
        self._min_level = min_level
        self._fills_gaps = fills_gaps

    def handle(self, record: logging.LogRecord) -> bool:
        """Handle a record without the lock of the handler: threads encode at the same time."""
        try:
            passed = bool(self.filter(record))
            if passed:
                self.emit(record)
        except Exception as error:  # noqa: BLE001 - a filter of the program, or a record whose fields have other types
            self._refuse(f"a record cannot be handled: {type(error).__name__}")
            return False
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        task = current_task()
        if task is None or task.run_id not in self._runs or record.levelno < self._min_level:
            return
        if _is_own(str(record.name)) or getattr(_here, "is_encoding", False):
            return
        level = record.levelno if self._fills_gaps else math.inf
        handler = next((each for each in handlers_of(record.name) if exports(each, level)), None)
        if handler is None:
            self._take(record, task)
        else:
            _report_once(handler)

    def _take(self, record: logging.LogRecord, task: TaskContext) -> None:
        # The `__str__` of an argument may log that argument.
        _here.is_encoding = True
        try:
            self._put(encode(record, task))
            self.loggers.add(record.name)
        except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
            self._refuse(f"a record cannot be encoded: {type(error).__name__}")
        finally:
            _here.is_encoding = False


def _report_once(handler: logging.Handler) -> None:
    if handler not in _reported:
        _reported.add(handler)
        name = type(handler).__name__
        logger.info("OtelConnector does not export the log records that %s of the application exports", name)


_reported: weakref.WeakSet[logging.Handler] = weakref.WeakSet()


def _is_own(name: str) -> bool:
    return name.startswith(OWN_LOGGERS) and any(name == own or name.startswith(f"{own}.") for own in OWN_LOGGERS)
