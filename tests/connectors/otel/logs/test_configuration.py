"""The logging configuration of the application: its OpenTelemetry handlers, and changes of it inside of a run."""

import configparser
import logging
import logging.config
import logging.handlers
import queue
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry._logs import NoOpLoggerProvider, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.connectors.otel.logs import _application
from cascade.runtime.task_context import current_task
from cascade.testing import OtlpReceiver
from tests.connectors.otel.logs.conftest import lines
from tests.waiting import HANG

app = logging.getLogger("tests.app.part")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The configuration of logging as it was before."""
    root, names = logging.root, ("tests.app", app.name)
    handlers, level, known = list(root.handlers), root.level, dict(logging.root.manager.loggerDict)
    disabled = {name: each.disabled for name, each in known.items() if isinstance(each, logging.Logger)}
    app.setLevel(logging.INFO)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in disabled.items():
        logging.getLogger(name).disabled = was
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


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


def bodies(receiver: OtlpReceiver) -> list[str]:
    return sorted(line.body for line in lines(receiver.logs) if line.scope == app.name)


@cs.task
def in_thread(x: int) -> tuple[str, str]:
    return say(x)


@cs.task(threaded=False)
def in_loop(x: int) -> tuple[str, str]:
    return say(x)


@cs.task
async def coroutine(x: int) -> tuple[str, str]:
    return say(x)


@cs.task
def outer(x: int) -> tuple[str, str]:
    return cs.run(in_thread(x), log_level="OFF", connector=OtelConnector(logs=True))


@cs.task
def together(*ids: tuple[str, str], items: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [*ids, *items]


def say(x: int) -> tuple[str, str]:
    task = current_task()
    assert task is not None
    app.warning("%d", x)
    return task.trace_id, task.span_id


def all_shapes() -> Any:
    retried = coroutine(5).with_retry(max_attempts=1)
    return together(in_thread(1), in_loop(2), coroutine(3), outer(4), retried, items=in_thread.map(x=[6, 7]))


ALL = ["1", "2", "3", "4", "5", "6", "7"]


@pytest.fixture
def _endpoint(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")


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


@pytest.mark.usefixtures("_endpoint")
@pytest.mark.parametrize("attach", [by_root, by_logger, by_parent, by_memory_handler, by_subclass])
@pytest.mark.parametrize("logs", [True, "INFO", None])
def test_the_applications_handler_exports_each_record_once(
    attach: Callable[[logging.Handler], None],
    logs: Any,
    receiver: OtlpReceiver,
    application: Application,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    attach(application.handler())
    spans = cs.run(all_shapes(), connector=OtelConnector(logs=logs), log_level="OFF")
    exported = [each for each in application.exported if each.body in ALL]
    assert sorted(each.body for each in exported) == ALL
    assert bodies(receiver) == []
    assert {(f"{each.trace_id:032x}", f"{each.span_id:016x}") for each in exported} == set(spans)


@pytest.mark.usefixtures("_endpoint")
def test_the_correlation_filter_adds_the_ids_to_the_applications_records(application: Application) -> None:
    handler = application.handler()
    handler.addFilter(cs.CorrelationFilter())
    logging.root.addHandler(handler)
    trace_id, _ = cs.run(in_thread(1), connector=OtelConnector(logs=True), log_level="OFF")
    (exported,) = [each for each in application.exported if each.body == "1"]
    assert (exported.attributes["trace_id"], exported.attributes["task_name"]) == (trace_id, "in_thread")
    assert exported.attributes["run_id"]


@pytest.mark.usefixtures("_endpoint")
def test_a_listener_of_a_queue_counts_as_a_handler(receiver: OtlpReceiver, application: Application) -> None:
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    listener = logging.handlers.QueueListener(handler.queue, application.handler())
    vars(handler)["listener"] = listener  # as dictConfig has it, from Python 3.12 on
    logging.root.addHandler(handler)
    listener.start()
    cs.run(in_thread(1), connector=OtelConnector(logs=True), log_level="OFF")
    listener.stop()
    assert [each.body for each in application.exported if each.body in ALL] == ["1"]
    assert bodies(receiver) == []


@pytest.mark.usefixtures("_endpoint")
def test_a_handler_that_comes_later_takes_over(receiver: OtlpReceiver, application: Application) -> None:
    @cs.task
    def work() -> None:
        app.warning("before")
        logging.root.addHandler(application.handler())
        app.warning("after")

    cs.run(work(), connector=OtelConnector(logs=True), log_level="OFF")
    assert bodies(receiver) == ["before"]
    assert [each.body for each in application.exported if each.severity_number == SeverityNumber.WARN] == ["after"]


@pytest.mark.usefixtures("_endpoint")
@pytest.mark.parametrize("why", ["its level", "no exporter", "no provider", "another logger's"])
def test_what_the_applications_handler_does_not_export_is_exported(
    why: str, receiver: OtlpReceiver, application: Application
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
    cs.run(all_shapes(), connector=OtelConnector(logs=True), log_level="OFF")
    logger.removeHandler(handler)
    assert bodies(receiver) == ALL
    assert [each for each in application.exported if each.body in ALL] == []


@pytest.mark.usefixtures("_endpoint")
def test_the_level_of_the_applications_handler_holds_where_the_environment_alone_asks_for_logs(
    receiver: OtlpReceiver, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    logging.root.addHandler(application.handler(logging.ERROR))
    cs.run(all_shapes(), connector=OtelConnector(), log_level="OFF")
    assert bodies(receiver) == ["4"]  # of the nested run, whose connector has logs=True


@pytest.mark.usefixtures("_endpoint")
def test_one_record_names_the_handler_of_the_application(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    logging.root.addHandler(application.handler())
    with caplog.at_level(logging.INFO, "cascade.connectors.otel"):
        cs.run(all_shapes(), connector=OtelConnector(logs=True), log_level="OFF")
    told = [message for message in caplog.messages if "LoggingHandler" in message]
    assert told == ["OtelConnector does not export the log records that LoggingHandler of the application exports"]


def by_dict() -> None:
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"handlers": []}})


def by_basic() -> None:
    logging.basicConfig(force=True)


def by_hand() -> None:
    logging.root.handlers.clear()


def by_list() -> None:
    logging.root.handlers = []


CHANGES = pytest.mark.parametrize("change", [by_dict, by_basic, by_hand, by_list])


@pytest.mark.usefixtures("_endpoint")
@CHANGES
def test_a_new_configuration_inside_of_a_run_ends_no_export(change: Callable[[], None], receiver: OtlpReceiver) -> None:
    @cs.task(threaded=False)
    def configure() -> int:
        app.warning("0")
        change()
        app.warning("1")
        return 2

    @cs.task
    def later(x: int) -> None:
        app.warning("%d", x)

    cs.run(later(configure()), connector=OtelConnector(logs=True), log_level="OFF")
    assert bodies(receiver) == ["0", "1", "2"]


@pytest.mark.usefixtures("_endpoint")
def test_basic_config_inside_of_a_run_has_an_effect(capsys: pytest.CaptureFixture[str]) -> None:
    logging.root.handlers.clear()

    @cs.task
    def work() -> None:
        logging.basicConfig(format="configured: %(message)s")
        app.warning("shown")

    cs.run(work(), connector=OtelConnector(logs=True), log_level="OFF")
    assert capsys.readouterr().err == "configured: shown\n"


@pytest.mark.usefixtures("_endpoint")
def test_a_logger_that_does_not_propagate_or_is_disabled_is_not_exported(receiver: OtlpReceiver) -> None:
    @cs.task
    def work() -> None:
        app.propagate = False
        app.warning("kept")
        app.propagate = True
        app.warning("exported")
        logging.config.dictConfig({"version": 1})  # disables the loggers that it does not name
        app.warning("disabled")

    cs.run(work(), connector=OtelConnector(logs=True), log_level="OFF")
    assert bodies(receiver) == ["exported"]


def disabled_by_dict_config() -> None:
    logging.config.dictConfig({"version": 1})


def disabled_by_file_config() -> None:
    parser = configparser.ConfigParser()
    parser.read_dict(
        {
            "loggers": {"keys": "root"},
            "handlers": {"keys": ""},
            "formatters": {"keys": ""},
            "logger_root": {"level": "WARNING", "handlers": ""},
        }
    )
    logging.config.fileConfig(parser)


def not_propagating() -> None:
    loggers = {app.name: {"propagate": False, "handlers": []}}
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": loggers})


class Seen(logging.Handler):
    """Keeps the texts of the records."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.mark.usefixtures("_endpoint")
@pytest.mark.parametrize("change", [disabled_by_dict_config, disabled_by_file_config, not_propagating])
def test_a_configuration_that_ends_the_export_of_a_logger_is_reported_once(
    change: Callable[[], None], receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    monkeypatch.setattr(_application, "_reported", set())

    @cs.task
    def work() -> None:
        app.warning("exported")
        change()
        logging.root.addHandler(seen)
        app.warning("no longer")

    for _ in range(2):
        cs.run(work(), connector=OtelConnector(logs=True), log_level="OFF")
        app.disabled, app.propagate = False, True
    assert bodies(receiver) == ["exported", "exported"]
    (warning,) = [text for text in seen.texts if "are not exported" in text]
    assert app.name in warning
    assert "disable_existing_loggers=False" in warning


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("logs", ["None", "True"])
def test_a_process_that_opentelemetrys_configurator_has_set_up_exports_each_record_once(
    protocol: str, logs: str, receiver: OtlpReceiver
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
        def say(x: int, after: object) -> None:
            logging.getLogger("{app.name}").warning("%d", x)

        cs.run(say.map(x=[1, 2, 3], after=[configure()] * 3), connector=OtelConnector(logs={logs}), log_level="OFF")
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
    said = [line for line in lines(receiver.logs) if line.scope == app.name]
    assert sorted(line.body for line in said) == ["0", "1", "2", "3"]
    spans = {span.span_id: span.name for span in receiver.spans}
    assert sorted(spans[line.ids[1]] for line in said) == ["configure", "say", "say", "say"]
