"""Keys of a call's arguments among a node's inputs: "0", "1", … for positional ones, the name for keywords.

A keyword may look like a position, as in `f("a", **{"0": "b"})`. A keyword that names a position of the call, or the
position after the last one, has two asterisks before it: the inputs are `{"0": "a", "**0": "b"}`. So no two arguments
share a key, and no two different calls have the same inputs.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

_MARK = "**"
_MAX_DIGITS = 9
"""More digits than any number of arguments has."""


class ArgKind(StrEnum):
    """Whether a call passes an argument by position or by keyword."""

    POSITIONAL = "positional"
    KEYWORD = "keyword"


def key_of(keyword: str, positional: int) -> str:
    """The key of a keyword argument in a call with the given number of positional arguments."""
    if keyword.isidentifier() or not _is_position(keyword.lstrip("*"), positional + 1):
        return keyword
    return _MARK + keyword


def split(inputs: Mapping[str, Any], positional: int) -> tuple[list[Any], dict[str, Any]]:
    """The positional arguments, in order, and the keyword arguments of a call."""
    if not positional and all(map(str.isidentifier, inputs)):  # most calls
        return [], dict(inputs)
    args = [inputs[str(position)] for position in range(positional)]
    if len(args) == len(inputs):
        return args, {}
    return args, {
        key if key.isidentifier() else _keyword_of(key, positional): value
        for key, value in inputs.items()
        if key.isidentifier() or not _is_position(key, positional)
    }


def joined(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a call: the inverse of `split`."""
    inputs = {str(position): value for position, value in enumerate(args)}
    return inputs | {key_of(name, len(args)): value for name, value in kwargs.items()}


def count_positional(keys: Mapping[str, Any]) -> int:
    """The number of positional arguments of a node that does not have it: each key of digits is a position."""
    count = 0
    while str(count) in keys:
        count += 1
    return count


def _keyword_of(key: str, positional: int) -> str:
    return key.removeprefix(_MARK) if key_of(key.removeprefix(_MARK), positional) == key else key


def _is_position(text: str, end: int) -> bool:
    """Whether the text is a number below `end` in the form in which positions are written: no sign, no leading zero."""
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_DIGITS:
        return False
    return int(text) < end and str(int(text)) == text
