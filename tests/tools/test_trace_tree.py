import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.testing import ReceivedSpan, render_trace
from cascade.testing.spans import ReceivedEvent, ReceivedLink
from tests.lab.waiting import HANG

MS = 1_000_000


def span(
    number: int, name: str, parent: int | None = None, start: int = 0, end: float = 10, **more: Any
) -> ReceivedSpan:
    ids = f"{number:016x}", None if parent is None else f"{parent:016x}"
    return ReceivedSpan(name, "a" * 32, *ids, start_ns=start * MS, end_ns=round(end * MS), **more)


def test_a_trace_is_a_tree_in_the_order_of_time() -> None:
    shown = render_trace([span(3, "late", 1, 5, 9), span(1, "root"), span(2, "early", 1, 1, 4)])
    lines = shown.splitlines()
    order = [next(i for i, line in enumerate(lines) if name in line) for name in ("root", "early", "late")]
    assert order == sorted(order)
    assert "├─ early" in shown
    assert "└─ late" in shown


def test_the_label_of_an_item_is_shown_in_place_of_its_index() -> None:
    of_item = {"cascade.map.index": 0, "cascade.task.label": "a.csv"}
    spans = [span(1, "load", attributes=of_item), span(2, "load wait", 1, attributes=of_item)]
    lines = render_trace(spans).splitlines()
    assert lines[1].startswith("load[a.csv] ")
    assert lines[2].startswith("└─ load wait[a.csv] ")


def test_a_wait_before_the_start_is_below_its_item_and_moves_nothing() -> None:
    wait = span(4, "step wait", 2, 1, 4, attributes={"cascade.wait.reason": "resource", "cascade.map.index": 0})
    items = [
        span(n, "step", 1, start, start + 5, attributes={"cascade.map.index": n - 2}) for n, start in ((2, 4), (3, 3))
    ]
    lines = render_trace([wait, span(1, "map(step)"), *items], width=100).splitlines()
    names = [line.partition("]")[0].rstrip() if "]" in line else line.split("  ")[0] for line in lines[1:]]
    assert names == ["map(step)", "├─ step[1", "└─ step[0", "   └─ step wait[0"]
    bars = [line.rpartition("ms  ")[2] for line in lines[1:]]
    assert bars[3].index("░") < bars[2].index("█") == bars[3].rindex("░") + 1


def test_an_error_shows_its_type_and_message() -> None:
    event = ReceivedEvent("exception", 5 * MS, {"exception.type": "LookupError", "exception.message": "gone"})
    shown = render_trace([span(1, "task", status="ERROR", attributes={"error.type": "LookupError"}, events=(event,))])
    assert "LookupError" in shown


def test_many_children_with_one_name_are_grouped() -> None:
    shown = render_trace(
        [span(0, "root"), *(span(n, "item", 0, n % 9, n % 9 + 1) for n in range(1, 101))], max_children=8
    )
    assert len(shown.splitlines()) < 15
    assert "more item" in shown


def test_orphans_and_several_roots_are_shown() -> None:
    shown = render_trace([span(1, "first"), span(2, "second"), span(3, "lost", 99)])
    assert all(name in shown for name in ("first", "second", "lost"))


HANGUL_VOWELS = "".join(map(chr, (*range(0x1160, 0x1200), *range(0xD7B0, 0xD800), 0x3164, 0xFFA0)))
"""Jamo that a terminal draws in the cells of the consonant before them; `unicodedata` has no width of zero for them."""


@st.composite
def forests(draw: st.DrawFn) -> list[ReceivedSpan]:
    size = draw(st.integers(0, 25))
    return [
        span(
            number,
            draw(
                st.text(
                    st.characters(categories=["L", "Nd"], exclude_characters=HANGUL_VOWELS), min_size=1, max_size=60
                )
            ),
            draw(st.none() | st.integers(0, number)) if number else None,
            *sorted(draw(st.tuples(st.integers(0, 50), st.integers(0, 50)))),
        )
        for number in range(1, size + 1)
    ]


@given(forests(), st.integers(60, 160))
@settings(max_examples=60)
def test_any_forest_fits_the_width(spans: list[ReceivedSpan], width: int) -> None:
    import unicodedata

    for line in render_trace(spans, width=width).splitlines():
        columns = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line if not unicodedata.combining(c))
        assert columns <= width


def test_no_text_of_a_span_breaks_a_line_or_moves_the_cursor() -> None:
    bad = "a\x1b[31m\n\r\t\x9b\u202e\u2028\ud800b"
    event = ReceivedEvent(bad, 5 * MS, {bad: bad, "exception.type": bad, "exception.message": bad})
    attributes = dict.fromkeys(
        ("cascade.map.index", "cascade.task.label", "cascade.task.attempt", "cascade.wait.reason", "error.type"), bad
    )
    spans = [
        span(1, "root"),
        span(2, bad, 1, status="ERROR", status_message=bad, attributes=attributes, kind=bad, events=(event,)),
        span(3, bad, 1, attributes=attributes, kind=bad, events=(event,), resource={"service.name": bad}),
        *(span(number, f"{bad}!", 1) for number in range(4, 9)),
        span(9, "linked", 1, links=(ReceivedLink("a" * 32, f"{2:016x}"),)),
    ]
    lines = render_trace(spans, width=200, max_children=1).split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert any("more a" in line for line in lines)
    assert any("← a" in line for line in lines)


TERMINAL_VARIABLES = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM")
PROGRAM = """
from cascade.testing import ReceivedSpan, render_trace
span = ReceivedSpan("root " + "x" * 300, "a" * 32, "b" * 16, None, start_ns=0, end_ns=5_000_000)
print(render_trace([span]))
"""


@pytest.fixture(autouse=True)
def _environment_of_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TERMINAL_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def shown_in_a_terminal(columns: int, **environment: str) -> list[str]:
    """Return the output of the program in a terminal of that width."""
    try:
        ours, theirs = pty.openpty()
    except OSError as error:  # a chroot without /dev/pts
        pytest.skip(f"no terminal can be opened: {error}")
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environ = {**os.environ, "TERM": "xterm", **environment}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=theirs, env=environ)
    os.close(theirs)
    output = b""
    try:
        while part := os.read(ours, 65536):
            output += part
    except OSError:  # Linux's end of a terminal
        pass
    os.close(ours)
    assert process.wait(HANG) == 0
    return output.decode().splitlines()


@pytest.mark.parametrize(
    ("columns", "environment", "width", "color"),
    [
        (72, {}, 72, True),
        (160, {"NO_COLOR": "1"}, 160, False),
        (160, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, 160, False),
        (160, {"NO_COLOR": ""}, 160, True),
        (160, {"COLUMNS": "90", "TERM": "dumb"}, 90, False),
        (12, {"NO_COLOR": "1"}, 40, False),
    ],
    ids=str,
)
def test_a_terminals_width_and_colours_are_used(
    columns: int, environment: dict[str, str], width: int, color: bool
) -> None:
    lines = shown_in_a_terminal(columns, **environment)
    assert any("\x1b[" in line for line in lines) is color
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert max(map(len, plain)) == width


@pytest.mark.parametrize(
    ("environment", "color", "colored"),
    [
        ({}, None, False),
        ({}, True, True),
        ({"FORCE_COLOR": "1"}, None, True),
        ({"FORCE_COLOR": "0"}, None, False),
        ({"FORCE_COLOR": "1"}, False, False),
        ({"NO_COLOR": "1"}, True, False),
    ],
)
def test_without_a_terminal_the_width_is_100_and_colour_must_be_requested(
    environment: dict[str, str], color: bool | None, colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shown = render_trace([span(1, "root")], color=color)
    assert ("\x1b[" in shown) is colored
    if not colored:
        assert max(map(len, shown.splitlines())) == 100


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("abc", 3),
        ("日", 2),
        ("🚀", 2),
        ("e\u0301", 1),
        ("▶\ufe0f", 2),
        ("✅\ufe0f", 2),
        ("🇩🇪", 2),
        ("각", 2),
    ],
)
def test_the_cells_of_wide_and_joined_characters(text: str, cells: int) -> None:
    for copies in (1, 2, 200):
        (_, line) = render_trace([span(1, text * copies)], width=100).splitlines()
        shown = line.count(text)
        assert shown == copies or "…" in line
        assert len(line) + shown * (cells - len(text)) == 100


def test_the_parts_of_a_run_are_below_it() -> None:
    event = ReceivedEvent("cascade.part", 5 * MS, {"cascade.part.trace_id": "b" * 32})
    run = span(1, "run total", links=(ReceivedLink("b" * 32, f"{2:016x}"),), events=(event,))
    root = ReceivedSpan(
        "run total part",
        "b" * 32,
        f"{2:016x}",
        None,
        end_ns=5,
        attributes={"cascade.part.number": 2},
        links=(ReceivedLink("a" * 32, f"{1:016x}"),),
    )
    lines = render_trace([root, run]).splitlines()
    assert lines[1].startswith("run total ")
    assert lines[2].startswith("└┄ run total part  trace bbbbbbbb…")
    assert len(lines) == 3


def test_a_terminal_without_unicode_has_a_tree_of_ascii_characters() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("root", "Übung")],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
        timeout=HANG,
    )
    (_, line) = done.stdout.decode("ascii").splitlines()
    assert line.startswith("?bung xxx")
    assert line.endswith("#" * 30)


def test_the_attempt_of_a_task_that_was_not_retried_is_not_drawn() -> None:
    attempt = {"cascade.task.attempt": 1}
    note = ReceivedEvent("note", 1 * MS, {})
    spans = [
        span(1, "once"),
        span(2, "once attempt", 1, attributes=attempt),
        span(3, "twice"),
        *(span(4 + n, "twice attempt", 3, attributes={"cascade.task.attempt": n + 1}) for n in range(2)),
        span(6, "nested"),
        span(7, "nested attempt", 6, attributes=attempt),
        span(8, "query", 7),
        span(9, "noted"),
        span(10, "noted attempt", 9, attributes=attempt, events=(note,)),
    ]
    shown = render_trace(spans)
    assert "10 spans" in shown
    assert [name for name in ("once", "twice", "nested", "noted") if f"{name} attempt" in shown] == [
        *("twice", "nested", "noted")
    ]


def test_a_group_of_spans_without_a_duration_has_no_length() -> None:
    moment = 1 / MS  # Cascade gives one nanosecond to a span without a duration
    shown = render_trace([span(0, "root"), *(span(n, "item skipped", 0, 0, moment) for n in range(1, 101))])
    assert re.search(r"… \d+ more item skipped +│", shown)


def test_a_failure_after_which_a_run_continued_is_one_short_line_or_the_line_of_its_span() -> None:
    attributes = {
        "cascade.task.name": "extract",
        "cascade.task.id": "e/3",
        "cascade.map.index": 3,
        "cascade.task.label": "c.csv",
        "error.type": "ValueError",
        "exception.message": "no number",
    }
    run = span(0, "run", events=(ReceivedEvent("cascade.task.failed", 5 * MS, attributes),))
    assert "• cascade.task.failed  +5.00 ms  extract[c.csv]  ✗ ValueError: no number" in render_trace([run], width=140)
    failed = span(1, "extract", 0, status="ERROR", attributes=attributes)
    with_span = render_trace([run, failed], width=140)
    assert "cascade.task.failed" not in with_span
    assert with_span.count("✗ ValueError") == 1
