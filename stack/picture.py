"""Draws a trace as SVG, in the layout of Jaeger's page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from cascade.testing import ReceivedSpan, Spans

_WIDTH, _ROW, _HEAD = 1080, 22, 58
NAMES = 370
"""The width of the column with the names of spans."""
_SLOWEST = 4
"""Number of the slowest children with one name that the picture draws. One line summarizes the others."""

_STYLE = """
text { font: 12px ui-sans-serif, system-ui, "Segoe UI", sans-serif; fill: #1f2937; }
.title { font-size: 15px; font-weight: 600; } .dim { fill: #6b7280; } .error { fill: #b91c1c; }
.grid { stroke: #e5e7eb; } .tree { stroke: #cbd5e1; fill: none; }
"""
_TEAL, _RED, _AMBER, _GREY = "#17b8be", "#dc2626", "#f59e0b", "#94a3b8"
_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"))


@dataclass(frozen=True, slots=True)
class _Row:
    """A row: one span, or several spans that are not drawn separately."""

    spans: Sequence[ReceivedSpan]
    depth: int
    note: str = ""

    @property
    def is_fold(self) -> bool:
        return len(self.spans) > 1

    @property
    def start_ns(self) -> int:
        return min(span.start_ns for span in self.spans)

    @property
    def end_ns(self) -> int:
        return max(span.end_ns for span in self.spans)


def draw(spans: Spans) -> str:
    """Return the SVG of a trace with one root."""
    (root,) = spans.roots()
    rows = list(_rows(spans, root, 0))
    height = _HEAD + _ROW * len(rows) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff" stroke="#e5e7eb"/>',
        *_head(spans, root, height),
        *(part for number, row in enumerate(rows) for part in _drawn(row, root, _HEAD + _ROW * number)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _rows(spans: Spans, span: ReceivedSpan, depth: int) -> Iterator[_Row]:
    yield _Row([span], depth, _note(spans, span))
    children = spans.children(span)
    by_name: dict[str, list[ReceivedSpan]] = {}
    for child in children:
        by_name.setdefault(child.name, []).append(child)
    for child in children:
        alike = by_name[child.name]
        if len(alike) <= _SLOWEST + 1:
            yield from _rows(spans, child, depth + 1)
        elif child is alike[0]:
            slowest = sorted(alike, key=lambda one: one.start_ns - one.end_ns)[:_SLOWEST]
            for one in sorted(slowest, key=lambda one: one.start_ns):
                yield from _rows(spans, one, depth + 1)
            others = [one for one in alike if one not in slowest]
            yield _Row(others, depth + 1)


def _note(spans: Spans, span: ReceivedSpan) -> str:
    attributes = span.attributes
    if span.status == "ERROR":
        return str(attributes.get("error.type", "ERROR"))
    if reason := attributes.get("cascade.task.skip.reason") or attributes.get("cascade.wait.reason"):
        return str(reason)
    linked = sorted({spans.by_id(link.span_id).name for link in span.links if link.trace_id == span.trace_id})
    few = 2
    return "" if not linked else f"← {', '.join(linked)}" if len(linked) <= few else f"← {len(linked)} tasks"


def _head(spans: Spans, root: ReceivedSpan, height: int) -> Iterator[str]:
    service = root.resource["service.name"]
    errors = sum(span.status == "ERROR" for span in spans)
    yield f'<text x="16" y="24" class="title">{escape(service)}: {escape(root.name)}</text>'
    about = f"trace {root.trace_id} · {len(spans)} spans, {errors} errors · {_length(root.end_ns - root.start_ns)}"
    yield f'<text x="{_WIDTH - 16}" y="24" class="dim" text-anchor="end">{about}</text>'
    quarters = 4
    for number in range(quarters + 1):
        x = NAMES + (_WIDTH - NAMES - 80) * number / quarters
        yield f'<line x1="{x:.0f}" y1="48" x2="{x:.0f}" y2="{height - 8}" class="grid"/>'
        yield f'<text x="{x:.0f}" y="44" class="dim">{_length((root.end_ns - root.start_ns) * number // quarters)}</text>'


def _drawn(row: _Row, root: ReceivedSpan, y: int) -> Iterator[str]:
    span, x = row.spans[0], 16 + 16 * row.depth
    failed, middle = span.status == "ERROR", y + 15
    if row.depth:
        yield f'<path d="M{x - 10} {y} V{y + 11} H{x - 3}" class="tree"/>'
    if row.is_fold:
        yield f'<text x="{x}" y="{middle}" class="dim">… {len(row.spans)} more {escape(span.name)}</text>'
    else:
        note = f'<tspan class="{"error" if failed else "dim"}" dx="6">{escape(row.note)}</tspan>' if row.note else ""
        yield f'<text x="{x}" y="{middle}">{escape(_name(span))}{note}</text>'
    scale = (_WIDTH - NAMES - 80) / (root.end_ns - root.start_ns)
    left, width = NAMES + (row.start_ns - root.start_ns) * scale, max(2.0, (row.end_ns - row.start_ns) * scale)
    is_wait = span.name.endswith(" wait")
    is_skip = span.attributes.get("cascade.task.result") == "skip"
    color = _RED if failed else _AMBER if is_wait else _GREY if is_skip or row.is_fold else _TEAL
    opacity = ' opacity="0.45"' if row.is_fold else ""
    yield f'<rect x="{left:.1f}" y="{y + 5}" width="{width:.1f}" height="12" rx="2" fill="{color}"{opacity}/>'
    if not row.is_fold and row.end_ns - row.start_ns > 1:
        yield f'<text x="{left + width + 5:.1f}" y="{middle}" class="dim">{_length(row.end_ns - row.start_ns)}</text>'


def _name(span: ReceivedSpan) -> str:
    shown = span.attributes.get("cascade.task.label", span.attributes.get("cascade.map.index"))
    return span.name if shown is None else f"{span.name}[{shown}]"


def _length(nanoseconds: int) -> str:
    for size, unit in _UNITS:
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds} ns"
