import asyncio
import contextvars
import io
import json
import logging
import logging.handlers
import queue
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import cascade as cs
from cascade.messaging.renderer import IDS
from cascade.runtime import task_context
from cascade.runtime.task_context import TaskContext
from cascade.telemetry.identity import place_run, span_id

RUN = "0f8fad5b-d9cb-469f-a165-70867728950e"
TRACE = RUN.replace("-", "")
TASK = TaskContext(RUN, "t", "work", place_run(RUN), attempt=2)
KNOWN = dict(zip(IDS, (RUN, "t", "work", TRACE, span_id(RUN, "t", 2)), strict=True))

# Not a child of the root logger: pytest's own handlers fail on hostile records.
logger = logging.Logger("tests.log_records")  # noqa: LOG001 - see above


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Output of a handler with the filter and the formatter."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.addFilter(cs.CorrelationFilter())
    handler.setFormatter(cs.JsonFormatter())
    logger.addHandler(handler)
    yield written
    logger.removeHandler(handler)


@pytest.fixture
def in_task() -> Iterator[None]:
    token = task_context.CURRENT_TASK.set(TASK)
    yield
    task_context.CURRENT_TASK.reset(token)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().splitlines()]


def log_raised(error: Exception, message: str, *args: Any, **more: Any) -> None:
    try:
        raise error
    except type(error):
        logger.exception(message, *args, **more)


def record(**fields: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "app", "msg": "hello %s", "args": ("you",), **fields})


def correlated(made: logging.LogRecord) -> dict[str, Any]:
    assert cs.CorrelationFilter().filter(made)
    return {name: vars(made)[name] for name in IDS}


@pytest.mark.usefixtures("in_task")
def test_a_record_made_in_a_task_has_its_ids() -> None:
    made = record()
    assert correlated(made) == KNOWN
    assert logging.Formatter("%(trace_id)s %(span_id)s %(task_name)s").format(made).startswith(f"{TRACE} ")


def test_outside_of_tasks_the_ids_are_empty() -> None:
    assert correlated(record()) == dict.fromkeys(IDS, "")
    assert set(json.loads(cs.JsonFormatter().format(record()))) == {"timestamp", "level", "logger", "message"}


@pytest.mark.usefixtures("in_task")
def test_ids_that_a_record_already_has_are_kept() -> None:
    assert correlated(record(run_id="mine")) == {**KNOWN, "run_id": "mine"}


def test_ids_are_kept_through_a_queue_to_another_thread(stream: io.StringIO) -> None:
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    (target,) = logger.handlers
    relay = logging.handlers.QueueHandler(waiting)
    relay.addFilter(cs.CorrelationFilter())
    listener = logging.handlers.QueueListener(waiting, target)
    listener.start()
    token = task_context.CURRENT_TASK.set(TASK)
    relay.handle(record())
    task_context.CURRENT_TASK.reset(token)
    listener.stop()
    assert KNOWN.items() <= lines(stream)[0].items()


def test_in_a_run_both_kinds_of_tasks_are_correlated(stream: io.StringIO) -> None:
    def plain() -> str:
        logger.info("plain")
        return "x"

    async def coroutine(_: str) -> None:
        await asyncio.sleep(0)
        logger.info("coroutine")

    first = cs.task(plain)()
    last = cs.task(coroutine)(first)
    cs.run(last, log_level="ERROR")
    records = lines(stream)
    assert [(line["message"], line["task_id"]) for line in records] == [
        ("plain", first._uuid),
        ("coroutine", last._uuid),
    ]
    for line in records:
        assert line["trace_id"] == line["run_id"].replace("-", "")
        assert line["span_id"] == span_id(line["run_id"], line["task_id"])


def test_a_thread_of_the_task_has_its_ids_only_with_its_context(stream: io.StringIO) -> None:
    def starts_threads() -> None:
        for run in (lambda function: function(), contextvars.copy_context().run):
            thread = threading.Thread(target=run, args=[lambda: logger.info("in a thread")])
            thread.start()
            thread.join()

    task = cs.task(starts_threads)()
    cs.run(task, log_level="OFF")
    assert [line.get("task_id") for line in lines(stream)] == [None, task._uuid]


@pytest.mark.usefixtures("in_task")
def test_a_json_line_has_the_form_of_the_json_log_of_a_run(stream: io.StringIO) -> None:
    log_raised(LookupError("boom"), "it %s", "failed", extra={"rows": 3, "odd": {1, 2}}, stack_info=True)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("+00:00")
    assert line.pop("exception").endswith("LookupError: boom")
    assert line.pop("stack").startswith("Stack")
    head = {"level": "ERROR", "logger": "tests.log_records", "message": "it failed"}
    assert line == {**head, **KNOWN, "data": {"rows": 3, "odd": "{1, 2}"}}


def test_hostile_records_make_strict_json(stream: io.StringIO) -> None:
    logger.info(*("two %s %s", "one"))
    logger.info("%s", HostileError())
    logger.info(HostileError())
    logger.info("\ud800\n\x00", extra={"bad": float("nan"), "worse": HostileError()})
    log_raised(HostileError(), "it has no text")
    records = lines(stream)
    assert [line["message"] for line in records] == [
        "two %s %s <arguments that cannot be shown: TypeError>",
        "%s <arguments that cannot be shown: RuntimeError>",
        "<HostileError> <arguments that cannot be shown: RuntimeError>",
        "\ud800\n\x00",
        "it has no text",
    ]
    assert records[3]["data"]["bad"] == "nan"


def test_secrets_are_masked_in_json(stream: io.StringIO) -> None:
    extra = {"db_password": "hunter2X9", "n": 1}
    log_raised(ValueError("token=hunter2X9"), "Authorization: Bearer %s", "hunter2X9", extra=extra)
    (line,) = lines(stream)
    assert "hunter2" not in str(line)
    assert line["data"] == {"db_password": "***", "n": 1}
    assert "ValueError: token=***" in line["exception"]


def test_the_fields_of_a_record_factory_are_extras_whenever_it_is_set() -> None:
    script = textwrap.dedent("""
        import io, json, logging

        class Record(logging.LogRecord):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.request = "r1"

        logging.setLogRecordFactory(Record)
        import cascade as cs

        handler = logging.StreamHandler()
        handler.setFormatter(cs.JsonFormatter())
        logging.root.addHandler(handler)
        logging.warning("hello")
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr)["data"] == {"request": "r1"}
