import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest

import cascade as cs


@cs.task
def show(*values: Any) -> str:
    return " ".join(f"{value!r}" for value in values)


@dataclass
class Result:
    exit_code: object
    stdout: str
    stderr: str


def invoke(target: Any, *args: str) -> Result:
    # Not typer.testing: whether it keeps stderr apart depends on its version.
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as end:
        cs.cli(target)(list(args), prog_name="workflow")
    return Result(end.value.code, out.getvalue(), err.getvalue())


def test_params_are_options() -> None:
    target = show(
        cs.Param("name", description="whom to greet"), cs.Param("count", 2, int), cs.Param("rate", 0.5, float)
    )
    result = invoke(target, "--name", "you", "--count", "3")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "'you' 3 0.5")
    shown = invoke(target, "--help").stdout
    assert "--count" in shown
    assert "whom to greet" in shown
    assert "--log-level" in shown


def test_a_param_without_default_is_required() -> None:
    assert invoke(show(cs.Param("name"))).exit_code == 2


def test_bools_are_flags() -> None:
    assert "True" in invoke(show(cs.Param("fast", False, bool)), "--fast").stdout


def test_envs_are_no_options() -> None:
    assert "HOME_TOWN" not in invoke(show(cs.Env("HOME_TOWN", default="x")), "--help").stdout


def test_none_is_not_printed() -> None:
    result = invoke(cs.task(lambda: None, name="quiet")(), "--log-level", "ERROR")
    assert (result.exit_code, result.stdout) == (0, "")


def test_without_typer_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(ImportError, match=r"pip install 'cascade-runs\[cli\]'"):
        cs.cli(show())


def helper(number: int) -> None:
    raise ValueError(f"cannot publish {number}\x1b[2J")


def publish(number: int) -> None:
    helper(number)


async def publish_async(number: int) -> None:
    helper(number)


SHAPES = {
    "thread": cs.task(publish, name="publish"),
    "loop": cs.task(publish, name="publish", threaded=False),
    "async": cs.task(publish_async, name="publish"),
}


@pytest.mark.parametrize("log_level", ["INFO", "ERROR", "OFF"])
@pytest.mark.parametrize("task", SHAPES.values(), ids=SHAPES)
def test_a_task_that_fails_prints_the_users_part_of_the_traceback(task: Any, log_level: str) -> None:
    result = invoke(task(1), "--log-level", log_level)
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr[result.stderr.index("Traceback") :].splitlines()
    assert [line.split(", in ")[1] for line in lines if line.startswith("  File")][-1] == "helper"
    assert {line.split('"')[1] for line in lines if line.startswith("  File")} == {__file__}
    assert lines[-2:] == ["ValueError: cannot publish 1\\x1b[2J", "task 'publish'"]


def test_a_failure_of_an_item_names_the_item_in_the_traceback() -> None:
    assert invoke(SHAPES["thread"].map(number=[1])).stderr.splitlines()[-1] == "task 'publish', item 0"


def test_a_log_in_json_has_no_other_lines() -> None:
    result = invoke(SHAPES["thread"](1), "--log-format", "json")
    assert result.exit_code == 1
    assert [json.loads(line)["event_id"] for line in result.stderr.splitlines()][-1] == "run.finished_failure"


@pytest.mark.parametrize("log_level", ["INFO", "WARNING", "ERROR", "off"])
def test_a_skipped_target_is_named_once_with_its_condition(log_level: str) -> None:
    result = invoke(show().run_if(cs.task(lambda: False, name="is_monday")()), "--log-level", log_level)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("Task 'show' was skipped: its condition 'is_monday' was false") == 1
    assert "Traceback" not in result.stderr


def test_an_error_without_code_of_the_user_has_no_traceback() -> None:
    result = invoke(cs.shell("exit 3"), "--log-level", "OFF")
    assert result.exit_code == 1
    assert result.stderr == "Error: RuntimeError: Command 'exit 3' failed with exit code 3\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--name"),
        (("--name", "x", "--count", "three"), "--count"),
        (("--name", "x", "--nonsense"), "--nonsense"),
        (("--name", "x", "--log-level", "LOUD"), "--log-level"),
        (("--name", "x", "--log-format", "xml"), "--log-format"),
        (("--name", "x", "--log-level"), "--log-level"),
    ],
)
def test_an_error_of_usage_names_the_option_and_runs_nothing(arguments: tuple[str, ...], named: str) -> None:
    ran: list[object] = []
    target = cs.task(lambda *values: ran.append(values), name="t")(cs.Param("name"), cs.Param("count", 2, int))
    result = invoke(target, *arguments)
    assert (result.exit_code, result.stdout, ran) == (2, "", [])
    assert named in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("variable", "value"), [("CASCADE_CONNECTOR", "kafka"), ("CASCADE_TRACE_URL", "http://x")])
def test_a_bad_setting_is_an_error_of_usage(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_CONNECTOR", "memory")
    monkeypatch.setenv(variable, value)
    result = invoke(show())
    assert (result.exit_code, "Traceback" in result.stderr) == (2, False)
    assert variable in result.stderr


@pytest.mark.parametrize("log_level", ["debug", "Info", "OFF"])
def test_levels_may_be_in_any_case(log_level: str) -> None:
    assert invoke(show("x"), "--log-level", log_level).stdout == "'x'\n"


@pytest.mark.parametrize(("raised", "code"), [(SystemExit(7), 7), (KeyboardInterrupt(), 130)])
def test_exit_codes(raised: BaseException, code: int) -> None:
    def end() -> None:
        raise raised

    assert invoke(cs.task(end)(), "--log-level", "OFF").exit_code == code
