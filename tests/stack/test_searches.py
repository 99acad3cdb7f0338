"""The searches of the dashboards find the intended spans among the spans of a real run."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import cascade as cs
from cascade.testing import MemoryConnector, OtlpReceiver, ReceivedSpan, Spans
from tests.lab.dashboards import ALL, interpolated, of_panels

ITEMS = 2_500


@cs.task
async def flaky(x: int) -> int:
    if (task := cs.current_task()) and task.attempt == 1:
        raise ConnectionError("the first time always fails")
    return x


@cs.task
async def count(items: list[int], style: str) -> int:
    return len(items)


@cs.task
def choose() -> str:
    return "short"


@cs.task
def brief() -> str:
    return "brief"


@cs.task
def story() -> str:
    return "long"


class Received(NamedTuple):
    spans: Spans
    run_id: str
    trace_id: str


@pytest.fixture(scope="module")
def received() -> Iterator[Received]:
    """Return the spans of a run in several traces, with retries, waits and a skipped task."""
    with OtlpReceiver() as receiver:
        memory = MemoryConnector()
        style = cs.Router(choose(), {"short": brief(), "long": story()})
        items = flaky.map(x=list(range(ITEMS))).with_retry(1, delay=0.002)
        connectors: list[cs.Connector] = [cs.OtelConnector(receiver.http_endpoint, parent="none"), memory]
        assert cs.run(count(items, style), connector=connectors, log_level="ERROR") == ITEMS
        spans = receiver.wait_for(lambda spans: len(spans.named("flaky")) == ITEMS and bool(spans.named("run count")))
        first = memory.payloads[0]
        yield Received(spans, first["run_id"], first["trace_id"])


def found(spans: Spans, query: str) -> list[ReceivedSpan]:
    """Return the spans that match the conditions in the braces of a query."""
    conditions = re.fullmatch(r"\{ (.*?) \}.*", query)
    assert conditions
    return [span for span in spans if all(matches(span, one) for one in conditions[1].split(" && "))]


def matches(span: ReceivedSpan, condition: str) -> bool:
    if condition.startswith("("):
        return any(matches(span, one) for one in condition.strip("()").split(" || "))
    field, operator, value = condition.split(" ", 2)
    is_there, actual = value_of(span, field)
    match operator, value:
        case "!=", "nil":
            return is_there
        case "!=", _:
            return is_there and actual != literal(value)
        case "=", _ if value.startswith("span."):
            return is_there and actual == value_of(span, value)[1]
        case "=", _:
            return is_there and actual == literal(value)
        case "=~", _:
            return is_there and re.fullmatch(value.strip("`"), actual) is not None
        case ">=", "0s":
            return True
    raise NotImplementedError(condition)


def literal(value: str) -> Any:
    return value.strip("`") if value.startswith("`") else json.loads(value)


def value_of(span: ReceivedSpan, field: str) -> tuple[bool, Any]:
    if field in {"name", "duration"}:
        return True, span.name if field == "name" else span.duration_ms
    scope, _, name = field.partition(".")
    place = span.attributes if scope == "span" else span.resource
    return name in place, place.get(name)


def of_dashboard(place: str, received: Received) -> list[ReceivedSpan]:
    (query,) = [query for query in of_panels("tempo") if query.place.startswith(place)]
    ids = {"run_id": received.run_id, "trace_id": received.trace_id, "at_least": "0s"}
    return found(received.spans, interpolated(query.text, {**ids, "service": ALL, "target": ["count"]}))


def test_the_tasks_of_a_run_are_those_of_all_its_traces_and_no_attempts_or_waits(received: Received) -> None:
    for place in ("cascade-run: Tasks of $at_least or more", "cascade-run: The longest duration"):
        listed = of_dashboard(place, received)
        assert Counter(span.name for span in listed) == {
            "flaky": ITEMS,
            "map(flaky)": 1,
            "count": 1,
            "choose": 1,
            "brief": 1,
        }
        assert len({span.trace_id for span in listed}) > 1
        assert len({span.attributes["cascade.task.id"] for span in listed}) == len(listed), "each is a group of its own"
    assert received.spans.named("flaky attempt")
    assert received.spans.named("flaky wait")


def test_the_traces_of_a_run_are_listed_once_each(received: Received) -> None:
    listed = of_dashboard("cascade-run: The traces of the run", received)
    assert sorted(span.trace_id for span in listed) == sorted(received.spans.traces())


def test_the_lists_of_runs_have_one_span_of_each_run(received: Received) -> None:
    (started,) = of_dashboard("cascade-runs: Latest runs", received)
    (ended,) = of_dashboard("cascade-runs: Results of the latest runs", received)
    assert [span.name for span in (started, ended)] == ["run count started", "run count"]
    assert {span.trace_id for span in (started, ended)} == {received.trace_id}
