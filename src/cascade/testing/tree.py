"""A trace as a tree in the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cascade.testing._canvas import Piece, fitted, is_colored, painted, terminal_width
from cascade.testing._facts import (
    MAX_EVENTS,
    consumed,
    counted,
    event_text,
    facts,
    is_attempt,
    is_skipped,
    is_wait,
    label,
    told_events,
)
from cascade.testing._folding import Fold, folded
from cascade.testing._forest import Node, plant, walk
from cascade.testing._timeline import Timeline, duration
from cascade.testing.spans import ReceivedSpan

MIN_WIDTH = 40
DEFAULT_WIDTH = 100
"""Where stdout is no terminal."""
_SHORT_ID = 8

_BARLESS_WIDTH = 64
"""Below this the names need the room."""

_DURATION = 8
_STEP = 3
"""Cells of one level of the tree."""


def render_trace(
    spans: Sequence[ReceivedSpan], *, width: int | None = None, color: bool | None = None, max_children: int = 8
) -> str:
    """Draw spans as trees. The line of a span has its name, remarks, its duration and a bar on the trace's time axis.

    A trace that is a part of another one hangs below the span that owns it. A span whose parent is missing stands at
    the left, with a remark. Of more than `max_children` children with one name, the slowest ones and those with errors
    or events are drawn. One line sums up the others.

    Args:
        spans: Of one trace or of several, in any order.
        width: Cells of a line, 40 or more; no line is longer. None takes the width of the terminal, which COLUMNS
            overrides, and 100 where stdout is no terminal.
        color: Use ANSI's escape sequences. None uses them if stdout is a terminal or FORCE_COLOR is set. With NO_COLOR
            in the environment there are none.
        max_children: 1 or more.

    Raises:
        ValueError: `width` or `max_children` is too small.
    """
    if width is None:
        width = terminal_width(least=MIN_WIDTH, otherwise=DEFAULT_WIDTH)
    if width < MIN_WIDTH:
        raise ValueError(f"width={width} is too narrow for a tree: {MIN_WIDTH} is the least")
    if max_children < 1:
        raise ValueError(f"max_children={max_children}: at least 1 must be shown")
    colored = is_colored(wanted=color)
    drawn = [_Drawing(tops, width, max_children).lines(color=colored) for tops in plant(spans)]
    return "\n\n".join("\n".join(lines) for lines in drawn) or "(no spans)"


@dataclass(frozen=True, slots=True)
class _Branch:
    """What is to be drawn, with the strokes that lead to it."""

    item: Node | Fold
    lead: str = ""
    stroke: str = ""
    below: str = ""
    service: object = None
    is_top: bool = False


class _Drawing:
    """The lines of one trace and of the parts that hang below it."""

    def __init__(self, tops: list[Node], width: int, max_children: int) -> None:
        self._tops, self._max_children = tops, max_children
        cells = width * 3 // 10 if width >= _BARLESS_WIDTH else 0
        self._left = width - _DURATION - cells - (3 if cells else 1)
        spans = [node.span for node in walk(tops)]
        start, end = min(span.start_ns for span in spans), max(max(span.start_ns, span.end_ns) for span in spans)
        self._timeline = Timeline(start, end, cells)
        self._title = _title(spans)

    def lines(self, *, color: bool) -> list[str]:
        head = self._line([(self._title, "bold")], "", self._timeline.scale(), "dim")
        return [painted(line, color=color) for line in (head, *self._rows())]

    def _rows(self) -> Iterator[list[Piece]]:
        tops = folded(self._tops, self._max_children)
        # A stack, not recursion: a chain may be deeper than Python's.
        stack = [_Branch(item, is_top=True) for item in reversed(tops)]
        while stack:
            branch = stack.pop()
            if isinstance(branch.item, Fold):
                yield self._fold_row(branch, branch.item)
            else:
                yield self._span_row(branch, branch.item)
                yield from self._event_rows(branch, branch.item)
                stack += reversed(self._branches(branch, branch.item))

    def _branches(self, branch: _Branch, node: Node) -> list[_Branch]:
        items = folded(node.children, self._max_children)
        return [
            _Branch(
                item,
                lead=branch.below,
                stroke=("└" if item is items[-1] else "├") + ("┄ " if isinstance(item, Node) and item.joined else "─ "),
                below=branch.below + ("   " if item is items[-1] else "│  "),
                service=_service(node.span),
            )
            for item in items
        ]

    def _span_row(self, branch: _Branch, node: Node) -> list[Piece]:
        span = node.span
        failed, faint = span.status == "ERROR", is_skipped(span) or is_wait(span)
        name = "error" if failed else "dim" if faint else "bold" if branch.is_top else ""
        error, *said = ["", *_remarks(branch, node)] if not failed else _remarks(branch, node)
        pieces = [
            (self._strokes(branch.lead) + branch.stroke, "dim"),
            (label(span), name),
            (f"  {error}" if error else "", "error"),
            (f"  {' · '.join(said)}" if said else "", "dim"),
        ]
        bar = self._timeline.bar(span.start_ns, span.end_ns, light=is_wait(span))
        style = "error bar" if failed else "wait bar" if faint else "bar"
        return self._line(pieces, duration(span.end_ns - span.start_ns), bar, style)

    def _event_rows(self, branch: _Branch, node: Node) -> Iterator[list[Piece]]:
        events = told_events(node.span)
        lead = self._strokes(branch.below + ("│  " if node.children else "   "))
        for event in events[:MAX_EVENTS]:
            bar = self._timeline.bar(event.time_ns, event.time_ns)
            yield self._line([(f"{lead}• {event_text(event, node.span)}", "dim")], "", bar, "dim")
        if len(events) > MAX_EVENTS:
            yield self._line([(f"{lead}• … {len(events) - MAX_EVENTS:,} more events", "dim")], "", "", "")

    def _fold_row(self, branch: _Branch, fold: Fold) -> list[Piece]:
        pieces = [
            (self._strokes(branch.lead) + branch.stroke, "dim"),
            (fold.text(), "error" if fold.errors else "dim"),
        ]
        return self._line(pieces, "", self._timeline.bar(fold.start_ns, fold.end_ns, light=True), "dim")

    def _line(self, pieces: list[Piece], length: str, bar: str, style: str) -> list[Piece]:
        ending = (f"  {bar}" if bar else "", style)
        if not length:
            return [*fitted(pieces, self._left + 1 + _DURATION), ending]
        return [*fitted(pieces, self._left), (f" {length:>{_DURATION}}", ""), ending]

    def _strokes(self, lead: str) -> str:
        """The strokes left of a span, cut at the left where they would push its name out of sight."""
        room = self._left // 2 // _STEP * _STEP
        return lead if len(lead) <= room else f"⋯  {lead[len(lead) - room + _STEP :]}"


def _remarks(branch: _Branch, node: Node) -> list[str]:
    span = node.span
    attempts = sum(is_attempt(child.span) for child in node.children)
    said = facts(span, is_root=branch.is_top, attempts=attempts)
    if branch.is_top and span.parent_span_id is not None:
        said.append(f"parent {span.parent_span_id} not here")
    if node.joined:
        said.append(f"trace {span.trace_id[:_SHORT_ID]}…")
    if _service(span) not in {None, branch.service}:
        said.append(f"@{_service(span)}")
    if node.sources:
        said.append(consumed(node.sources))
    return said


def _service(span: ReceivedSpan) -> object:
    return span.resource.get("service.name")


def _title(spans: list[ReceivedSpan]) -> str:
    errors = sum(span.status == "ERROR" for span in spans)
    failed = f", {counted(errors, 'error')}" if errors else ""
    return f"trace {spans[0].trace_id} · {counted(len(spans), 'span')}{failed}"
