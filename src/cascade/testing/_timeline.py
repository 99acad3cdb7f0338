"""How long something took, in words, and when it ran, as a bar."""

from dataclasses import dataclass

_FULL, _LEFT, _RIGHT, _TICK, _SLIVERS = "█", "▌", "▐", "│", "▏▕"
_LIGHT = "░"
_MANY_DAYS = 100
_MOMENT = 1
"""Nanoseconds, at most, of what took no time: Cascade's moments last one, for Jaeger wants every span to have a length."""
_UNITS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns"))


@dataclass(frozen=True, slots=True)
class Timeline:
    """A window of time, in nanoseconds, drawn on so many cells."""

    start_ns: int
    end_ns: int
    cells: int

    def bar(self, start_ns: int, end_ns: int, *, light: bool = False) -> str:
        """Where in the window this was, to half a cell; what took no time is a tick. Always `cells` wide."""
        if not self.cells:
            return ""
        first, last = self._half(start_ns), self._half(max(start_ns, end_ns))
        if end_ns - start_ns <= _MOMENT:
            return self._placed(first // 2, _TICK)
        if first == last:
            return self._placed(first // 2, _LIGHT if light else _SLIVERS[first % 2])
        drawn = [self._cell(cell, first, last, light=light) for cell in range(first // 2, (last - 1) // 2 + 1)]
        return self._placed(first // 2, "".join(drawn))

    def scale(self) -> str:
        """The line above the bars: from nought to the window's length."""
        total = duration(self.end_ns - self.start_ns)
        line = self.cells - len(total) - 3
        return f"0 {'─' * line} {total}" if line > 0 else " " * self.cells

    def _half(self, at_ns: int) -> int:
        """The half cell at this moment, of twice as many as there are cells; the last moment belongs to the last."""
        length = max(1, self.end_ns - self.start_ns)
        half = (min(max(at_ns, self.start_ns), self.end_ns) - self.start_ns) * 2 * self.cells // length
        return int(half)

    def _cell(self, cell: int, first: int, last: int, *, light: bool) -> str:
        left, right = first <= 2 * cell, 2 * cell + 1 < last
        if light or (left and right):
            return _LIGHT if light else _FULL
        return _LEFT if left else _RIGHT

    def _placed(self, cell: int, drawn: str) -> str:
        """The drawing in its place; at the window's very end, still within it."""
        cell = min(cell, self.cells - len(drawn))
        return (" " * cell + drawn).ljust(self.cells)


def duration(length_ns: int) -> str:
    """A duration in three digits, at most eight characters: `"412 µs"`, `"1.20 s"`, `"3m 12s"`, `"2d 3h"`."""
    if length_ns < 0:
        return f"-{duration(-length_ns)}"
    if length_ns <= _MOMENT:
        return "0"
    minutes, seconds = divmod(round(length_ns / 1e9), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days}d {hours_left}h" if days < _MANY_DAYS else f"{days}d"
    if hours:
        return f"{hours}h {minutes:02}m"
    if minutes:
        return f"{minutes}m {seconds:02}s"
    return _three_digits(length_ns)


def span_of_durations(shortest_ns: int, longest_ns: int) -> str:
    """From a duration to another, the unit but once if it is the same."""
    low, high = duration(shortest_ns), duration(longest_ns)
    if low == high:
        return high
    number, _, unit = low.partition(" ")
    return f"{number if unit and high.endswith(f' {unit}') else low}–{high}"  # noqa: RUF001 - a range's dash


def _three_digits(length_ns: int) -> str:
    # What would be rounded up to 1000 is one of the next larger unit.
    size, unit = next((size, unit) for size, unit in _UNITS if length_ns >= 0.9995 * size)
    value = length_ns / size
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0  # noqa: PLR2004 - three digits in all
    return f"{value:.{digits if size > 1 else 0}f} {unit}"
