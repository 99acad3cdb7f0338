"""The table of docs/types.md is what mypy, mypy with the plugin and pyright report."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab.waiting import HANG

pytest.importorskip("mypy")
pytest.importorskip("pyright")

PAGE = Path(__file__).parents[2] / "docs" / "types.md"
PREFACE = """
import asyncio
from typing import TypeVar
import cascade as cs
from cascade.runtime.engine import Engine

@cs.task
def load(path: str, limit: int = 10) -> list[int]:
    return [1]

@cs.task
def total(numbers: list[int]) -> int:
    return sum(numbers)

T = TypeVar("T")

@cs.task
def first(items: list[T]) -> T:
    return items[0]

engine: Engine
"""
ROWS = {
    "result of `cs.run`, `cs.run_async`, `Engine.run`": [
        "cs.run(load('')).upper()",
        "asyncio.run(cs.run_async(load(''))).upper()",
        "asyncio.run(engine.run(load(''))).upper()",
    ],
    "`value` and `unwrap()` of the result of `cs.execute`": [
        "cs.execute(load('')).value.upper()",
        "cs.execute(load('')).unwrap().upper()",
        "asyncio.run(cs.execute_async(load(''))).unwrap().upper()",
    ],
    "several targets in a list, a dict, or a tuple": [
        "cs.run([load('')])[0].upper()",
        "cs.run({'a': load('')})['a'].upper()",
        "cs.run((load(''), total([])))[1].upper()",
    ],
    "the value of a Param": [
        "cs.run(cs.Param('p', type=list[str])).upper()",
        "cs.run(cs.Param('p', type=int)).upper()",
    ],
    "a result of a wrong generic type": ["a: list[str] = cs.run(load(''))"],
    "a call with a missing, unknown or surplus argument": ["load()", "load('', x=1)", "load('', 1, 2)", "load(1)"],
    "`cs.run(...)` of an object that is not a lazy result": ["cs.run(5)", "cs.run(load)"],
    "an unknown name of the package": ["cs.tsak(load)"],
    "an argument of `.map(...)` that is not iterable": ["load.map(path=5)"],
    "iteration, index or `in` of a lazy result": ["for _ in load(''): pass", "load('')[0]", "1 in load('')"],
    "an unknown method of a lazy result": ["load('').with_retries(3)"],
    "an unknown keyword of `.map(...)`": ["load.map(paht=[''])"],
    "elements of the wrong type in `.map(...)`": ["load.map(path=[5])"],
    "a value of the wrong type in `cs.unmapped(...)`": ["load.map(path=[''], limit=cs.unmapped(''))"],
    "an unknown option of `cs.task(...)`": [
        "cs.task(retry=3)",
        "cs.task(tags='etl')",
        "cs.task(load.func, retries='3')",
    ],
    "a lazy result of the wrong type as an argument": ["load(load(''))"],
}
"""The beginning of each row, with statements that are errors."""
CORRECTED = {"first([1])": {1}, "cs.task(max)([1, 2])": {1, 3}}
"""Valid calls of a generic and an overloaded task, with the columns of the checkers that report an error."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("types") / "program.py"
    path.write_text("\n".join([PREFACE, *(line for lines in ROWS.values() for line in lines), *CORRECTED, ""]))
    return path


def mypy(program: Path, *settings: str) -> set[int]:
    """The numbers of the lines with an error."""
    (program.parent / "mypy.ini").write_text("\n".join(["[mypy]", *settings]))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", program.name]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, timeout=HANG, check=False)
    assert "Found" in done.stdout, done.stdout + done.stderr
    return {int(number) for number in re.findall(r"^program\.py:(\d+): error", done.stdout, re.MULTILINE)}


def pyright(program: Path) -> set[int]:
    """The numbers of the lines with an error."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, program.name]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, timeout=HANG, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}


@pytest.mark.parametrize(
    ("column", "check"),
    [
        pytest.param(1, mypy, id="mypy"),
        pytest.param(2, lambda program: mypy(program, "plugins = cascade.mypy"), id="mypy with the plugin"),
        pytest.param(3, pyright, id="pyright"),
    ],
)
def test_the_table_is_what_the_checkers_report(program: Path, column: int, check: Any) -> None:
    table = [row.strip("| ").split(" | ") for row in PAGE.read_text("utf-8").splitlines() if row.startswith("| ")][1:]
    assert len(table) == len(ROWS)
    source, errors = program.read_text().splitlines(), check(program)
    for row, (begin, lines) in zip(table, ROWS.items(), strict=True):
        assert row[0].startswith(begin)
        found = {source.index(line) + 1 in errors for line in lines}
        assert found == {row[column] in {"typed", "error"}}, row
    for line, columns in CORRECTED.items():
        assert (source.index(line) + 1 in errors) == (column in columns), line
