"""Draws trees of spans as lines of text, with the library rich."""

import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from cascade.connectors.console.span_nodes import Group, Span, SpanNode, group_children, walk
from cascade.connectors.console.span_text import (
    TimeAxis,
    duration,
    error_text,
    event_text,
    events_of,
    facts,
    group_text,
    is_attempt,
    is_skipped,
    is_wait,
    links_text,
    span_label,
    title,
)

MIN_WIDTH = 40
DEFAULT_WIDTH = 100
"""Width of lines that are not printed on a terminal."""
MAX_CHILDREN = 8
"""Children with the same name that are drawn; a line summarizes the others."""
_NO_BARS_BELOW = 64
"""Below this width, the lines have no bars, so that names are readable."""
_DURATION = 8
_INDENT = 3
_MAX_EVENTS = 3
_ERROR, _BAR, _ERROR_BAR, _WAIT_BAR = "bold red", "cyan", "red", "yellow"


def draw_trace(tops: list[SpanNode], *, width: int, color: bool, max_children: int = MAX_CHILDREN) -> str:
    """Return the lines of one trace. Each line has a name, facts, a duration, and a bar on a time axis.

    Args:
        tops: The top nodes of the trace, in the order of their start.
        width: Cells of a line, `MIN_WIDTH` or more.
        color: Whether the lines have ANSI escape sequences.
        max_children: Children with the same name that are drawn, 1 or more.
    """
    output = io.StringIO()
    console = Console(
        file=output,
        width=width,
        height=24,  # without it, rich ignores the width in a dumb terminal
        color_system="standard" if color else None,
        force_terminal=color,
        force_jupyter=False,
        legacy_windows=False,
        no_color=False,
    )
    for line in _TraceDrawing(tops, width, max_children).lines():
        line.rstrip()
        console.print(line, soft_wrap=True, highlight=False)
    return output.getvalue().removesuffix("\n")


def _line(*pieces: tuple[str, str]) -> Text:
    """Return a line of pieces with styles. A blank replaces each character that breaks a line or moves the cursor."""
    return Text.assemble(*((without_controls(text), style) for text, style in pieces), no_wrap=True)


def without_controls(text: str) -> str:
    """Return the text with a blank in place of each character that breaks a line or moves the cursor."""
    if text.isprintable():
        return text
    return "".join(" " if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else char for char in text)


@dataclass(frozen=True, slots=True)
class _Branch:
    """A node or group with the guides left of it.

    Attributes:
        guides: The guides of its ancestors.
        connector: The guide to its parent.
        below: The guides of its children.
        service: The service of its parent.
    """

    item: SpanNode | Group
    guides: str = ""
    connector: str = ""
    below: str = ""
    service: object = None
    is_top: bool = False


class _TraceDrawing:
    """Draws one trace with its parts."""

    def __init__(self, tops: list[SpanNode], width: int, max_children: int) -> None:
        self._tops, self._max_children = tops, max_children
        cells = width * 3 // 10 if width >= _NO_BARS_BELOW else 0
        self._left = width - _DURATION - cells - (3 if cells else 1)
        nodes = list(walk(tops))
        start = min(node.span.start_ns for node in nodes)
        end = max(max(node.span.start_ns, node.span.end_ns) for node in nodes)
        self._axis = TimeAxis(start, end, cells)

    def lines(self) -> Iterator[Text]:
        yield self._row(_line((title(self._tops), "bold")), bar=self._axis.scale(), style="dim")
        # A stack instead of recursion: a chain of spans may be deeper than Python's recursion limit.
        stack = [_Branch(item, is_top=True) for item in reversed(group_children(self._tops, self._max_children))]
        while stack:
            branch = stack.pop()
            if isinstance(branch.item, Group):
                yield self._group_row(branch, branch.item)
            else:
                yield self._span_row(branch, branch.item)
                yield from self._event_rows(branch, branch.item)
                stack += reversed(self._branches(branch, branch.item))

    def _branches(self, branch: _Branch, node: SpanNode) -> list[_Branch]:
        items = group_children(_drawn_children(node), self._max_children, node.hidden)
        return [
            _Branch(
                item,
                guides=branch.below,
                connector=("└" if item is items[-1] else "├")
                + ("┄ " if isinstance(item, SpanNode) and item.is_part else "─ "),
                below=branch.below + ("   " if item is items[-1] else "│  "),
                service=_service(node.span),
            )
            for item in items
        ]

    def _span_row(self, branch: _Branch, node: SpanNode) -> Text:
        span, error = node.span, error_text(node.span)
        faint, remarks = is_skipped(span) or is_wait(span), _remarks(branch, node)
        left = _line(
            (self._fit_guides(branch.guides) + branch.connector, "dim"),
            (span_label(span), _ERROR if error else "dim" if faint else "bold" if branch.is_top else ""),
            (f"  {error}" if error else "", _ERROR),
            (f"  {' · '.join(remarks)}" if remarks else "", "dim"),
        )
        bar = self._axis.bar(span.start_ns, span.end_ns, light=is_wait(span))
        style = _ERROR_BAR if error else _WAIT_BAR if faint else _BAR
        return self._row(left, length=duration(span.end_ns - span.start_ns), bar=bar, style=style)

    def _event_rows(self, branch: _Branch, node: SpanNode) -> Iterator[Text]:
        events = events_of(node)
        guides = self._fit_guides(branch.below + ("│  " if node.children else "   "))
        for event in events[:_MAX_EVENTS]:
            left = _line((f"{guides}• {event_text(event, node.span)}", "dim"))
            yield self._row(left, bar=self._axis.bar(event.time_ns, event.time_ns), style="dim")
        if len(events) > _MAX_EVENTS:
            yield self._row(_line((f"{guides}• … {len(events) - _MAX_EVENTS:,} more events", "dim")))

    def _group_row(self, branch: _Branch, group: Group) -> Text:
        left = _line(
            (self._fit_guides(branch.guides) + branch.connector, "dim"),
            (group_text(group), _ERROR if group.errors else "dim"),
        )
        return self._row(left, bar=self._axis.bar(group.start_ns, group.end_ns, light=True), style="dim")

    def _row(self, left: Text, *, length: str = "", bar: str = "", style: str = "") -> Text:
        left.truncate(self._left if length else self._left + 1 + _DURATION, overflow="ellipsis", pad=True)
        if length:
            left.append(f" {length:>{_DURATION}}")
        if bar:
            left.append("  ").append(bar, style)
        return left

    def _fit_guides(self, guides: str) -> str:
        """Cut the guides of deep spans at the left, so that at least half of the column is left for the name."""
        room = self._left // 2 // _INDENT * _INDENT
        return guides if len(guides) <= room else f"⋯  {guides[len(guides) - room + _INDENT :]}"


def _drawn_children(node: SpanNode) -> list[SpanNode]:
    """Return the children without the attempt of a task that was not retried: it has the times and the error of the task."""
    attempts = [child for child in node.children if is_attempt(child.span)]
    if len(attempts) != 1 or attempts[0].children or events_of(attempts[0]) or node.hidden:
        return node.children
    return [child for child in node.children if child is not attempts[0]]


def _remarks(branch: _Branch, node: SpanNode) -> list[str]:
    span = node.span
    attempts = sum(is_attempt(child.span) for child in node.children)
    remarks = facts(span, attempts=attempts, is_top=branch.is_top)
    if branch.is_top and span.parent_span_id is not None:
        remarks.append(f"parent {span.parent_span_id} is missing")
    if node.is_part:
        remarks.append(f"trace {span.trace_id[:8]}…")
    if _service(span) not in {None, branch.service}:
        remarks.append(f"@{_service(span)}")
    if node.linked:
        remarks.append(links_text(node.linked))
    return remarks


def _service(span: Span) -> object:
    return span.resource.get("service.name")
