import io
import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.messaging.bus import MessageStore
from cascade.messaging.renderer import CliRenderer, JsonRenderer

Make = Callable[..., CliRenderer | JsonRenderer]


def cli(stream: Any = None, **options: Any) -> CliRenderer:
    return CliRenderer(MessageStore(), stream, **options)


def line_of(**data: Any) -> dict[str, Any]:
    """Return the line that the renderer writes for the data, decoded as strict JSON."""
    stream = io.StringIO()
    JsonRenderer(stream).render("x", "info", **data)
    line = stream.getvalue()
    assert line.count("\n") == 1
    return dict(json.loads(line, parse_constant=pytest.fail))


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


class Failing:
    def write(self, text: str) -> int:
        raise RuntimeError("the log window is closed")


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("make", [cli, JsonRenderer])
@pytest.mark.parametrize(
    ("min_level", "shown"),
    [("DEBUG", 3), ("INFO", 3), ("WARNING", 2), ("warning", 2), ("ERROR", 1), ("OFF", 0), ("off", 0)],
)
def test_lower_levels_are_not_shown(make: Make, min_level: str, shown: int) -> None:
    stream = io.StringIO()
    renderer = make(stream, min_level=min_level)
    for level in ("info", "warning", "error"):
        renderer.render("x", level)
    assert len(stream.getvalue().splitlines()) == shown


@pytest.mark.parametrize("make", [cli, JsonRenderer])
@pytest.mark.parametrize("level", ["LOUD", "", None, 20, ["INFO"]], ids=repr)
def test_an_unknown_level_is_refused_with_the_choices(make: Make, level: Any) -> None:
    refusal = re.escape(f"min_level={level!r}: choose from DEBUG, INFO, WARNING, ERROR, OFF")
    with pytest.raises(ValueError, match=refusal):
        make(min_level=level)


@pytest.mark.injects_errors("the function of the program raises")
@pytest.mark.parametrize(
    ("min_level", "level", "is_displayed", "is_printed"),
    [
        ("INFO", "info", lambda msg_id: msg_id == "task.started", False),
        ("INFO", "info", lambda msg_id: msg_id == "task.skipped", True),
        ("INFO", "warning", lambda _: True, True),
        ("DEBUG", "info", lambda _: True, True),
        ("INFO", "info", lambda _: "another meaning of the method", True),
        ("INFO", "info", lambda: True, True),  # the call raises
    ],
)
def test_lines_that_a_view_shows_are_not_printed(
    min_level: str, level: str, is_displayed: Any, is_printed: bool
) -> None:
    stream = io.StringIO()
    renderer = cli(stream, min_level=min_level, is_displayed=is_displayed)
    renderer.render("task.started", level, task_name="load")
    assert bool(stream.getvalue()) is is_printed


@pytest.mark.parametrize("make", [cli, JsonRenderer])
def test_the_current_stderr_is_the_default_stream(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make().render("x", "info")
    captured = capsys.readouterr()
    assert captured.err
    assert not captured.out


@pytest.mark.injects_errors("a closed stream raises ValueError")
@pytest.mark.parametrize("make", [cli, JsonRenderer])
def test_errors_of_the_stream_are_ignored(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    streams: list[Any] = [closed, Broken(), io.BytesIO(), object(), Failing()]
    for stream in streams:
        make(stream).render("x", "info")
    monkeypatch.setattr("sys.stderr", None)
    make().render("x", "info")


def test_the_line_of_an_exception_without_a_text_ends_without_a_colon() -> None:
    stream = io.StringIO()
    cli(stream).render("run.finished_failure", "error", duration=1, error="TimeoutError: ")
    assert stream.getvalue() == "❌ Run failed after 1.00s: TimeoutError\n"


def test_characters_outside_the_encoding_of_the_terminal_are_escaped() -> None:
    binary = io.BytesIO()
    terminal = io.TextIOWrapper(binary, "ascii")
    cli(terminal).render("run.finished_success", "info", duration=1)
    assert binary.getvalue() == b"\\u2705 Run finished in 1.00s\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ✅ ▶️ é 日本 👩‍💻", "plain ✅ ▶️ é 日本 👩‍💻"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\x1b[31mred\x07\x7f\x9b", "\\x1b[31mred\\x07\\x7f\\x9b"),
        ("\u202egnp.exe\u2028\u2066", "\\u202egnp.exe\\u2028\\u2066"),
        ("\ud800", "\\ud800"),
        ("\u00a0", "\u00a0"),
    ],
    ids=["printable", "line breaks", "escape sequences", "bidirectional", "surrogate", "no-break space"],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    stream = io.StringIO()
    cli(stream).render("run.trace", "info", trace_id=text)
    assert stream.getvalue() == f"🔎 Trace {shown}\n"


def test_a_line_of_json_has_time_level_id_and_data() -> None:
    before, line, after = datetime.now(UTC), line_of(n=1, names=["a"], pair=(1, 2)), datetime.now(UTC)
    assert before <= datetime.fromisoformat(line.pop("timestamp")) <= after
    assert line == {"level": "INFO", "event_id": "x", "data": {"n": 1, "names": ["a"], "pair": [1, 2]}}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({1, 2}, "{1, 2}"),
        (b"x", "b'x'"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (Unprintable(), "<Unprintable: repr failed>"),
        ({1: "a", None: [b"b"]}, {"1": "a", "None": ["b'b'"]}),
        ("\ud800", "\ud800"),
        (10**5000, "<int, 16610 bits>"),
    ],
    ids=["set", "bytes", "NaN", "infinity", "repr raises", "keys", "surrogate", "huge"],
)
def test_a_value_without_a_json_form_is_its_repr(value: Any, shown: Any) -> None:
    assert line_of(value=value)["data"] == {"value": shown}


def test_a_container_of_itself_is_its_repr() -> None:
    loop: list[Any] = [1]
    loop += [loop] * 30
    assert line_of(loop=loop)["data"]["loop"][:2] == [1, repr(loop)]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
    )
)
def test_any_value_makes_a_line_of_strict_json(value: Any) -> None:
    assert set(line_of(value=value)) == {"timestamp", "level", "event_id", "data"}


def test_a_run_logs_to_stderr_and_leaves_stdout_to_its_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    write = cs.task(lambda: sys.stdout.write("spoken\n"), name="write")
    cs.run(write(), log_format="json")
    captured = capsys.readouterr()
    assert captured.out == "spoken\n"
    ids = [json.loads(line)["event_id"] for line in captured.err.splitlines()]
    assert ids == ["run.started", "task.started", "task.finished_success", "run.finished_success"]


def test_secrets_are_masked_in_both_formats() -> None:
    human, as_json = io.StringIO(), io.StringIO()
    values: dict[str, Any] = {"params": {"api_token": "hunter2X9", "n": 1}}
    cli(human).render("run.started_with_params", "info", **values)
    JsonRenderer(as_json).render("run.started_with_params", "info", **values, error="password=hunter2X9", pin=1234)
    assert "{'api_token': '***', 'n': 1}" in human.getvalue()
    data = {"params": {"api_token": "***", "n": 1}, "error": "password=***", "pin": "***"}
    assert json.loads(as_json.getvalue())["data"] == data


def test_a_line_of_json_is_printable() -> None:
    stream = io.StringIO()
    text = "\x00\x1b[2J\x7f\x9b\u2028\u202e\ud800\n✅"
    JsonRenderer(stream).render("run.started", "info", name=text)
    assert stream.getvalue().removesuffix("\n").isprintable()
    assert json.loads(stream.getvalue())["data"] == {"name": text}
