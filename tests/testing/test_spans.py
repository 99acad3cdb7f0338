import pytest

from cascade.testing.spans import ReceivedSpan, Spans

A, B = "a" * 32, "b" * 32


def a_span(name: str, span_id: str, parent: str | None = None, *, trace: str = A, start_ns: int = 0) -> ReceivedSpan:
    return ReceivedSpan(name, trace, span_id, parent, start_ns=start_ns)


@pytest.fixture
def spans() -> Spans:
    return Spans(
        [
            a_span("run", "1"),
            a_span("late", "2", "1", start_ns=9),
            a_span("early", "3", "1", start_ns=4),
            a_span("early", "4", "gone"),
            a_span("other", "5", "1", trace=B),
        ]
    )


def test_spans_are_found_by_name_and_id(spans: Spans) -> None:
    assert [span.span_id for span in spans.named("early")] == ["3", "4"]
    assert spans.named("nowhere") == []
    assert spans.one("late") is spans.by_id("2")


def test_relatives_of_a_span_are_found(spans: Spans) -> None:
    run = spans.one("run")
    assert [span.name for span in spans.children(run)] == ["early", "late"]
    assert spans.roots() == [run]
    assert [span.span_id for span in spans.orphans()] == ["4", "5"]
    assert {trace_id: len(trace) for trace_id, trace in spans.traces().items()} == {A: 4, B: 1}


@pytest.mark.parametrize("name", ["early", "nowhere"])
def test_an_error_about_the_number_of_spans_lists_the_names(spans: Spans, name: str) -> None:
    with pytest.raises(AssertionError, match=f"'{name}'.*2 x early, 1 x run"):
        spans.one(name)


def test_a_span_that_was_received_twice_is_not_found_by_id() -> None:
    twice = Spans([a_span("run", "1"), a_span("run", "1")])
    with pytest.raises(AssertionError, match="id 1, found 2"):
        twice.by_id("1")


def test_a_long_list_of_names_is_cut() -> None:
    many = Spans(a_span(f"name {number}", str(number)) for number in range(100))
    assert many.summary().endswith("and 80 more names")
    assert Spans().summary() == "no spans"


def test_spans_are_a_sequence(spans: Spans) -> None:
    assert spans[1:3] == Spans([spans[1], spans[2]])
    assert spans[0] in spans
    assert len({spans, Spans(spans)}) == 1
    assert repr(spans[:1]) == "<Spans: 1 x run>"


def test_durations_are_milliseconds() -> None:
    assert ReceivedSpan("x", A, "1", start_ns=1_000_000, end_ns=3_500_000).duration_ms == 2.5
