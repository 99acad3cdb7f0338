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


class Taken:
    """A handler of its own, and what it took."""

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
def test_only_what_a_task_of_its_runs_says_is_taken(task: TaskContext | None) -> None:
    taken = Taken()
    token = task_context.CURRENT_TASK.set(task)
    taken.handle()
    task_context.CURRENT_TASK.reset(token)
    assert taken.items == []
    with inside():
        taken.handle()
    assert len(taken.items) == 1


def test_only_from_its_level_on() -> None:
    taken = Taken(min_level=logging.WARNING)
    with inside():
        for level in (20, 29, 30, 50):
            taken.handle(level=level)
    assert len(taken.items) == 2


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
def test_what_is_said_about_exporting_is_not_exported(name: str, count: int) -> None:
    taken = Taken()
    with inside():
        taken.handle(name)
    assert len(taken.items) == count


def test_nor_what_encoding_a_record_says() -> None:
    taken = Taken()

    class Talkative:
        def __str__(self) -> str:
            taken.handle(message=self)
            return "talked"

    with inside():
        taken.handle("app", Talkative())
    assert len(taken.items) == 1
    assert b"talked" in taken.items[0]


def test_nor_what_putting_one_away_says() -> None:
    seen = []

    def put(_: bytes) -> None:
        seen.append(1)
        handler.handle(logging.makeLogRecord({"name": "app", "levelno": 20, "lineno": 1}))

    handler = TaskLogHandler(put, pytest.fail, {RUN})
    with inside():
        handler.handle(logging.makeLogRecord({"name": "app", "levelno": 20, "lineno": 1}))
    assert len(seen) == 1


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
def test_a_record_that_is_none_harms_nobody(fields: dict[str, Any]) -> None:
    taken = Taken()
    with inside():
        taken.handle(**fields)
    assert len(taken.items) + len(taken.refused) == 1


def test_threads_do_not_wait_for_each_other() -> None:
    arrived = threading.Barrier(2, timeout=HANG)

    def put(_: bytes) -> None:
        arrived.wait()

    handler = TaskLogHandler(put, pytest.fail, {RUN})

    def say() -> None:
        with inside():
            handler.handle(logging.makeLogRecord({"name": "app", "levelno": 20, "lineno": 1}))

    threads = [threading.Thread(target=say) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not arrived.broken


def test_a_handler_that_is_detached_meanwhile_costs_another_no_record(app: logging.Logger) -> None:
    """The handlers of two connectors whose runs overlap: a run of the first ends while a record is passed on."""
    first, second = Taken(), Taken()

    def ends(_: logging.LogRecord) -> bool:
        detach(first.handler)
        return True

    first.handler.addFilter(ends)
    for taken in (first, second):
        attach(taken.handler)
    with inside():
        app.info("seen by both")
        app.info("seen by the second")
    detach(second.handler)
    assert (len(first.items), len(second.items)) == (1, 2)


def test_a_filter_on_it_is_asked() -> None:
    taken = Taken()
    taken.handler.addFilter(lambda record: record.name != "noisy")
    with inside():
        taken.handle("noisy")
        taken.handle("app")
    assert len(taken.items) == 1


def test_a_filter_on_it_that_raises_does_not_raise_into_the_task() -> None:
    taken = Taken()

    def raises(record: logging.LogRecord) -> bool:
        raise LookupError(record.name)

    taken.handler.addFilter(raises)
    with inside():
        taken.handle()
    assert (taken.items, taken.refused) == ([], ["a record cannot be handled: LookupError"])


def test_a_closed_stderr_does_not_raise_into_a_program_without_handlers() -> None:
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


def test_a_library_that_adds_a_handler_where_none_is_adds_it() -> None:
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


def test_a_program_without_handlers_shows_its_warnings_as_before() -> None:
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
        other.error("taken care of")
        logging.root.addHandler(logging.NullHandler())
        app.warning("taken care of")
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "seen\nseen too\n")
