from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.testing import ReceivedSpan, render_trace
from cascade.testing.received import ReceivedEvent

MS = 1_000_000


def span(number: int, name: str, parent: int | None = None, start: int = 0, end: int = 10, **more: Any) -> ReceivedSpan:
    ids = f"{number:016x}", None if parent is None else f"{parent:016x}"
    return ReceivedSpan(name, "a" * 32, *ids, start_ns=start * MS, end_ns=end * MS, **more)


def test_a_trace_is_a_tree_in_the_order_of_time() -> None:
    shown = render_trace([span(3, "late", 1, 5, 9), span(1, "root"), span(2, "early", 1, 1, 4)])
    lines = shown.splitlines()
    order = [next(i for i, line in enumerate(lines) if name in line) for name in ("root", "early", "late")]
    assert order == sorted(order)
    assert "├─ early" in shown
    assert "└─ late" in shown


def test_an_error_shows_what_went_wrong() -> None:
    event = ReceivedEvent("exception", 5 * MS, {"exception.type": "LookupError", "exception.message": "gone"})
    shown = render_trace([span(1, "task", status="ERROR", attributes={"error.type": "LookupError"}, events=(event,))])
    assert "LookupError" in shown


def test_many_alike_are_folded_with_their_count() -> None:
    shown = render_trace(
        [span(0, "root"), *(span(n, "item", 0, n % 9, n % 9 + 1) for n in range(1, 101))], max_children=8
    )
    assert len(shown.splitlines()) < 15
    assert "more item" in shown


def test_orphans_and_several_roots_are_shown() -> None:
    shown = render_trace([span(1, "first"), span(2, "second"), span(3, "lost", 99)])
    assert all(name in shown for name in ("first", "second", "lost"))


@st.composite
def forests(draw: st.DrawFn) -> list[ReceivedSpan]:
    size = draw(st.integers(0, 25))
    return [
        span(
            number,
            draw(st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=60)),
            draw(st.none() | st.integers(0, number)) if number else None,
            *sorted(draw(st.tuples(st.integers(0, 50), st.integers(0, 50)))),
        )
        for number in range(1, size + 1)
    ]


@given(forests(), st.integers(60, 160))
@settings(deadline=None, max_examples=60)
def test_any_forest_fits_the_width(spans: list[ReceivedSpan], width: int) -> None:
    import unicodedata

    for line in render_trace(spans, width=width).splitlines():
        columns = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line if not unicodedata.combining(c))
        assert columns <= width
