"""Draws traces as trees in the terminal, with the library rich."""

import io
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cascade._imports import missing_extra
from cascade.tools._span_nodes import Group, Span, SpanNode, build_trees, group_children, walk
from cascade.tools._span_text import (
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

try:
    from rich.console import Console
    from rich.text import Text
except ImportError as error:
    raise missing_extra("cli", error) from error

MIN_WIDTH = 40
DEFAULT_WIDTH = 100
"""Width if stdout is not a terminal."""
_NO_BARS_BELOW = 64
"""Below this width, the lines have no bars, so that names are readable."""
_DURATION = 8
_INDENT = 3
_MAX_EVENTS = 3
_ERROR, _BAR, _ERROR_BAR, _WAIT_BAR = "bold red", "cyan", "red", "yellow"
_ASCII = str.maketrans(
    {"├": "|", "└": "`", "│": "|", "─": "-", "┄": ".", "⋯": "~", "•": "*", "…": "~", "←": "<", "·": ";", "✗": "x"}
    | {"–": "-", "█": "#", "▌": "#", "▐": "#", "▏": "|", "▕": "|", "░": ":", "µ": "u"}  # noqa: RUF001
)
"""The characters of the tree for a terminal whose encoding lacks them."""


def render_trace(
    spans: Sequence[Span], *, width: int | None = None, color: bool | None = None, max_children: int = 8
) -> str:
    """Draw spans as trees. A line has the name of a span, facts about it, its duration and a bar on a time axis.

    The parts of a split trace are below their run or map. A span whose parent is missing is a root with a note. If
    more than `max_children` children have the same name, the slowest and those with errors or events are drawn, and one
    line summarizes the others. Characters that the encoding of stdout lacks are replaced by ASCII characters.

    Args:
        spans: Spans of one or more traces, in any order.
        width: Cells of a line, 40 or more. None is the width of the terminal, which COLUMNS overrides, or 100 if
            stdout is not a terminal.
        color: Use ANSI escape sequences. None uses them if stdout is a terminal or FORCE_COLOR is set. NO_COLOR in the
            environment turns them off.
        max_children: 1 or more.

    Raises:
        ValueError: `width` or `max_children` is too small.
    """
    if width is None:
        width = max(MIN_WIDTH, shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns)
    if width < MIN_WIDTH:
        raise ValueError(f"width must be {MIN_WIDTH} or more, got {width}")
    if max_children < 1:
        raise ValueError(f"max_children must be 1 or more, got {max_children}")
    colored = _is_colored(color)
    output = io.StringIO()
    console = Console(
        file=output,
        width=width,
        height=24,  # without it, rich ignores the width in a dumb terminal
        color_system="standard" if colored else None,
        force_terminal=colored,
        force_jupyter=False,
        legacy_windows=False,
        no_color=False,
    )
    for number, tops in enumerate(build_trees(spans)):
        if number:
            output.write("\n")
        for line in _TraceDrawing(tops, width, max_children).lines():
            line.rstrip()
            console.print(line, soft_wrap=True, highlight=False)
    return _encodable(output.getvalue().removesuffix("\n")) or "(no spans)"


def _is_colored(color: bool | None) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if color is not None:
        return color
    if forced := os.environ.get("FORCE_COLOR"):
        return forced != "0"
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _encodable(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def _line(*pieces: tuple[str, str]) -> Text:
    """Return a line of pieces with styles. A blank replaces each character that breaks a line or moves the cursor."""
    return Text.assemble(*((_printable(text), style) for text, style in pieces), no_wrap=True)


def _printable(text: str) -> str:
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
        self._nodes = list(walk(tops))
        start = min(node.span.start_ns for node in self._nodes)
        end = max(max(node.span.start_ns, node.span.end_ns) for node in self._nodes)
        self._axis = TimeAxis(start, end, cells)

    def lines(self) -> Iterator[Text]:
        yield self._row(_line((title(self._nodes), "bold")), bar=self._axis.scale(), style="dim")
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
        items = group_children(node.children, self._max_children)
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
        events = events_of(node.span)
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
        start = min(node.span.start_ns for node in group.nodes)
        end = max(node.span.end_ns for node in group.nodes)
        return self._row(left, bar=self._axis.bar(start, end, light=True), style="dim")

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
