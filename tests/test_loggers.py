import logging
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import cascade
from cascade._loggers import get_logger
from cascade.connectors.memory import MemoryConnector
from tests.lab.waiting import HANG


class Failing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(record.getMessage())


@pytest.fixture
def failing() -> Iterator[str]:
    """The name of a logger whose handler raises an exception for each record."""
    logger, handler = logging.getLogger("tests.failing"), Failing()
    logger.addHandler(handler)
    yield logger.name
    logger.removeHandler(handler)


def test_no_exception_of_a_handler_is_raised(failing: str) -> None:
    with pytest.raises(RuntimeError, match="plain"):
        logging.getLogger(failing).warning("plain")
    logger = get_logger(failing)
    logger.warning("%s", "guarded")
    logger.error("guarded", exc_info=ValueError())


def test_a_record_has_the_name_the_level_and_the_line_of_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("tests.here").error("%d of %d", 1, 2)
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("tests.here", "ERROR", "1 of 2")
    assert (record.filename, record.funcName) == (
        "test_loggers.py",
        "test_a_record_has_the_name_the_level_and_the_line_of_the_caller",
    )


def test_every_module_has_such_a_logger() -> None:
    folder = Path(cascade.__file__).parent
    sources = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}
    assert [path for path, text in sources.items() if re.search(r"^_?logger = logging\.", text, re.MULTILINE)] == []
    assert "runtime/bus.py" in sources


@pytest.mark.parametrize("stderr", ["closed", "replaced"])
def test_a_warning_does_not_end_a_run_without_a_usable_stderr(stderr: str) -> None:
    code = textwrap.dedent(f"""
        import sys
        import cascade as cs

        class Replaced:
            def write(self, text):
                raise RuntimeError("the log window is closed")

            def flush(self): ...

        class Full:
            def check(self, task_id, inputs): ...

            def save(self, task_id, inputs, output):
                raise OSError("no space")

        class Dead:
            async def connect(self):
                raise OSError("no broker")

            publish = subscribe = disconnect = connect

        if {stderr!r} == "closed":
            sys.stderr.close()
        else:
            sys.stderr = Replaced()
        one = cs.task(lambda: 1, name="one")
        assert cs.run(one().with_cache(Full())) == 1
        assert cs.run(one(), params={{"unknown": 1}}) == 1
        assert cs.run(one(), connector=Dead()) == 1
        print("all runs ended", flush=True)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=False)
    assert done.stdout == "all runs ended\n"


@pytest.mark.parametrize(("level", "count"), [(logging.WARNING, 1), (logging.ERROR, 0)])
def test_the_log_level_of_a_run_does_not_affect_warnings(
    level: int, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Unreachable(MemoryConnector):
        async def connect(self) -> None:
            raise OSError("no route")

    caplog.set_level(level, logger="cascade")
    cascade.run(cascade.task(int, name="zero")(), connector=Unreachable(), log_level="OFF")
    assert len([record for record in caplog.records if record.name.startswith("cascade")]) == count
