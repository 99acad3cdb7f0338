"""The logging configuration of the application: handlers that a record reaches, and loggers that lead to the export."""

import logging
import logging.handlers
from collections.abc import Collection, Iterator
from functools import lru_cache

from opentelemetry._logs import NoOpLoggerProvider, get_logger_provider
from opentelemetry._logs._internal import ProxyLoggerProvider

from cascade._loggers import get_logger


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

_reported: set[str] = set()


def open_loggers() -> frozenset[str]:
    """Return the names of the loggers that pass their records on."""
    known = [logging.root, *logging.root.manager.loggerDict.values()]
    return frozenset(each.name for each in known if isinstance(each, logging.Logger) and _is_open(each))


def report_closed(before: frozenset[str], used: Collection[str]) -> None:
    """Warn of loggers that passed records on before and no longer do, once for each logger; first of those in `used`."""
    closed = sorted(before - open_loggers() - _reported, key=lambda name: (name not in used, name))
    if not closed:
        return
    _reported.update(closed)
    names = ", ".join(map(repr, closed[:_MAX_NAMES])) + (", …" if len(closed) > _MAX_NAMES else "")
    logging.getLogger(_LOGGER).disabled = False  # it shares the fate of the loggers that it reports
    get_logger(_LOGGER).warning(
        "OtelConnector: loggers (%s) were disabled or set not to propagate during the run, and their records are not "
        "exported; configure logging with disable_existing_loggers=False and propagate=True",
        names,
    )


def _is_open(logger: logging.Logger) -> bool:
    return logger.propagate and not logger.disabled and logger.name.partition(".")[0] not in _NOT_REPORTED
