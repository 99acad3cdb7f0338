from pathlib import Path

import pytest

import cascade as cs
from cascade.context import get_current_context

SOURCE = """
import cascade as cs
from dataclasses import dataclass

@dataclass
class Result:
    n: int

@cs.task
def double(n):
    return Result(2 * n)

doubled = double(cs.Param("inner_n", type=int))
number = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "flow.py"
    path.write_text(SOURCE)
    return path


def test_it_runs_the_workflow_of_another_file(file: Path) -> None:
    assert cs.run(cs.subflow(str(file), "doubled", params={"inner_n": 4})).n == 8


def test_its_inputs_are_separate_from_those_of_the_outer_run(file: Path) -> None:
    cs.run(cs.subflow(str(file), "doubled", params={"inner_n": 4}))
    assert "inner_n" not in get_current_context().input_specs


def test_two_files_of_one_name_do_not_clash(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "flow.py"
    other.parent.mkdir()
    other.write_text("import cascade as cs\nx = cs.task(lambda: 'other', name='o')()\n")
    both = cs.task(lambda *values: values, name="both")
    assert cs.run(both(cs.subflow(str(other), "x"), cs.subflow(str(file), "doubled", {"inner_n": 1})))[0] == "other"


def test_the_target_may_be_a_stored_workflow(tmp_path: Path) -> None:
    path = tmp_path / "flow.py"
    path.write_text(f"import cascade as cs\nstored = cs.from_json({cs.to_json(cs.shell('echo 5'))!r})\n")
    assert cs.run(cs.subflow(str(path), "stored"), log_level="OFF") == "5"


@pytest.mark.parametrize("target", ["missing", "number"])
def test_a_missing_target_is_named(file: Path, target: str) -> None:
    with pytest.raises(ValueError, match=f"Target '{target}' not found"):
        cs.run(cs.subflow(str(file), target))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cs.run(cs.subflow("/nowhere.py", "x"))


def test_errors_of_the_file_and_of_its_tasks_are_raised_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import cascade as cs\nx = cs.task(lambda: 1 / 0, name='d')()\n")
    with pytest.raises(ZeroDivisionError):
        cs.run(cs.subflow(str(path), "x"))
    path.write_text("raise LookupError('at import')")
    with pytest.raises(LookupError, match="at import"):
        cs.run(cs.subflow(str(path), "x"))


def test_the_tasks_of_the_file_have_the_cache_of_the_run(tmp_path: Path) -> None:
    file, log = tmp_path / "flow.py", tmp_path / "log"
    for number in (1, 1, 2):
        file.write_text(
            "import cascade as cs\nfrom pathlib import Path\n"
            "@cs.task\ndef work():\n"
            f"    with Path({str(log)!r}).open('a') as file:\n        file.write('x')\n    return {number}\n"
            "target = work()\n"
        )
        target = cs.subflow(str(file), "target")
        assert cs.run(target, cache=cs.DiskCache(tmp_path / "cache"), log_level="OFF") == number
    assert log.read_text() == "xx"
