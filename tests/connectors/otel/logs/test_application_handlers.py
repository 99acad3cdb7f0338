"""OpenTelemetry handlers of the application. They export its records, and Cascade exports the other records."""

import logging
import logging.config
import logging.handlers
import queue
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry._logs import NoOpLoggerProvider, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.runtime.task_context import current_task
from tests.connectors.otel.logs.conftest import bodies, lines
from tests.connectors.otel.logs.conftest import part as app
from tests.lab.receiver import FaultyReceiver
from tests.lab.waiting import HANG

pytestmark = pytest.mark.usefixtures("restored", "collector_in_environment")


class Application:
    """A logger provider of the application, with its exporter."""

    def __init__(self) -> None:
        make: Any = InMemoryLogRecordExporter  # it has no annotations
        self.exporter = make()
        self.provider = LoggerProvider(shutdown_on_exit=False)
        self.provider.add_log_record_processor(SimpleLogRecordProcessor(self.exporter))

    def handler(self, level: int = logging.NOTSET, provider: Any = None) -> logging.Handler:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            return LoggingHandler(level, provider or self.provider)

    @property
    def exported(self) -> list[Any]:
        return [each.log_record for each in self.exporter.get_finished_logs()]


@pytest.fixture
def application() -> Application:
    return Application()


@cs.task
def in_thread(x: int) -> tuple[str, str]:
    return log(x)


@cs.task(threaded=False)
def in_loop(x: int) -> tuple[str, str]:
    return log(x)


@cs.task
async def coroutine(x: int) -> tuple[str, str]:
    return log(x)


@cs.task
def outer(x: int) -> tuple[str, str]:
    return cs.run(in_thread(x), log_level="OFF", connector=OtelConnector(logs=True))


@cs.task
def together(*ids: tuple[str, str], items: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [*ids, *items]


def log(x: int) -> tuple[str, str]:
    task = current_task()
    assert task is not None
    app.warning("%d", x)
    return task.trace_id, task.span_id


def all_task_kinds() -> Any:
    retried = coroutine(5).with_retry(max_attempts=1)
    return together(in_thread(1), in_loop(2), coroutine(3), outer(4), retried, items=in_thread.map(x=[6, 7]))


ALL = ["1", "2", "3", "4", "5", "6", "7"]


def by_root(handler: logging.Handler) -> None:
    logging.root.addHandler(handler)


def by_logger(handler: logging.Handler) -> None:
    app.addHandler(handler)


def by_parent(handler: logging.Handler) -> None:
    logging.getLogger("tests.app").addHandler(handler)


def by_memory_handler(handler: logging.Handler) -> None:
    logging.root.addHandler(logging.handlers.MemoryHandler(1, logging.DEBUG, handler))


def by_subclass(handler: logging.Handler) -> None:
    class Mine(LoggingHandler):
        pass

    handler.__class__ = Mine
    logging.root.addHandler(handler)


@pytest.mark.parametrize("attach", [by_root, by_logger, by_parent, by_memory_handler, by_subclass])
@pytest.mark.parametrize("logs", [True, "INFO", None])
def test_the_applications_handler_exports_each_record_once(
    attach: Callable[[logging.Handler], None],
    logs: Any,
    receiver: FaultyReceiver,
    application: Application,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    attach(application.handler())
    spans = cs.run(all_task_kinds(), connector=OtelConnector(logs=logs), log_level="OFF")
    exported = [each for each in application.exported if each.body in ALL]
    assert sorted(each.body for each in exported) == ALL
    assert bodies(receiver) == []
    assert {(f"{each.trace_id:032x}", f"{each.span_id:016x}") for each in exported} == set(spans)


def test_the_correlation_filter_adds_the_ids_to_the_applications_records(application: Application) -> None:
    handler = application.handler()
    handler.addFilter(cs.CorrelationFilter())
    logging.root.addHandler(handler)
    trace_id, _ = cs.run(in_thread(1), connector=OtelConnector(logs=True), log_level="OFF")
    (exported,) = [each for each in application.exported if each.body == "1"]
    assert (exported.attributes["trace_id"], exported.attributes["task_name"]) == (trace_id, "in_thread")
    assert exported.attributes["run_id"]


def test_a_listener_of_a_queue_counts_as_a_handler(receiver: FaultyReceiver, application: Application) -> None:
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    listener = logging.handlers.QueueListener(handler.queue, application.handler())
    vars(handler)["listener"] = listener  # as dictConfig has it, from Python 3.12 on
    logging.root.addHandler(handler)
    listener.start()
    cs.run(in_thread(1), connector=OtelConnector(logs=True), log_level="OFF")
    listener.stop()
    assert [each.body for each in application.exported if each.body in ALL] == ["1"]
    assert bodies(receiver) == []


def test_a_handler_that_is_added_later_exports_instead(receiver: FaultyReceiver, application: Application) -> None:
    @cs.task
    def work() -> None:
        app.warning("before")
        logging.root.addHandler(application.handler())
        app.warning("after")

    cs.run(work(), connector=OtelConnector(logs=True), log_level="OFF")
    assert bodies(receiver) == ["before"]
    assert [each.body for each in application.exported if each.severity_number == SeverityNumber.WARN] == ["after"]


@pytest.mark.parametrize("why", ["its level", "no exporter", "no provider", "another logger's"])
def test_records_that_no_handler_of_the_application_exports_are_exported(
    why: str, receiver: FaultyReceiver, application: Application
) -> None:
    handlers: dict[str, Callable[[], logging.Handler]] = {
        "its level": lambda: application.handler(logging.ERROR),
        "no exporter": lambda: application.handler(provider=LoggerProvider(shutdown_on_exit=False)),
        "no provider": lambda: application.handler(provider=NoOpLoggerProvider()),
        "another logger's": application.handler,
    }
    logger = logging.getLogger("tests.other") if why == "another logger's" else logging.root
    handler = handlers[why]()
    logger.addHandler(handler)
    cs.run(all_task_kinds(), connector=OtelConnector(logs=True), log_level="OFF")
    logger.removeHandler(handler)
    assert bodies(receiver) == ALL
    assert [each for each in application.exported if each.body in ALL] == []


def test_the_level_of_the_applications_handler_applies_if_only_the_environment_enables_logs(
    receiver: FaultyReceiver, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    logging.root.addHandler(application.handler(logging.ERROR))
    cs.run(all_task_kinds(), connector=OtelConnector(), log_level="OFF")
    assert bodies(receiver) == ["4"]  # of the nested run, whose connector has logs=True


def test_one_record_names_the_handler_of_the_application(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    logging.root.addHandler(application.handler())
    with caplog.at_level(logging.INFO, "cascade.connectors.otel"):
        cs.run(all_task_kinds(), connector=OtelConnector(logs=True), log_level="OFF")
    logged = [message for message in caplog.messages if "LoggingHandler" in message]
    assert logged == ["OtelConnector does not export the log records that LoggingHandler of the application exports"]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("logs", ["None", "True"])
def test_with_the_configurator_of_opentelemetry_each_record_is_exported_once(
    protocol: str, logs: str, receiver: FaultyReceiver
) -> None:
    """`opentelemetry-instrument` calls the same configurator, with these variables, before the program."""
    script = textwrap.dedent(f"""
        from opentelemetry.sdk._configuration import _OTelSDKConfigurator
        _OTelSDKConfigurator().configure()

        import logging.config
        import cascade as cs
        from cascade.connectors.otel import OtelConnector

        @cs.task
        async def configure() -> None:
            logging.getLogger("{app.name}").warning("0")
            logging.config.dictConfig({{"version": 1, "disable_existing_loggers": False, "root": {{"handlers": []}}}})

        @cs.task
        def log(x: int, after: object) -> None:
            logging.getLogger("{app.name}").warning("%d", x)

        cs.run(log.map(x=[1, 2, 3], after=[configure()] * 3), connector=OtelConnector(logs={logs}), log_level="OFF")
    """)
    environ = {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint(protocol),
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environ, timeout=HANG, check=False)
    assert done.returncode == 0
    exported = [line for line in lines(receiver.logs) if line.scope == app.name]
    assert sorted(line.body for line in exported) == ["0", "1", "2", "3"]
    spans = {span.span_id: span.name for span in receiver.spans}
    assert sorted(spans[line.ids[1]] for line in exported) == ["configure", "log", "log", "log"]
