"""Handlers of the application: those that a record reaches, and those of OpenTelemetry among them."""

import logging
import logging.handlers
from collections.abc import Iterator

from opentelemetry._logs import NoOpLoggerProvider, get_logger_provider
from opentelemetry._logs._internal import ProxyLoggerProvider


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
    if _is_of_opentelemetry(handler):
        return _has_exporter(handler)
    if isinstance(handler, logging.handlers.MemoryHandler):
        return handler.target is not None and exports(handler.target, level)
    if isinstance(handler, logging.handlers.QueueHandler):
        listener = getattr(handler, "listener", None)  # from Python 3.12 on, where `dictConfig` has made both
        return any(exports(each, level) for each in getattr(listener, "handlers", ()))
    return False


def _is_of_opentelemetry(handler: logging.Handler) -> bool:
    """Whether this is a LoggingHandler of the SDK or of opentelemetry-instrumentation-logging, or a subclass of one."""
    return any(
        base.__name__ == "LoggingHandler" and base.__module__.startswith("opentelemetry.")
        for base in type(handler).__mro__
    )


def _has_exporter(handler: logging.Handler) -> bool:
    provider = getattr(handler, "_logger_provider", None)
    if isinstance(provider, ProxyLoggerProvider):
        provider = get_logger_provider()
    if isinstance(provider, (ProxyLoggerProvider, NoOpLoggerProvider)):
        return False
    processor = getattr(provider, "_multi_log_record_processor", None)
    return getattr(processor, "_log_record_processors", None) != ()
