"""Draws the state of the active runs as the lines of the live view."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.color import ColorSystem
from rich.style import Style

from cascade.connectors.console.progress import Ended, MapProgress, Retry, RunProgress, Tasks
from cascade.connectors.console.span_text import duration
from cascade.connectors.console.trace_drawing import without_controls

Piece = tuple[str, str]
"""A text and the name of its style, as of rich."""

_NO_BARS_BELOW = 64
"""Below this width, maps have no bars, so that the numbers are readable."""
_MAX_NAME, _MAX_BAR = 32, 24
_MAX_BELOW = 3
"""Failed and retried items that are shown below their map."""
_MINUTE_NS = 60_000_000_000
_SECOND_NS = 1_000_000_000
_FAILED, _RUNNING, _WAITING, _DONE = range(4)
"""Ranks of lines. If the terminal is too low for all lines, the lines with the highest rank are left out."""


class Line(NamedTuple):
    """A line of the view. Lines are in the order of `path`: the start times of its run, task and item."""

    rank: int
    path: tuple[int, ...]
    depth: int
    symbol: str
    style: str
    name: str
    details: tuple[Piece, ...]
    progress: MapProgress | None = None


class RunView(NamedTuple):
    """An active run with the runs that its tasks have started."""

    progress: RunProgress
    nested: Sequence["RunView"] = ()


def draw_view(runs: Sequence[RunView], *, width: int, height: int, now_ns: int, color: bool) -> list[str]:
    """Return the lines of the view: at most `height` lines of at most `width` cells."""
    lines: list[str] = []
    for number, run in enumerate(runs):
        room = (height - len(lines)) // (len(runs) - number)  # the runs share the lines
        if room < 1:
            break
        lines += _draw_run(run, width, room, now_ns, color=color)
    return lines


def _draw_run(run: RunView, width: int, height: int, now_ns: int, *, color: bool) -> Iterator[str]:
    progress = run.progress
    head = [("▸ ", "cyan"), (f"run {progress.target}  ", "bold"), (elapsed(now_ns - progress.start_ns), "")]
    yield render([*head, *_counts(progress, now_ns)], width, color=color)
    lines = list(_lines(run, (), 1, height, now_ns))
    room = height - 1
    shown = sorted(lines, key=lambda line: line.rank)[:room]
    left_out = _left_out(progress, lines, room)
    if left_out and len(shown) == room:
        shown = shown[:-1]
        left_out = _left_out(progress, lines, room - 1)
    shown.sort(key=lambda line: line.path)
    name_width = min(
        _MAX_NAME, width * 2 // 5, max((cell_len(line.name) + 2 * line.depth for line in shown), default=0)
    )
    for line in shown:
        yield _draw_line(line, width, name_width, now_ns, color=color)
    if left_out and room > 0:
        yield render([(f"  … {left_out}", "dim")], width, color=color)


def _counts(progress: RunProgress, now_ns: int) -> Iterator[Piece]:
    yield f"  {progress.ended:,} of {max(progress.size, progress.ended):,} tasks", ""
    yield from _problems(progress)
    waiting = len(progress.waiting) + sum(retry.until_ns > now_ns for retry in progress.retries.values())
    if waiting:
        yield f", {waiting:,} waiting", "yellow"


def _problems(tasks: Tasks) -> Iterator[Piece]:
    if tasks.failed:
        yield f", {tasks.failed:,} failed", "red"
    if tasks.cached:
        yield f", {tasks.cached:,} cached", "dim"
    if tasks.cancelled:
        yield f", {tasks.cancelled:,} cancelled", "yellow"


def _left_out(progress: RunProgress, lines: Sequence[Line], room: int) -> str:
    """Return how many tasks the lines do not show: `"12 more running, 40 waiting, 20 not started"`."""
    shown = sorted(lines, key=lambda line: line.rank)[:room]
    active = [line.symbol for line in shown if line.depth == 1 and line.progress is None]
    started = progress.ended + len(progress.maps)
    counts = []
    for tasks, symbol, what in (
        (progress.running, "▸", "more running"),
        (progress.retries, "↻", "more retried"),
        (progress.waiting, "◦", "more waiting"),
    ):
        started += len(tasks)
        counts.append((len(tasks) - active.count(symbol), what))
    counts.append((progress.size - started, "not started"))
    return ", ".join(f"{count:,} {what}" for count, what in counts if count > 0)


def _lines(run: RunView, path: tuple[int, ...], depth: int, room: int, now_ns: int) -> Iterator[Line]:
    """Yield lines of a run, at least those of the first ranks that fit into `room` lines."""
    progress = run.progress
    yield from _failures(progress.failures, path, depth, room)
    for one in islice(progress.maps.values(), room):
        yield from _map_lines(one, path, depth, room, now_ns)
    for nested in run.nested[:room]:
        yield from _nested_lines(nested, path, depth, room, now_ns)
    for task in islice(progress.running.values(), room):
        details = ((elapsed(now_ns - task.start_ns), ""),)
        yield Line(_RUNNING, (*path, task.start_ns), depth, "▸", "cyan", task.label, details)
    yield from _retries(progress.retries.values(), path, depth, room, now_ns)
    for task in islice(progress.waiting.values(), room):
        yield Line(_WAITING, (*path, task.start_ns), depth, "◦", "yellow", task.label, ((task.text, "yellow"),))
    for ended in islice(reversed(progress.finished), room):
        yield _finished_line(ended, path, depth)


def _finished_line(ended: Ended, path: tuple[int, ...], depth: int) -> Line:
    text = f"skipped: {ended.text}" if ended.is_skipped else duration(ended.length_ns)
    symbol, style = ("◦", "dim") if ended.is_skipped else ("✓", "green")
    return Line(_DONE, (*path, ended.start_ns), depth, symbol, style, ended.label, ((text, "dim"),))


def _failures(failures: Iterable[Ended], path: tuple[int, ...], depth: int, room: int) -> Iterator[Line]:
    for failure in islice(failures, room):
        yield Line(_FAILED, (*path, failure.start_ns), depth, "✗", "red", failure.label, ((failure.text, "red"),))


def _retries(retries: Iterable[Retry], path: tuple[int, ...], depth: int, room: int, now_ns: int) -> Iterator[Line]:
    for retry in islice(retries, room):
        left_ns = retry.until_ns - now_ns
        attempt = f"attempt {retry.attempt} of {retry.attempts}"
        attempt = f"{attempt} in {countdown(left_ns)}" if left_ns > 0 else attempt
        details = ((attempt, "yellow"), (f": {retry.error}" if retry.error else "", "yellow"))
        yield Line(_FAILED, (*path, retry.start_ns), depth, "↻", "yellow", retry.label, details)


def _map_lines(one: MapProgress, path: tuple[int, ...], depth: int, room: int, now_ns: int) -> Iterator[Line]:
    own = (*path, one.start_ns)
    yield Line(_FAILED, own, depth, "▸", "cyan", one.name, (), one)
    latest = list(one.failures)[-_MAX_BELOW:]
    yield from _failures(latest, own, depth + 1, room)
    yield from _retries(list(islice(one.retries.values(), _MAX_BELOW)), own, depth + 1, room, now_ns)
    for reason, count in one.reasons().most_common(_MAX_BELOW) if one.waiting else ():
        text = f"{count:,} {reason if count == 1 else reason.replace('waits', 'wait', 1)}"
        yield Line(_WAITING, (*own, now_ns), depth + 1, "◦", "yellow", "", ((text, "yellow"),))


def _nested_lines(run: RunView, path: tuple[int, ...], depth: int, room: int, now_ns: int) -> Iterator[Line]:
    progress = run.progress
    own = (*path, progress.start_ns)
    details = ((elapsed(now_ns - progress.start_ns), ""), *_counts(progress, now_ns))
    yield Line(_RUNNING, own, depth, "▸", "cyan", f"run {progress.target}", details)
    for line in _lines(run, own, depth + 1, room, now_ns):
        yield line._replace(rank=max(line.rank, _WAITING)) if line.rank != _FAILED else line


def _draw_line(line: Line, width: int, name_width: int, now_ns: int, *, color: bool) -> str:
    indent = "  " * line.depth
    pieces: list[Piece] = [(f"{indent}{line.symbol} ", line.style)]
    if line.name:
        pieces.append((f"{fitted(line.name, name_width - 2 * (line.depth - 1))}  ", ""))
    pieces += line.details if line.progress is None else _map_details(line.progress, width, now_ns)
    return render(pieces, width, color=color)


def _map_details(one: MapProgress, width: int, now_ns: int) -> Iterator[Piece]:
    ended = one.ended
    if width >= _NO_BARS_BELOW:
        cells = min(_MAX_BAR, width // 4)
        full = cells * min(ended, one.size) // max(1, one.size)
        failed = min(full, -(-cells * one.failed // max(1, one.size)))
        yield "█" * (full - failed), "green"
        yield "█" * failed, "red"
        yield f"{'░' * (cells - full)}  ", "dim"
    yield f"{ended:,} of {one.size:,}", ""
    yield from _problems(one)
    if (rate := one.rate(now_ns / 1e9)) is not None:
        left = countdown(round((one.size - ended) / rate * _SECOND_NS))
        yield f", {_rounded(rate)}/s" + (f", {left} left" if one.size > ended else ""), "dim"


def elapsed(length_ns: int) -> str:
    """Return a duration in whole seconds, so that the view changes once a second."""
    return f"{max(0, length_ns) // _SECOND_NS} s" if length_ns < _MINUTE_NS else duration(length_ns)


def countdown(length_ns: int) -> str:
    """Return a duration in whole seconds, rounded up."""
    return f"{-(-length_ns // _SECOND_NS)} s" if length_ns < _MINUTE_NS else duration(length_ns)


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"  # noqa: PLR2004 - two digits


def fitted(text: str, width: int) -> str:
    """Return the text with exactly that number of cells, and an ellipsis in place of the rest."""
    text, width = without_controls(text), max(1, width)
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def render(pieces: Iterable[Piece], width: int, *, color: bool) -> str:
    """Return one line of at most `width` cells, with escape sequences for the styles if it has colors."""
    shown, room = [], width
    for text, style in pieces:
        text = without_controls(text)  # noqa: PLW2901
        cells = cell_len(text)
        if cells > room:
            text, cells = fitted(text, room), room  # noqa: PLW2901
        shown.append(_style(style).render(text, color_system=ColorSystem.STANDARD) if color and style else text)
        room -= cells
        if room <= 0:
            break
    return "".join(shown)


@lru_cache(maxsize=64)
def _style(name: str) -> Style:
    return Style.parse(name)
