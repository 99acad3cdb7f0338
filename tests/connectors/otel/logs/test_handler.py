import logging
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from cascade.connectors.otel.logs.handler import TaskLogHandler, attach, detach
from cascade.runtime import task_context
from cascade.runtime.task_context import TaskContext
from cascade.telemetry.identity import place_run
from tests.connectors.otel.logs.conftest import RUN, inside
from tests.lab.waiting import HANG


class Recorder:
    """Handler that keeps the encoded records and the reasons of the refused ones."""

    def __init__(self, **options: Any) -> None:
        self.items: list[bytes] = []
        self.refused: list[str] = []
        self.handler = TaskLogHandler(self.items.append, self.refused.append, {RUN}, **options)

    def handle(self, name: str = "app", message: Any = "hello", *args: Any, level: int = 20, **fields: Any) -> None:
        made = {"name": name, "msg": message, "args": args, "levelno": level, "lineno": 1, **fields}
        self.handler.handle(logging.makeLogRecord(made))


@pytest.mark.parametrize(
    "task", [None, TaskContext("another run", "t", "work", place_run("another run"))], ids=["no task", "another's"]
)
def test_only_records_of_tasks_of_its_runs_are_handled(task: TaskContext | None) -> None:
    recorder = Recorder()
    token = task_context.CURRENT_TASK.set(task)
    recorder.handle()
    task_context.CURRENT_TASK.reset(token)
    assert recorder.items == []
    with inside():
        recorder.handle()
    assert len(recorder.items) == 1


def test_records_below_the_level_are_ignored() -> None:
    recorder = Recorder(min_level=logging.WARNING)
    with inside():
        for level in (20, 29, 30, 50):
            recorder.handle(level=level)
    assert len(recorder.items) == 2


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("opentelemetry", 0),
        ("opentelemetry.exporter", 0),
        ("cascade.connectors.otel", 0),
        ("opentelemetry_demo", 1),
        ("cascade.runtime", 1),
        ("app.opentelemetry", 1),
    ],
)
def test_records_of_the_export_are_ignored(name: str, count: int) -> None:
    recorder = Recorder()
    with inside():
        recorder.handle(name)
    assert len(recorder.items) == count


def test_records_that_are_logged_during_the_encoding_are_ignored() -> None:
    recorder = Recorder()

    class LoggingArgument:
        def __str__(self) -> str:
            recorder.handle(message=self)
            return "argument"

    with inside():
        recorder.handle("app", LoggingArgument())
    assert len(recorder.items) == 1
    assert b"argument" in recorder.items[0]


def test_records_that_are_logged_during_put_are_ignored() -> None:
    seen = []

    def put(_: bytes) -> None:
        seen.append(1)
        handler.handle(logging.makeLogRecord({"name": "app", "levelno": 20, "lineno": 1}))

    handler = TaskLogHandler(put, pytest.fail, {RUN})
    with inside():
        handler.handle(logging.makeLogRecord({"name": "app", "levelno": 20, "lineno": 1}))
    assert len(seen) == 1


@pytest.mark.injects_errors("fields with invalid types")
@pytest.mark.parametrize(
    "fields",
    [
        {"lineno": "seven"},
        {"levelname": 3},
        {"level": "INFO"},
        {"name": None, "level": 40},
        {"name": 3, "level": 40},
        {"exc_info": (1, 2, 3)},
    ],
)
def test_an_invalid_record_does_not_raise(fields: dict[str, Any]) -> None:
    recorder = Recorder()
    with inside():
        recorder.handle(**fields)
    assert len(recorder.items) + len(recorder.refused) == 1


def test_threads_encode_in_parallel() -> None:
    arrived = threading.Barrier(2, timeout=HANG)

    def put(_: bytes) -> None:
        arrived.wait()

    handler = TaskLogHandler(put, pytest.fail, {RUN})

    def log() -> None:
        with inside():
            handler.handle(logging.makeLogRecord({"name": "app", "levelno": 20, "lineno": 1}))

    threads = [threading.Thread(target=log) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not arrived.broken


def test_detaching_a_handler_does_not_affect_another_handler(app: logging.Logger) -> None:
    """Two connectors have overlapping runs. A run of the first one ends while a record is passed on."""
    first, second = Recorder(), Recorder()

    def ends(_: logging.LogRecord) -> bool:
        detach(first.handler)
        return True

    first.handler.addFilter(ends)
    for recorder in (first, second):
        attach(recorder.handler)
    with inside():
        app.info("seen by both")
        app.info("seen by the second")
    detach(second.handler)
    assert (len(first.items), len(second.items)) == (1, 2)


def test_filters_of_the_handler_apply() -> None:
    recorder = Recorder()
    recorder.handler.addFilter(lambda record: record.name != "noisy")
    with inside():
        recorder.handle("noisy")
        recorder.handle("app")
    assert len(recorder.items) == 1


def test_an_exception_of_a_filter_does_not_reach_the_task() -> None:
    recorder = Recorder()

    def raises(record: logging.LogRecord) -> bool:
        raise LookupError(record.name)

    recorder.handler.addFilter(raises)
    with inside():
        recorder.handle()
    assert (recorder.items, recorder.refused) == ([], ["a record cannot be handled: LookupError"])


def test_a_closed_stderr_does_not_raise_in_a_program_without_handlers() -> None:
    script = textwrap.dedent("""
        import logging, sys
        from cascade.connectors.otel.logs.handler import TaskLogHandler, attach
        from tests.connectors.otel.logs.conftest import RUN, inside
        attach(TaskLogHandler(lambda item: print("exported"), print, {RUN}))
        sys.stderr.close()
        with inside():
            logging.getLogger("app").warning("seen by the collector alone")
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "exported\n"


def test_a_library_that_adds_a_missing_handler_finds_none() -> None:
    script = textwrap.dedent("""
        import logging
        from cascade.connectors.otel.logs.handler import TaskLogHandler, attach
        attach(TaskLogHandler(print, print, {}))
        library = logging.getLogger("library")
        assert not library.hasHandlers()
        logging.root.addHandler(logging.NullHandler())
        assert library.hasHandlers()
    """)
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_program_without_handlers_still_prints_warnings() -> None:
    script = textwrap.dedent("""
        import logging
        from cascade.connectors.otel.logs.handler import TaskLogHandler, attach
        for _ in range(2):
            attach(TaskLogHandler(print, print, {}))
        app, other = logging.getLogger("app.part"), logging.getLogger("other")
        app.warning("seen")
        app.info("unseen")
        logging.lastResort.setLevel(logging.INFO)
        app.setLevel(logging.INFO)
        app.info("seen too")
        other.addHandler(logging.NullHandler())
        other.error("recorder care of")
        logging.root.addHandler(logging.NullHandler())
        app.warning("recorder care of")
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "seen\nseen too\n")
