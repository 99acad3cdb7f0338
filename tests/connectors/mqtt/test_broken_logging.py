"""Log handlers that raise exceptions, with every connector."""

import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.otel import OtelConnector
from cascade.runtime.exceptions import TelemetryLostError
from stack.addresses import reserved_port
from tests.lab.receiver import Fault, FaultyReceiver
from tests.lab.workflows import TOTAL, all_task_kinds

NAMESPACES = ("cascade", "opentelemetry")


class Raising(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(record.getMessage())


class Recursive(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("cascade.connectors.otel").warning("again")


def raising_filter(record: logging.LogRecord) -> bool:
    raise LookupError(record.getMessage())


@pytest.fixture(params=["handler", "filter of a handler", "filter of a logger", "recursion", "closed stream"])
def broken_logging(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each record of Cascade and of the OpenTelemetry SDK, DEBUG included, leads to an exception."""
    closed = io.StringIO()
    closed.close()
    makers: dict[str, Callable[[], logging.Handler]] = {
        "handler": Raising,
        "recursion": Recursive,
        "closed stream": lambda: logging.StreamHandler(closed),
    }
    handler = makers.get(request.param, logging.NullHandler)()
    if request.param == "filter of a handler":
        handler.addFilter(raising_filter)
    names = [name for name in logging.root.manager.loggerDict if name.startswith(("cascade", "opentelemetry"))]
    loggers = [logging.getLogger(name) for name in (names if request.param == "filter of a logger" else NAMESPACES)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        if request.param == "filter of a logger":
            logger.addFilter(raising_filter)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.removeFilter(raising_filter)
        logger.setLevel(level)


def connectors(endpoint: str) -> list[Any]:
    dead = reserved_port()
    return [
        OtelConnector(endpoint, logs=True),
        OtelConnector(f"http://127.0.0.1:{dead}", logs=True),
        OtelConnector(f"http://127.0.0.1:{dead}", protocol="grpc"),
        OtelConnector(tracer_provider=TracerProvider(shutdown_on_exit=False)),
        MqttConnector("127.0.0.1", dead),
        [MemoryConnector(), OtelConnector(f"http://127.0.0.1:{dead}"), MqttConnector("127.0.0.1", dead)],
    ]


@pytest.mark.injects_errors("a handler that recurses")
@pytest.mark.usefixtures("broken_logging")
def test_log_handlers_that_raise_do_not_end_a_run() -> None:
    with FaultyReceiver() as receiver:
        for connector in connectors(receiver.http_endpoint):
            assert cs.run(all_task_kinds(), connector=connector, log_level="OFF") == TOTAL
        assert len(receiver.spans.named("run total")) == 1
        receiver.fault = Fault(http_status=400)
        with pytest.raises(TelemetryLostError):
            cs.run(all_task_kinds(), connector=OtelConnector(receiver.http_endpoint, strict=True), log_level="OFF")
