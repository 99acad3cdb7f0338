"""Logging handler above the root logger, which exports the records of the tasks of runs."""

import contextlib
import logging
import logging.handlers
import math
import threading
import weakref
from collections.abc import Callable, Container, Iterator
from functools import lru_cache

from opentelemetry._logs import NoOpLoggerProvider, get_logger_provider
from opentelemetry._logs._internal import ProxyLoggerProvider

from cascade._forks import ForkSafeLock
from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors.otel.logs.records import encode_record
from cascade.runtime.task_context import TaskContext, current_task

logger = get_logger("cascade.connectors.otel")

EXPORT_LOGGERS = ("cascade.connectors", "opentelemetry")
"""Loggers of the export. The export of their records would produce more records."""

_parent_of_root = logging.Logger("above the root logger")  # noqa: LOG001 - it is not a descendant of the root logger
"""Parent of the root logger. Its handlers get records after those of the root logger.

`dictConfig`, `fileConfig` and `basicConfig` replace the handlers of the root logger, but not those of its parent.
`basicConfig` also needs a root logger without handlers.
"""
_attach_lock = ForkSafeLock()


def attach(handler: logging.Handler) -> None:
    """Pass all records that reach the root logger to a handler, until `detach`."""
    with _attach_lock:
        if not _is_attached():
            _parent_of_root.parent, logging.root.parent = logging.root.parent, _parent_of_root
        logging.root.propagate = True  # a configuration of the logger "" may have set it to False
        if handler not in _parent_of_root.handlers:
            _parent_of_root.handlers = _Handlers((_last_resort, *_parent_of_root.handlers[1:], handler))


def detach(handler: logging.Handler) -> None:
    """Pass no more records to a handler."""
    with _attach_lock:
        remaining = [each for each in _parent_of_root.handlers if each is not handler]
        _parent_of_root.handlers = _Handlers(remaining if len(remaining) > 1 else ())


def _is_attached() -> bool:
    current: logging.Logger | None = logging.root
    while current is not None and current is not _parent_of_root:
        current = current.parent
    return current is _parent_of_root


class _Handlers(list[logging.Handler]):
    """Handlers above the root logger. A list is never modified, because other threads may iterate over it.

    The truth value of a list is always False: `Logger.hasHandlers` must only find handlers of the application, because
    libraries add a handler if it finds none.
    """

    def __bool__(self) -> bool:
        return False


class _LastResort(logging.Handler):
    """Passes a record to `logging.lastResort` if no handler of the application gets it.

    `logging` does this only if no handler at all gets the record.
    """

    def handle(self, record: logging.LogRecord) -> bool:
        last = logging.lastResort
        with contextlib.suppress(Exception):  # stderr may be closed, or a field may have an unexpected type
            if last is not None and record.levelno >= last.level and next(_handlers_of(record.name), None) is None:
                last.handle(record)
        return True


_last_resort = _LastResort()
_local = threading.local()
_reported_handlers: weakref.WeakSet[logging.Handler] = weakref.WeakSet()


class TaskLogHandler(logging.Handler):
    """Encodes the records of the tasks of `runs` with at least `min_level`, and passes them to `put`.

    Records that a handler of the application exports with OpenTelemetry are skipped. With `respects_handlers` records
    below the level of such a handler are skipped too. `loggers` has the names of the loggers of the passed records.

    The handler never raises: it passes the reason to `refuse` if a record cannot be handled or encoded.
    """

    def __init__(
        self,
        put: Callable[[bytes], object],
        refuse: Callable[[str], None],
        runs: Container[str],
        min_level: int = logging.NOTSET,
        *,
        respects_handlers: bool = False,
    ) -> None:
        super().__init__()
        self.loggers: set[str] = set()
        self._put = put
        self._refuse = refuse
        self._runs = runs
        self._min_level = min_level
        self._respects_handlers = respects_handlers

    def handle(self, record: logging.LogRecord) -> bool:
        """Handle a record without the lock of the handler, so that threads encode records in parallel."""
        try:
            passed = bool(self.filter(record))
            if passed:
                self.emit(record)
        except Exception as error:  # noqa: BLE001 - a filter of the application, or a field with an unexpected type
            raise_in_tests(error)
            self._refuse(f"a record cannot be handled: {type(error).__name__}")
            return False
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        task = current_task()
        if task is None or task.run_id not in self._runs or record.levelno < self._min_level:
            return
        if _is_logger_of_export(str(record.name)) or getattr(_local, "is_encoding", False):
            return
        level = math.inf if self._respects_handlers else record.levelno
        exporting = next((each for each in _handlers_of(record.name) if _exports_with_opentelemetry(each, level)), None)
        if exporting is None:
            self._export(record, task)
        elif exporting not in _reported_handlers:
            _reported_handlers.add(exporting)
            name = type(exporting).__name__
            logger.info("OtelConnector does not export the log records that %s of the application exports", name)

    def _export(self, record: logging.LogRecord, task: TaskContext) -> None:
        # The `__str__` of an argument may log the argument again.
        _local.is_encoding = True
        try:
            self._put(encode_record(record, task))
            self.loggers.add(record.name)
        except Exception as error:  # noqa: BLE001 - telemetry must not break a run
            raise_in_tests(error)
            self._refuse(f"a record cannot be encoded: {type(error).__name__}")
        finally:
            _local.is_encoding = False


def _is_logger_of_export(name: str) -> bool:
    return name.startswith(EXPORT_LOGGERS) and any(name == own or name.startswith(f"{own}.") for own in EXPORT_LOGGERS)


def _handlers_of(name: str) -> Iterator[logging.Handler]:
    """Yield the handlers that a record of the logger `name` reaches, up to those of the root logger."""
    logger = logging.root.manager.loggerDict.get(name)
    current = logger if isinstance(logger, logging.Logger) else logging.root
    while True:
        yield from current.handlers
        if current is logging.root or not current.propagate or current.parent is None:
            return
        current = current.parent


def _exports_with_opentelemetry(handler: logging.Handler, level: float) -> bool:
    """Return whether the handler, or a handler behind it, exports records of a level with OpenTelemetry.

    Filters of the handler are ignored: a record that a filter rejects must not be exported.
    """
    if level < handler.level:
        return False
    if _is_of_opentelemetry(type(handler).__mro__):
        return _has_exporter(handler)
    if isinstance(handler, logging.handlers.MemoryHandler):
        return handler.target is not None and _exports_with_opentelemetry(handler.target, level)
    if isinstance(handler, logging.handlers.QueueHandler):
        listener = getattr(handler, "listener", None)  # set by `dictConfig` since Python 3.12
        return any(_exports_with_opentelemetry(each, level) for each in getattr(listener, "handlers", ()))
    return False


@lru_cache(maxsize=256)
def _is_of_opentelemetry(classes: tuple[type, ...]) -> bool:
    """Return whether a class is the LoggingHandler of the SDK or of opentelemetry-instrumentation-logging."""
    return any(each.__name__ == "LoggingHandler" and each.__module__.startswith("opentelemetry.") for each in classes)


def _has_exporter(handler: logging.Handler) -> bool:
    provider = getattr(handler, "_logger_provider", None)
    if isinstance(provider, ProxyLoggerProvider):
        provider = get_logger_provider()
    if isinstance(provider, (ProxyLoggerProvider, NoOpLoggerProvider)):
        return False
    processor = getattr(provider, "_multi_log_record_processor", None)
    return getattr(processor, "_log_record_processors", None) != ()
