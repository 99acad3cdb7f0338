import dataclasses
import datetime as dt
import enum
import json
import pathlib
import uuid
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.telemetry.limits import truncate, truncate_stack
from cascade.telemetry.sanitize import captured, error_text, masked, masked_end, sanitize, stack_text
from tests.telemetry.strategies import Hostile, HostileDict, HostileText, cycle, deep, texts, values


@given(values)
def test_any_value_becomes_strict_json(value: Any) -> None:
    json.dumps(sanitize(value), allow_nan=False).encode()
    shown = json.dumps(captured(value), allow_nan=False)
    assert len(shown) <= 2_000


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    x: int


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (b"secret", "<bytes, 6 B>"),
        (2**63, str(2**63)),
        (10**5000, "<int, 16610 bits>"),
        (True, True),
        ((1, 2), [1, 2]),
        (Colour.RED, "Colour.RED"),
        (Point(1, b""), {"x": 1, "y": "<bytes, 0 B>"}),
        (Slotted(1), {"x": 1}),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (pathlib.PurePosixPath("/a"), "/a"),
        ({1: 2, None: 3}, {"1": 2, "<builtins.NoneType>": 3}),
        (Hostile(), "<tests.telemetry.strategies.Hostile>"),
        (HostileText("abc"), "abc"),
        (HostileDict(a=1), {"a": 1}),
        (object(), "<builtins.object>"),
        ([1] * 102, [*[1] * 100, "… 2 more"]),
        (cycle(), [1, {"self": "…"}]),
    ],
    ids=lambda value: "",
)
def test_values_have_a_json_form(value: Any, shown: Any) -> None:
    assert sanitize(value) == shown


def test_the_depth_is_limited() -> None:
    assert json.dumps(sanitize(deep())).count("[") == 8


@given(texts, st.integers(3, 50))
def test_a_text_is_truncated_to_bytes_of_valid_utf8(value: str, limit: int) -> None:
    assert len(truncate(value, limit).encode()) <= limit


def test_a_text_within_the_limit_is_unchanged() -> None:
    assert truncate("short ☃", 100) == "short ☃"
    assert truncate("\ud800x", 100) == "?x"


class HostileError(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")


def test_each_error_has_a_text() -> None:
    assert error_text(ValueError("x")) == "ValueError: x"
    assert error_text(HostileError()).startswith("HostileError: ")
    assert len(error_text(ValueError("x" * 9_999)).encode()) <= 2_000
    assert stack_text(HostileError())
    assert len(stack_text(ValueError("x" * 99_999)).encode()) <= 16 * 1024


FRAMES = "".join(f'  File "a.py", line {number}, in level\n    return level(n - 1)\n' for number in range(100))
STACK = f"Traceback (most recent call last):\n{FRAMES}ConnectionError: no route to api.example.com"


@pytest.mark.parametrize("limit", [200, 1_000, 4_000])
def test_a_long_stack_trace_keeps_its_first_line_its_last_frames_and_the_message(limit: int) -> None:
    short = truncate_stack(STACK, limit)
    assert limit - 120 < len(short) <= limit
    assert short.startswith("Traceback (most recent call last):\n")
    assert short.endswith(FRAMES[-40:] + "ConnectionError: no route to api.example.com")
    before, after = short.split("  …\n")
    assert STACK.startswith(before)
    assert STACK.endswith(after)
    assert len(after) > len(before), "more of the end"


def test_a_short_stack_trace_is_unchanged() -> None:
    assert truncate_stack(STACK, len(STACK)) == STACK
    assert truncate_stack("", 0) == ""


@given(st.text(max_size=400), st.integers(30, 300))
def test_a_truncated_stack_trace_is_within_the_limit(stack: str, limit: int) -> None:
    printable = stack.encode("utf-8", "replace").decode()
    assert len(truncate_stack(printable, limit).encode()) <= limit


def test_a_message_that_is_too_long_loses_its_end() -> None:
    short = truncate_stack(f"Traceback (most recent call last):\n{FRAMES}ValueError: {'x' * 9_000}", 500)
    assert "\n  …\nValueError: xxx" in short
    assert short.endswith("…")


SECRET = "postgres://app:hunter2X9longpassword@db.internal/app"


@pytest.mark.parametrize("size", [50, 1_000, 20_000])
@pytest.mark.parametrize("back", [0, 10, 16, 20, 30, 60])
@pytest.mark.parametrize("filler", ["x", "é", "😀"])
def test_a_text_is_masked_before_it_is_truncated(filler: str, size: int, back: int) -> None:
    value = filler * (size - back) + " " + SECRET + " and more" * 10
    for limit in (size, size + 20, size * len(filler.encode())):
        shown = masked(value, limit)
        assert "hunt" not in shown
        assert len(shown.encode()) <= limit


def unfinished(secret: str, margin: int, lost: int) -> str:
    """Return a text that is truncated inside of the secret, after masks that make it much shorter."""
    masks = "password=" + "y" * (margin - lost) + " "
    return masks + secret + "z" * 300_000


@pytest.mark.parametrize(
    "secret",
    [
        "postgres://app:hunter2X9" + "a" * 50_000,
        "-----BEGIN PRIVATE KEY-----\nhunter2X9" + "\nabcd" * 10_000,
        "Authorization: Custom hunter2X9 " + "b" * 50_000,
        "'password': ['hunter2X9', '" + "c" * 50_000,
        "eyJhbGciOiJIUzI1NiJ9.hunter2X9" + "d" * 50_000,
    ],
)
@pytest.mark.parametrize("lost", [40, 100, 1_000, 10_000])
def test_a_secret_at_the_end_of_a_huge_text_is_not_shown_in_part(secret: str, lost: int) -> None:
    shown = masked(unfinished(secret, 16 * 1024 + 2_000, lost), 2_000)
    assert "hunt" not in shown
    assert shown.endswith("…")


@pytest.mark.parametrize("size", [0, 100, 20_000, 1_000_000])
def test_a_stack_trace_is_masked_before_it_is_truncated(size: int) -> None:
    for back in range(0, 60, 7):
        error = ValueError(f"{'x' * size}{SECRET}{'x' * (8_176 - back)}")
        assert "hunt" not in stack_text(error)
        assert "hunt" not in error_text(error)


def test_a_huge_error_is_masked() -> None:
    error = ValueError("password=hunter2X9 " * 5_000_000)
    assert error_text(error).startswith("ValueError: password=*** password=***")
    assert "hunt" not in stack_text(error)
    assert "hunt" not in str(captured([str(error)]))


def test_further_lines_of_messages_and_notes_can_be_indented() -> None:
    error = ValueError("one\n✅ two\n  three")
    error.add_note("a\nb")
    error.add_note("task 'x'")
    error.__cause__ = KeyError("first\nsecond")
    lines = stack_text(error, indent=True).splitlines()
    assert lines[0].startswith("KeyError: ")
    assert "The above exception was the direct cause of the following exception:" in lines
    assert lines[-6:] == ["ValueError: one", "    ✅ two", "  three", "    a", "    b", "task 'x'"]


def test_values_are_masked_by_the_names_of_fields_and_items() -> None:
    @dataclasses.dataclass
    class Login:
        user: str
        password: str
        is_secret: bool = True

    class Pair(NamedTuple):
        user: str
        api_key: str

    assert sanitize(Login("bob", "x")) == {"user": "bob", "password": "***", "is_secret": True}
    assert sanitize(Pair("bob", "x")) == ["bob", "***"]
    assert sanitize([("token", "x"), ["--password", "y", "z"]]) == [["token", "***"], ["--password", "***", "z"]]
    assert sanitize({"name": "DB_PASSWORD", "value": "x"}) == {"name": "DB_PASSWORD", "value": "***"}
    assert sanitize(["user", "password", "email"]) == ["user", "password", "email"]
    assert sanitize("x" * 985 + " " + SECRET) == "x" * 985 + " postgres://…"


@pytest.mark.parametrize("back", range(0, 60, 5))
@pytest.mark.parametrize("before", [0, 100_000])
def test_a_text_is_masked_before_its_end_is_taken(back: int, before: int) -> None:
    value = "x " * before + SECRET + "y" * (2_000 - back)
    shown = masked_end(value, 2_000)
    assert "password@" not in shown
    assert 1_900 < len(shown) <= 2_000


def test_the_end_of_a_huge_text_has_no_part_of_a_private_key() -> None:
    key = "-----BEGIN PRIVATE KEY-----\n" + "hunter2X9\n" * 10_000 + "-----END PRIVATE KEY-----\nfailed"
    assert masked_end(key + " and ended" * 200, 3_000).endswith("failed" + " and ended" * 200)
    assert "hunter" not in masked_end(key + " and ended" * 200, 3_000)
