import dataclasses
import datetime as dt
import enum
import json
import pathlib
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.telemetry.redact import captured
from cascade.telemetry.safe import error_text, safe, stack_text, text
from tests.telemetry.strategies import Hostile, HostileDict, HostileText, cycle, deep, texts, values


@given(values)
def test_any_value_becomes_strict_json(value: Any) -> None:
    json.dumps(safe(value), allow_nan=False).encode()
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
def test_how_it_is_shown(value: Any, shown: Any) -> None:
    assert safe(value) == shown


def test_depth_is_cut() -> None:
    assert json.dumps(safe(deep())).count("[") == 8


@given(texts, st.integers(3, 50))
def test_text_is_cut_to_bytes_of_valid_utf8(value: str, limit: int) -> None:
    assert len(text(value, limit).encode()) <= limit


def test_text_that_fits_stays() -> None:
    assert text("short ☃", 100) == "short ☃"
    assert text("\ud800x", 100) == "?x"


class HostileError(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")


def test_errors_have_a_text_whatever_they_do() -> None:
    assert error_text(ValueError("x")) == "ValueError: x"
    assert error_text(HostileError()).startswith("HostileError: ")
    assert len(error_text(ValueError("x" * 9_999)).encode()) <= 2_000
    assert stack_text(HostileError())
    assert len(stack_text(ValueError("x" * 99_999)).encode()) <= 16 * 1024
