"""Times of a subject and of its baseline from one run, and the row of the table that they make."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Pair = tuple[float, float]
"""What the subject and its baseline took, one right after the other."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `reached` is None where there is no goal."""

    what: str
    ours: str
    baseline: str
    ratio: str = ""
    goal: str = ""
    reached: bool | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ratio should be: at most, or at least, this."""

    bound: float
    is_floor: bool = False

    def holds(self, ratio: float) -> bool:
        return ratio >= self.bound if self.is_floor else ratio <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.is_floor else '≤'} {self.bound:g}x"


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a call takes. Garbage of what was before is collected first; the collector stays on, as in life."""
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(subject: Callable[[], float], baseline: Callable[[], float], repetitions: int) -> list[Pair]:
    """Both by turns, so that what else the machine does befalls both; who begins alternates."""
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
    """The row of a subject and its baseline: medians, the median of the pairs' ratios, and from which to which they go."""
    ratios = [ours / max(theirs, 1e-12) for ours, theirs in pairs]
    middle = median(ratios)
    return Row(
        what,
        f"{_number(median(ours for ours, _ in pairs) * scale)} {unit}",
        f"{_number(median(theirs for _, theirs in pairs) * scale)} {unit}",
        f"{_number(middle)}x {spread(ratios)}",
        str(goal or ""),
        goal.holds(middle) if goal else None,
    )


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """The smallest and the largest."""
    return f"({_number(min(values) * scale)} to {_number(max(values) * scale)})"


def amount(values: Sequence[float], unit: str, scale: float = 1.0) -> str:
    """The median with its unit and spread."""
    return f"{_number(median(values) * scale)} {unit} {spread(values, scale)}"


def as_table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| what | ours | baseline | ratio (spread) | goal | reached |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.what} | {r.ours} | {r.baseline} | {r.ratio} | {r.goal} | {_word(r.reached)} |" for r in rows]
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004


def _word(reached: bool | None) -> str:
    return {None: "", True: "yes", False: "**no**"}[reached]
