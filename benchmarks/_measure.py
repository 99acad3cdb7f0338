"""Timing of a subject and its baseline, and the rows of the table."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Pair = tuple[float, float]
"""Seconds of the subject and of its baseline, measured one after the other."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table. `reached` is None without a goal."""

    what: str
    ours: str
    baseline: str
    ratio: str = ""
    goal: str = ""
    reached: bool | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """The upper or lower bound of a ratio, or of an amount with another unit."""

    bound: float
    is_floor: bool = False
    unit: str = "x"

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.is_floor else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.is_floor else '≤'} {self.bound:,g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number of one revision, for a comparison of revisions.

    Attributes:
        what: The name of the row.
        value: The number in its base unit: seconds, bytes, or an amount per second.
        unit: The unit of the table.
        scale: The factor from the base unit to the unit of the table.
        is_rate: A larger number is better.
        words: The verdicts for a better and a worse number.
    """

    what: str
    value: float
    unit: str
    scale: float = 1.0
    is_rate: bool = False
    words: tuple[str, str] = ("faster", "slower")


MEMORY = ("smaller", "larger")
"""The verdicts for figures of memory."""


def timed(work: Callable[[], Any]) -> float:
    """Return the duration of a call in seconds. Garbage is collected before the call; the collector stays on."""
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(subject: Callable[[], float], baseline: Callable[[], float], repetitions: int) -> list[Pair]:
    """Measure both in turn and alternate the order, so that other load on the machine affects both alike."""
    pairs: list[Pair] = []
    for turn in range(repetitions):
        if turn % 2:
            ours = subject()
            pairs.append((ours, baseline()))
        else:
            theirs = baseline()
            pairs.append((subject(), theirs))
    return pairs


def versus(what: str, pairs: Sequence[Pair], unit: str, goal: Goal | None = None, *, scale: float = 1.0) -> Row:
    """Return the row of a subject and its baseline: medians, and the median and spread of the pairs' ratios."""
    ratios = [ours / max(theirs, 1e-12) for ours, theirs in pairs]
    middle = median(ratios)
    return Row(
        what,
        f"{number(median(ours for ours, _ in pairs) * scale)} {unit}",
        f"{number(median(theirs for _, theirs in pairs) * scale)} {unit}",
        f"{number(middle)}x {spread(ratios)}",
        str(goal or ""),
        goal.holds(middle) if goal else None,
    )


def absolute(what: str, values: Sequence[float], unit: str, goal: Goal | None = None, *, scale: float = 1.0) -> Row:
    """Return the row of a subject without a baseline. The goal is compared with the median, in the unit of the table."""
    reached = goal.holds(median(values) * scale) if goal else None
    return Row(what, amount(values, unit, scale), "", "", str(goal or ""), reached)


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Return the smallest and the largest value as text."""
    return f"({number(min(values) * scale)} to {number(max(values) * scale)})"


def amount(values: Sequence[float], unit: str, scale: float = 1.0) -> str:
    """Return the median with its unit and spread."""
    return f"{number(median(values) * scale)} {unit} {spread(values, scale)}"


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| what | ours | baseline | ratio (spread) | goal | reached |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.what} | {r.ours} | {r.baseline} | {r.ratio} | {r.goal} | {_word(r.reached)} |" for r in rows]
    return "\n".join(lines)


def number(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004


def _word(reached: bool | None) -> str:
    return {None: "", True: "yes", False: "**no**"}[reached]
