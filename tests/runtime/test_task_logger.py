"""`cs.get_logger`: records of tasks with the ids and the label of the task."""

import asyncio
import io
import json
import logging
import threading
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest

import cascade as cs

logger = cs.get_logger()


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def records(caplog: pytest.LogCaptureFixture, name: str = "cascade.task") -> list[Any]:
    return [record for record in caplog.records if record.name == name]


@cs.task
def load(path: str) -> str:
    logger.info("%d%% of %s", 50, path)
    return path


def test_a_record_has_the_task_and_its_label(caplog: pytest.LogCaptureFixture) -> None:
    result = cs.run(load.map(path=["a", "b"]).with_label(lambda path: f"{path}.txt 100%"), log_level="OFF")
    assert result == ["a", "b"]
    first, second = sorted(records(caplog), key=lambda record: record.map_index)
    assert first.getMessage() == "load[a.txt 100%]: 50% of a"
    assert (second.task_name, second.label, second.map_index, second.attempt) == ("load", "b.txt 100%", 1, "")
    assert first.run_id == second.run_id
    assert first.task_id != second.task_id
    assert (first.trace_id, len(first.span_id)) == (first.run_id.replace("-", ""), 16)


def test_a_record_of_an_item_without_a_label_has_its_index(caplog: pytest.LogCaptureFixture) -> None:
    cs.run(load.map(path=["a", "b"]), log_level="OFF")
    assert sorted(record.getMessage() for record in records(caplog)) == ["load[0]: 50% of a", "load[1]: 50% of b"]
    assert {record.label for record in records(caplog)} == {""}


def test_a_record_has_the_attempt_and_the_exception(caplog: pytest.LogCaptureFixture) -> None:
    @cs.task
    def flaky() -> None:
        task = cs.current_task()
        try:
            if task is not None and task.attempt == 1:
                raise ConnectionError("refused")  # noqa: TRY301
        except ConnectionError:
            logger.exception("no server")
            raise

    cs.run(flaky().with_retry(1), log_level="OFF")
    (record,) = records(caplog)
    assert record.attempt == 1
    assert record.exc_info[0] is ConnectionError
    assert record.levelname == "ERROR"


async def test_coroutines_that_alternate_have_their_own_task(caplog: pytest.LogCaptureFixture) -> None:
    both, started = asyncio.Event(), list[str]()

    @cs.task
    async def wait(name: str) -> None:
        started.append(name)
        if len(started) == 2:
            both.set()
        await both.wait()
        logger.info(name)

    await cs.run_async(wait.map(name=["a", "b"]).with_label(lambda name: name), log_level="OFF")
    assert {record.getMessage() for record in records(caplog)} == {"wait[a]: a", "wait[b]: b"}


def test_outside_of_tasks_a_record_has_no_ids(caplog: pytest.LogCaptureFixture) -> None:
    logger.info("%s", "outside")
    (record,) = records(caplog)
    assert record.getMessage() == "outside"
    names = ("run_id", "task_id", "task_name", "trace_id", "span_id", "attempt", "map_index", "label")
    assert {getattr(record, name) for name in names} == {""}


def test_a_thread_of_a_task_has_the_task_if_it_runs_in_its_context(caplog: pytest.LogCaptureFixture) -> None:
    @cs.task
    def work() -> None:
        for target in (copy_context().run, lambda call: call()):
            thread = threading.Thread(target=target, args=(lambda: logger.info("in a thread"),))
            thread.start()
            thread.join()

    cs.run(work(), log_level="OFF")
    assert [record.getMessage() for record in records(caplog)] == ["work: in a thread", "in a thread"]


def test_a_record_has_the_name_the_extra_and_the_line_of_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    own = cs.get_logger("app.tables")

    @cs.task
    def work() -> None:
        own.warning("slow", extra={"table": "users", "label": "mine"})

    cs.run(work(), log_level="OFF")
    (record,) = records(caplog, "app.tables")
    assert (record.table, record.label, record.task_name) == ("users", "mine", "work")
    assert (record.pathname, record.funcName) == (__file__, "work")


def test_a_record_below_the_level_costs_no_text(caplog: pytest.LogCaptureFixture) -> None:
    class Text:
        def __str__(self) -> str:
            raise AssertionError("unused")

    @cs.task
    def work() -> None:
        logger.debug(Text())

    cs.run(work(), log_level="OFF")
    assert records(caplog) == []


def test_a_secret_in_a_label_is_masked_and_a_line_break_is_escaped(caplog: pytest.LogCaptureFixture) -> None:
    cs.run(load("a").with_label("token=hunter2\nINFO forged"), log_level="OFF")
    (record,) = records(caplog)
    assert "hunter2" not in record.getMessage() + record.label
    assert "\n" not in record.getMessage()


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream, task_logger = io.StringIO(), logging.getLogger("cascade.task")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(cs.JsonFormatter())
    task_logger.addHandler(handler)
    yield stream
    task_logger.removeHandler(handler)


def test_json_has_the_task_in_attributes_and_not_in_the_text(lines: io.StringIO) -> None:
    cs.run(load.map(path=["a"]).with_label(lambda path: path), log_level="OFF")
    logger.info("100%")
    line, outside = map(json.loads, lines.getvalue().splitlines())
    assert (line["message"], line["task_name"], line["data"]) == ("50% of a", "load", {"map_index": 0, "label": "a"})
    assert outside.keys() == {"timestamp", "level", "logger", "message"}
    assert outside["message"] == "100%"
