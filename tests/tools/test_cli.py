import asyncio
import enum
import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional
from uuid import UUID

import pytest

import cascade as cs


@cs.task
def show(*values: Any) -> str:
    return " ".join(f"{value!r}" for value in values)


@cs.task
def identity(x: Any) -> Any:
    return x


class Color(enum.Enum):
    RED = "red"
    SEVEN = 7


@pytest.fixture
def received() -> list[Any]:
    return []


@pytest.fixture
def keep(received: list[Any]) -> Any:
    """Return a task that stores its argument."""
    return cs.task(received.append, name="keep")


@dataclass
class Result:
    exit_code: object
    stdout: str
    stderr: str


def invoke(target: Any, *args: str, **options: Any) -> Result:
    # Not typer.testing: whether it keeps stderr apart depends on its version.
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as end:
        cs.cli(target, **options)(list(args), prog_name="workflow")
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


def test_the_text_of_an_exit_is_masked_and_escaped() -> None:
    def end() -> None:
        sys.exit("token=hunter2X9 \x1b[2J\nsecond")

    result = invoke(cs.task(end)(), "--log-level", "OFF")
    assert (result.exit_code, result.stderr) == (1, "token=*** \\x1b[2J\nsecond\n")


def test_a_name_of_a_param_with_control_characters_is_an_option_that_shows_them_escaped() -> None:
    target = show(cs.Param("name\x1b[2J"))
    assert "--name\\x1b[2J" in invoke(target, "--help").stdout
    assert "'you'" in invoke(target, "--name\\x1b[2J", "you").stdout


@pytest.mark.parametrize(
    ("log_level", "printed"),
    [("INFO", "🛑 Run cancelled after"), ("ERROR", "🛑 Run cancelled after"), ("OFF", "Error: CancelledError: mine")],
)
def test_a_run_that_a_task_cancels_ends_without_a_traceback(log_level: str, printed: str) -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError("mine")

    result = invoke(cs.task(cancel)(), "--log-level", log_level)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith(printed)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("raised", [GeneratorExit("odd"), BaseExceptionGroup("odd", [KeyboardInterrupt()])], ids=repr)
def test_an_exception_of_any_kind_prints_the_users_part_of_the_traceback(raised: BaseException) -> None:
    def fail() -> None:
        raise raised

    result = invoke(cs.task(fail)(), "--log-level", "ERROR")
    assert result.exit_code == 1
    files = [line.split('"')[1] for line in result.stderr.splitlines() if line.lstrip(" |").startswith("File")]
    assert files == [__file__]


UserId = NewType("UserId", int)


@pytest.mark.parametrize(
    ("kind", "options", "value"),
    [
        (str, ["--x", "5"], "5"),
        (int, ["--x", "-5"], -5),
        (float, ["--x", "1e3"], 1000.0),
        (bool, ["--x"], True),
        (bool, ["--no-x"], False),
        (Path, ["--x", "a/b"], Path("a/b")),
        (Decimal, ["--x", "1.10"], Decimal("1.10")),
        (UUID, ["--x", "0" * 31 + "1"], UUID(int=1)),
        (date, ["--x", "2026-01-02"], date(2026, 1, 2)),
        (datetime, ["--x", "2026-01-02T03:04"], datetime(2026, 1, 2, 3, 4)),  # noqa: DTZ001
        (Color, ["--x", "red"], Color.RED),
        (Color, ["--x", "7"], Color.SEVEN),
        (Color, ["--x", "SEVEN"], Color.SEVEN),
        (Literal["a", 1], ["--x", "1"], 1),
        (dict[str, int], ["--x", '{"a": 1}'], {"a": 1}),
        (list[int], ["--x", "1", "--x", "2"], [1, 2]),
        (set[Color], ["--x", "red"], {Color.RED}),
        (tuple[float, ...], ["--x", "1"], (1.0,)),
        (list[bool], ["--x", "no", "--x", "TRUE"], [False, True]),
        (list, ["--x", "1"], ["1"]),
        (int | None, ["--x", "1"], 1),
        (Optional[bool], ["--no-x"], False),  # noqa: UP045
        (int | None, [], None),
        (int | str, ["--x", "a"], "a"),
        (Annotated[int, "seconds"], ["--x", "1"], 1),
        (UserId, ["--x", "1"], 1),
    ],
    ids=str,
)
def test_the_text_of_an_option_is_converted_to_the_type(
    kind: Any, options: list[str], value: Any, keep: Any, received: list[Any]
) -> None:
    assert invoke(keep(cs.Param("x", type=kind)), *options).exit_code == 0
    assert received == [value]
    assert type(received[0]) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (int, "five", "'five' is not a valid int"),
        (Decimal, "five", "'five' is not a valid Decimal"),
        (Color, "green", "'green' is not one of red, 7"),
        (Literal["a", 1], "b", "'b' is not one of a, 1"),
        (dict, "[1]", "'[1]' is not a JSON object"),
        (dict, '{"a":' * 100_000, repr('{"a":' * 40) + "… is not a valid dict"),
        (list[int], "a", "'a' is not a valid int"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_invalid_text_is_a_usage_error(kind: Any, text: str, expected: str, keep: Any, received: Any) -> None:
    result = invoke(keep(cs.Param("x", type=kind)), "--x", text)
    assert (result.exit_code, received) == (2, [])
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("default", "text", "value"), [(2, "3", 3), (0.5, "1", 1.0), ([1], "3", [3]), ((1,), "3", (3,))]
)
def test_a_default_gives_the_type_of_a_param_without_one(
    default: Any, text: str, value: Any, keep: Any, received: list[Any]
) -> None:
    assert invoke(keep(cs.Param("x", default)), "--x", text).exit_code == 0
    assert received == [value]
    assert type(received[0]) is type(value)


def test_a_default_is_passed_on_unchanged(keep: Any, received: list[Any]) -> None:
    default = [object()]
    assert invoke(keep(cs.Param("x", default, list[str]))).exit_code == 0
    assert received[0] is default


@pytest.mark.parametrize("kind", [object, Iterator, tuple[int, str], list[list[int]]])
def test_a_type_without_conversion_is_refused_when_the_command_line_is_made(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"Param 'x': no conversion from text to .*supported: str, int.*type=str"):
        cs.cli(show(cs.Param("x", type=kind)))


def test_only_the_params_of_the_target_are_options(keep: Any, received: list[Any]) -> None:
    cs.Param("other", description="declared, not used")
    show(cs.Param("x", "theirs"))
    app = keep(cs.Param("x", "ours"))
    assert "--other" not in invoke(app, "--help").stdout
    assert invoke(app).exit_code == 0
    assert received == ["ours"]


def test_a_param_of_a_condition_a_map_a_route_and_a_constraint_is_an_option() -> None:
    routed = cs.Router(cs.Param("selector"), {"a": show(cs.Param("route"))})
    mapped = identity.map(x=show(cs.Param("items"))).run_if(cs.Param("condition", False, bool))
    target = show(routed, [mapped]).with_constraints(cpu=cs.Param("cpu", 1, int))
    shown = invoke(target, "--help").stdout
    assert [name for name in ("selector", "route", "items", "condition", "cpu") if f"--{name}" not in shown] == []


def test_two_params_of_one_name_must_agree() -> None:
    assert invoke(show(cs.Param("n", 1, int), cs.Param("n", 1, int)), "--n", "2").stdout.endswith("2 2\n")
    for other in (cs.Param("n", 2, int), cs.Param("n", 1, float), cs.Param("n", type=int)):
        with pytest.raises(ValueError, match=r"two Params 'n'.*Declare the Param once"):
            cs.cli(show(cs.Param("n", 1, int), other))


def test_the_error_of_two_params_of_one_name_describes_both() -> None:
    with pytest.raises(ValueError, match=r"type int with the default 1, and type int without a default\."):
        cs.cli(show(cs.Param("n", 1, int), cs.Param("n", type=int)))


def test_descriptions_and_defaults_are_shown_unchanged() -> None:
    target = show(cs.Param("length", 2, int, description="in [m], not in [bold]feet[/bold]\x1b[2J"))
    assert "in [m], not in [bold]feet[/bold]\\x1b[2J [default: 2]" in " ".join(invoke(target, "--help").stdout.split())


def test_an_error_of_usage_is_one_line() -> None:
    result = invoke(show(cs.Param("n", type=Literal["north", "east", "south", "west"])), "--n", "x" * 100)
    assert result.stderr.splitlines()[-1].endswith(f"'{'x' * 100}' is not one of north, east, south, west")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_result_whose_text_cannot_be_made_prints_the_users_part_of_the_traceback() -> None:
    result = invoke(cs.task(Unprintable, name="make")(), "--log-level", "ERROR")
    assert (result.exit_code, result.stdout) == (1, "")
    assert [line.split('"')[1] for line in result.stderr.splitlines() if line.startswith("  File")] == [__file__]
    assert result.stderr.splitlines()[-1] == "RuntimeError: no text"


@pytest.mark.parametrize(
    ("encoding", "value", "printed"),
    [("latin-1", "日本 é", b"\\u65e5\\u672c \\xe9"), ("utf-8", "\ud800", b"\\ud800"), ("utf-8", b"\xff", b"\xff")],
)
def test_a_result_that_stdout_cannot_encode_is_printed_with_escapes(encoding: str, value: Any, printed: bytes) -> None:
    binary = io.BytesIO()
    terminal = io.TextIOWrapper(binary, encoding, write_through=True)
    with redirect_stdout(terminal), pytest.raises(SystemExit) as end:
        cs.cli(identity(value))(["--log-level", "OFF"])
    assert (end.value.code, binary.getvalue()) == (0, printed + b"\n")


def test_the_name_of_an_option_that_unsets_a_flag_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'no-a'.*unsets 'a'.*another name"):
        cs.cli(show(cs.Param("a", True, bool), cs.Param("no-a", 1)))
    assert invoke(show(cs.Param("a", 1), cs.Param("no-a", 1)), "--no-a", "3").stdout == "1 3\n"


def test_names_with_the_same_letters_are_two_options() -> None:
    target = show(cs.Param("a-b", 1), cs.Param("a_b", 2))
    assert invoke(target, "--a-b", "3").stdout.endswith("3 2\n")


def test_the_name_of_an_option_of_the_command_line_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'log-level'.*another name"):
        cs.cli(show(cs.Param("log-level")))


async def test_inside_a_running_loop_the_error_has_no_traceback() -> None:
    result = invoke(show("x"))
    assert result.exit_code == 1
    assert "cs.run_async" in result.stderr
    assert "Traceback" not in result.stderr


def test_defaults_of_secret_params_are_not_shown() -> None:
    target = show(cs.Param("api_token", default="hunter2X9"), cs.Param("user", default="bob"))
    shown = invoke(target, "--help").stdout
    assert "hunter2X9" not in shown
    assert "[default: ***]" in shown
    assert "[default: bob]" in shown


def test_a_wrong_value_of_a_secret_param_is_not_shown() -> None:
    shown = invoke(show(cs.Param("pin", type=int)), "--pin", "hunter2X9").stderr
    assert "hunter2X9" not in shown
    assert "the value is not a valid int" in shown


def test_two_secret_params_that_do_not_agree_are_not_shown() -> None:
    with pytest.raises(ValueError, match="two Params 'token'") as raised:
        cs.cli(show(cs.Param("token", default="hunter2X9"), cs.Param("token", default="other")))
    assert "hunter2X9" not in str(raised.value)


@pytest.mark.parametrize("log_level", ["INFO", "OFF"])
def test_an_error_is_masked_and_escaped(log_level: str) -> None:
    @cs.task
    def fails() -> None:
        error = ValueError("password=hunter2X9\n✅ Run finished in 0.00s\u2028❌\x85❌\x0b❌")
        error.add_note("✅ a note\n✅ more")
        raise error

    shown = invoke(fails(), "--log-level", log_level).stderr
    assert "hunter2X9" not in shown
    forged = [line for line in shown.splitlines() if line.startswith(("✅", "❌")) and not line.startswith("❌ ")]
    assert forged == []
    assert r"    ✅ Run finished in 0.00s\u2028❌\x85❌\x0b❌" in shown.split("\n")
    assert "    ✅ a note" in shown.split("\n")


def test_a_result_is_escaped_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    target = identity("a\tb\n\x07c")
    assert invoke(target, "--log-level", "OFF").stdout == "a\tb\n\x07c\n"
    with redirect_stdout(Terminal()) as out, pytest.raises(SystemExit):
        cs.cli(target)(["--log-level", "OFF"], prog_name="workflow")
    assert out.getvalue() == "a\tb\n\\x07c\n"
