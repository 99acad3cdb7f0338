"""Changes of the logging configuration during a run."""

import configparser
import logging
import logging.config
import logging.handlers
from collections.abc import Callable
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.connectors.otel.logs import run_logs
from cascade.testing import OtlpReceiver
from tests.connectors.otel.logs.conftest import bodies
from tests.connectors.otel.logs.conftest import part as app

pytestmark = pytest.mark.usefixtures("restored", "collector_in_environment")


def by_dict() -> None:
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"handlers": []}})


def by_basic() -> None:
    logging.basicConfig(force=True)


def by_hand() -> None:
    logging.root.handlers.clear()


def by_list() -> None:
    logging.root.handlers = []


CHANGES = pytest.mark.parametrize("change", [by_dict, by_basic, by_hand, by_list])


@CHANGES
def test_a_new_logging_configuration_during_a_run_does_not_stop_the_export(
    change: Callable[[], None], receiver: OtlpReceiver
) -> None:
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


def test_basic_config_works_during_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    logging.root.handlers.clear()

    @cs.task
    def work() -> None:
        logging.basicConfig(format="configured: %(message)s")
        app.warning("shown")

    cs.run(work(), connector=OtelConnector(logs=True), log_level="OFF")
    assert capsys.readouterr().err == "configured: shown\n"


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


def root_not_propagating() -> None:
    loggers: dict[str, Any] = {"": {"handlers": [], "level": "INFO", "propagate": False}}
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": loggers})


def test_a_root_logger_that_does_not_propagate_is_exported(receiver: OtlpReceiver) -> None:
    """Many programs configure the logger "" with propagate=False, which has no effect without a parent."""

    @cs.task
    def work() -> None:
        app.info("exported")

    root_not_propagating()
    cs.run(work(), connector=OtelConnector(logs=True), log_level="OFF")
    assert bodies(receiver) == ["exported"]


def test_a_root_logger_that_no_longer_propagates_is_reported(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    monkeypatch.setattr(run_logs, "reported_loggers", set())

    @cs.task
    def work() -> None:
        app.warning("exported")
        root_not_propagating()
        logging.root.addHandler(seen)

    cs.run(work(), connector=OtelConnector(logs=True), log_level="OFF")
    assert bodies(receiver) == ["exported"]
    (warning,) = [text for text in seen.texts if "are not exported" in text]
    assert "'root'" in warning
    cs.run(work(), connector=OtelConnector(logs=True), log_level="OFF")
    assert bodies(receiver) == ["exported", "exported"]


@pytest.mark.parametrize("change", [disabled_by_dict_config, disabled_by_file_config, not_propagating])
def test_a_configuration_that_ends_the_export_of_a_logger_is_reported_once(
    change: Callable[[], None], receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    monkeypatch.setattr(run_logs, "reported_loggers", set())

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


def test_a_disabled_logger_is_reported_at_the_end_of_each_run_while_others_continue(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may have a run in progress at all times."""
    seen = Seen()
    monkeypatch.setattr(run_logs, "reported_loggers", set())
    connector = OtelConnector(logs=True)

    @cs.task
    def inner() -> None:
        app.warning("exported")
        disabled_by_dict_config()
        logging.root.addHandler(seen)

    @cs.task
    def outer() -> list[str]:
        cs.run(inner(), connector=connector, log_level="OFF")
        return list(seen.texts)

    (warning,) = cs.run(outer(), connector=connector, log_level="OFF")
    assert app.name in warning
    assert bodies(receiver) == ["exported"]
