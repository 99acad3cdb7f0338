"""`log_format="logging"`: the messages of a run as records of the logger `cascade`."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.messaging.bus import bus as messaging_bus
from cascade.messaging.renderer import LoggingRenderer


@cs.task
def load(x: int) -> int:
    return x


@cs.task
def fail(x: int) -> int:
    raise ValueError(f"wrong token=hunter2 {x}")


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="cascade")


def records(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "cascade"]


def test_the_messages_of_a_run_are_records(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    connector = MemoryConnector()
    cs.run(load(1).with_label("one"), log_format="logging", connector=connector)
    assert capfd.readouterr().err == ""
    started, running, finished, ended, trace = records(caplog)
    assert started.getMessage() == "Starting run for target(s): ['load']"
    assert running.getMessage() == "Running load[one]"
    assert finished.getMessage().startswith("Finished load[one] in 0.")
    assert [record.levelname for record in records(caplog)] == ["INFO"] * 5
    assert [record.event_id for record in (started, finished, ended)] == [
        *("run.started", "task.finished_success", "run.finished_success")
    ]
    (payload,) = [p for p in connector.payloads if p["body"].get("state") == "COMPLETED"]
    ids = ("run_id", "trace_id", "span_id")
    assert [getattr(finished, name) for name in ids] == [payload[name] for name in ids]
    assert (finished.task_id, finished.task_name, finished.label) == (payload["body"]["task_id"], "load", "one")
    assert type(finished.duration) is float
    assert trace.trace_id == payload["trace_id"]
    assert (started.task_id, started.task_name) == ("", "")


def test_levels_and_values_of_failures(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="wrong"):
        cs.run(fail.map(x=[5]).with_retry(1), log_format="logging")
    by_id = {record.event_id: record for record in records(caplog)}
    assert by_id["task.retrying"].levelname == "WARNING"
    failed = by_id["task.finished_failure"]
    assert (failed.levelname, failed.map_index) == ("ERROR", 0)
    assert "hunter2" not in failed.error + failed.getMessage()
    assert by_id["run.finished_failure"].levelname == "ERROR"


@pytest.mark.parametrize(("log_level", "lowest"), [("DEBUG", 10), ("INFO", 20), ("ERROR", 40), ("OFF", 100)])
def test_log_level_applies(log_level: str, lowest: int, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="wrong"):
        cs.run(fail.map(x=[1]), log_format="logging", log_level=log_level)
    levels = {record.levelno for record in records(caplog)}
    assert min(levels, default=100) == lowest


def test_the_level_of_the_logger_applies(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="cascade")
    cs.run(load(1), log_format="logging")
    assert records(caplog) == []


def test_a_percent_sign_is_no_format(caplog: pytest.LogCaptureFixture) -> None:
    cs.run(load(1).with_label("100%s"), log_format="logging")
    assert "Running load[100%s]" in caplog.messages


@pytest.fixture
def handler() -> Iterator[logging.StreamHandler[io.StringIO]]:
    found = logging.StreamHandler(io.StringIO())
    logging.getLogger("cascade").addHandler(found)
    yield found
    logging.getLogger("cascade").removeHandler(found)


def test_the_formatter_and_the_filter_use_the_attributes(handler: logging.StreamHandler[io.StringIO]) -> None:
    handler.setFormatter(cs.JsonFormatter())
    handler.addFilter(cs.CorrelationFilter())
    nested = cs.task(lambda: cs.run(load(1), log_format="logging"), name="nested")
    cs.run(nested(), log_format="logging")
    lines = [json.loads(line) for line in handler.stream.getvalue().splitlines()]
    outer = lines[0]["run_id"]
    (inner,) = [line for line in lines if line["event_id"] == "run.started" and line["run_id"] != outer]
    assert "task_name" not in inner, "the record is about the run, not about the task that has started it"
    (finished,) = [line for line in lines if line["message"].startswith("Finished nested")]
    assert finished["logger"] == "cascade"
    assert finished["task_name"] == "nested"
    assert finished["data"].keys() == {"duration"}


@pytest.mark.injects_errors("a handler of the program raises an error")
def test_an_error_of_a_handler_does_not_fail_the_run() -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError(record.name)

    broken = Broken()
    logging.getLogger("cascade").addHandler(broken)
    try:
        assert cs.run(load(1), log_format="logging") == 1
    finally:
        logging.getLogger("cascade").removeHandler(broken)


def test_a_value_with_the_name_of_a_field_of_records_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    LoggingRenderer(messaging_bus.store).render("run.started", "info", target_tasks=["a"], args=1, message="m")
    (record,) = records(caplog)
    assert record.getMessage() == "Starting run for target(s): ['a']"
