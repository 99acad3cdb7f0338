"""The handler above the root logger, for the records of tasks of certain runs."""

import contextlib
import logging
import logging.handlers
import math
import threading
import weakref
from collections.abc import Callable, Collection, Container, Iterator
from functools import lru_cache

from opentelemetry._logs import NoOpLoggerProvider, get_logger_provider
from opentelemetry._logs._internal import ProxyLoggerProvider

from cascade._forks import ForkSafeLock
from cascade._loggers import get_logger
from cascade.connectors.otel.logs.records import encode
from cascade.runtime.task_context import TaskContext, current_task


def handlers_of(name: str) -> Iterator[logging.Handler]:
    """Return the handlers that a record of the logger `name` reaches, up to those of the root logger."""
    logger = logging.root.manager.loggerDict.get(name)
    current = logger if isinstance(logger, logging.Logger) else logging.root
    while True:
        yield from current.handlers
        if current is logging.root or not current.propagate or current.parent is None:
            return
        current = current.parent


def exports(handler: logging.Handler, level: float) -> bool:
    """Whether the handler, or one that it passes records to, exports records of a level by OpenTelemetry.

    Filters of the handler do not count: a record that one of them rejects is not to be exported.
    """
    if level < handler.level:
        return False
    if _is_of_opentelemetry(type(handler).__mro__):
        return _has_exporter(handler)
    if isinstance(handler, logging.handlers.MemoryHandler):
        return handler.target is not None and exports(handler.target, level)
    if isinstance(handler, logging.handlers.QueueHandler):
        listener = getattr(handler, "listener", None)  # from Python 3.12 on, where `dictConfig` has made both
        return any(exports(each, level) for each in getattr(listener, "handlers", ()))
    return False


@lru_cache(maxsize=256)
def _is_of_opentelemetry(classes: tuple[type, ...]) -> bool:
    """Whether one of them is the LoggingHandler of the SDK or of opentelemetry-instrumentation-logging."""
    return any(each.__name__ == "LoggingHandler" and each.__module__.startswith("opentelemetry.") for each in classes)


def _has_exporter(handler: logging.Handler) -> bool:
    provider = getattr(handler, "_logger_provider", None)
    if isinstance(provider, ProxyLoggerProvider):
        provider = get_logger_provider()
    if isinstance(provider, (ProxyLoggerProvider, NoOpLoggerProvider)):
        return False
    processor = getattr(provider, "_multi_log_record_processor", None)
    return getattr(processor, "_log_record_processors", None) != ()


_MAX_NAMES = 5
"""Names in one warning."""
_NOT_REPORTED = frozenset({"cascade", "opentelemetry"})
_LOGGER = "cascade.connectors.otel.logs"

_reported_loggers: set[str] = set()


def open_loggers() -> frozenset[str]:
    """Return the names of the loggers that pass their records on."""
    known = [logging.root, *logging.root.manager.loggerDict.values()]
    return frozenset(each.name for each in known if isinstance(each, logging.Logger) and _is_open(each))


def report_closed(before: frozenset[str], used: Collection[str]) -> None:
    """Warn of loggers that passed records on before and no longer do, once for each logger; first of those in `used`."""
    closed = sorted(before - open_loggers() - _reported_loggers, key=lambda name: (name not in used, name))
    if not closed:
        return
    _reported_loggers.update(closed)
    names = ", ".join(map(repr, closed[:_MAX_NAMES])) + (", …" if len(closed) > _MAX_NAMES else "")
    logging.getLogger(_LOGGER).disabled = False  # it shares the fate of the loggers that it reports
    get_logger(_LOGGER).warning(
        "OtelConnector: loggers (%s) were disabled or set not to propagate during the run, and their records are not "
        "exported; configure logging with disable_existing_loggers=False and propagate=True",
        names,
    )


def _is_open(logger: logging.Logger) -> bool:
    return logger.propagate and not logger.disabled and logger.name.partition(".")[0] not in _NOT_REPORTED


OWN_LOGGERS = ("cascade.connectors", "opentelemetry")
"""Loggers of the export itself. To export their records would produce more of them."""

logger = get_logger("cascade.connectors.otel")

_here = threading.local()

_above = logging.Logger("above the root logger")  # noqa: LOG001 - it is no descendant of the root logger
"""Parent of the root logger. `logging` passes records on to it after the handlers of the root logger.

`logging.config.dictConfig`, `fileConfig` and `basicConfig` replace the handlers of the root logger, not those of its parent.
And `basicConfig` does its work while the root logger itself has no handler.
"""
_placing = ForkSafeLock()


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
    if handler not in _reported_handlers:
        _reported_handlers.add(handler)
        name = type(handler).__name__
        logger.info("OtelConnector does not export the log records that %s of the application exports", name)


_reported_handlers: weakref.WeakSet[logging.Handler] = weakref.WeakSet()


def _is_own(name: str) -> bool:
    return name.startswith(OWN_LOGGERS) and any(name == own or name.startswith(f"{own}.") for own in OWN_LOGGERS)
