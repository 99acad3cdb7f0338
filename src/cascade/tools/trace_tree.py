"""Draws received spans as trees in the terminal."""

import shutil
import sys
from collections.abc import Sequence

from cascade.connectors.console.span_nodes import Span, build_trees
from cascade.connectors.console.terminal import encodable, is_colored, may_color
from cascade.connectors.console.trace_drawing import DEFAULT_WIDTH, MAX_CHILDREN, MIN_WIDTH, draw_trace


def render_trace(
    spans: Sequence[Span], *, width: int | None = None, color: bool | None = None, max_children: int = MAX_CHILDREN
) -> str:
    """Draw spans as trees. A line has the name of a span, facts about it, its duration and a bar on a time axis.

    The parts of a split trace are below their run or map. A span whose parent is missing is a root with a note. If
    more than `max_children` children have the same name, the slowest and those with errors or events are drawn, and one
    line summarizes the others. The attempt of a task that was not retried is not drawn. Characters that the encoding
    of stdout lacks are replaced by ASCII characters.

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
    colored = is_colored(sys.stdout) if color is None else color and may_color()
    drawn = [draw_trace(tops, width=width, color=colored, max_children=max_children) for tops in build_trees(spans)]
    return encodable("\n\n".join(drawn), sys.stdout) or "(no spans)"
