"""Checks of the options of connectors. Each error names the value and the allowed values."""

import math
from collections.abc import Iterable
from typing import Any

_CAPTURES = ("params", "arguments", "results")


def captures(capture: Iterable[str]) -> frozenset[str]:
    wanted = frozenset([capture] if isinstance(capture, str) else capture)
    if unknown := wanted.difference(_CAPTURES):
        raise ValueError(f"capture: {min(unknown)!r} is unknown; choose from {', '.join(_CAPTURES)}")
    return wanted


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose from {', '.join(map(repr, choices))}")
    return value


def positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name}={value!r}: give seconds, more than zero")
    return float(value)


def seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name}={value!r}: give seconds, zero or more")
    return float(value)


def whole(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: give a whole number, more than zero")
    return value
