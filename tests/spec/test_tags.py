"""Tags of tasks and runs: the accepted values."""

from enum import StrEnum
from typing import Any

import pytest

from cascade.spec.tags import MAX_TAGS, checked_tags
from cascade.telemetry.limits import MAX_NAME_BYTES
from cascade.telemetry.sanitize import masked_tags


class Team(StrEnum):
    DATA = "data"


class Unhashable(str):
    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ((), ()),
        (["b", "a", "b"], ("b", "a")),
        (iter(["b", "a"]), ("b", "a")),
        ({"b": 1, "a": 2}.keys(), ("b", "a")),
        ([Team.DATA, Unhashable("x")], ("data", "x")),
        ([str(n) for n in range(MAX_TAGS)] * 2, tuple(map(str, range(MAX_TAGS)))),
    ],
)
def test_tags_are_plain_texts_in_their_order_each_once(tags: Any, expected: tuple[str, ...]) -> None:
    found = checked_tags(tags)
    assert found == expected
    assert {type(tag) for tag in found} <= {str}


@pytest.mark.parametrize(
    ("tags", "error", "text"),
    [
        ("etl", TypeError, r"tags must be several texts, got 'etl'; give a list or tuple"),
        ("x" * 1000, TypeError, r"tags must be several texts, got a str; give a list or tuple"),
        (b"etl", TypeError, r"got a bytes; "),
        ({"team": "data"}, TypeError, r"got a dict; "),
        (None, TypeError, r"got a NoneType; "),
        (5, TypeError, r"got a int; "),
        (["etl", 5], TypeError, r"each tag must be a text, got a int; "),
        (["etl", ""], ValueError, r"each tag must have at least one visible character, got ''"),
        ([" "], ValueError, r"each tag must have at least one visible character, got ' '"),
        (map(str, range(MAX_TAGS + 1)), ValueError, r"tags must be at most 32 texts, got 33"),
    ],
)
def test_other_values_are_refused_with_the_fix(tags: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        checked_tags(tags)


def test_tags_are_masked_and_cut_for_messages() -> None:
    tags = checked_tags(["etl", "password=hunter2", "password=hunter3", "é" * 1000])
    shown = masked_tags(tags)
    assert shown[:2] == ["etl", "password=***"]
    assert len(shown) == 3, "two tags that are equal after the masking are one"
    assert len(shown[2].encode()) <= MAX_NAME_BYTES
