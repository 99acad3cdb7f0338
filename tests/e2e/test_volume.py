"""Runs of many tasks through the real Collector to Jaeger."""

import pytest

from cascade.testing import Spans
from tests.e2e.runs import run
from tests.e2e.stacks import Processes
from tests.lab.waiting import HANG

PART = 2_000
"""Children in a trace, by default."""

TIMEOUT = 5 * HANG

pytestmark = pytest.mark.timeout(1800)


def test_no_span_of_20000_tasks_is_lost_or_an_orphan(processes: Processes) -> None:
    check(processes, 20_000)


@pytest.mark.large
def test_a_run_of_100000_tasks_is_split_into_readable_traces(processes: Processes) -> None:
    """Each trace has about 2,000 spans at most, and links connect all traces with the first one."""
    traces = check(processes, 100_000)
    assert len(traces) == 100_000 // PART
    assert max(map(len, traces)) <= PART + 10


def check(stack: Processes, size: int) -> list[Spans]:
    """Run `size` tasks, read all spans back, and return their traces."""
    result = run({**stack.environment, "OTEL_SERVICE_NAME": f"e2e-{size}"}, "many", size)
    assert result["value"] == size
    first = stack.jaeger.wait_for(
        result["trace_id"],
        lambda spans: len(spans.named("run count")) == 1 and len(spans.named("step")) == PART,
        TIMEOUT,
    )
    root = first.one("map(step)")
    further = sorted({link.trace_id for link in root.links} - {root.trace_id})
    assert len(further) == root.attributes["cascade.parts"] == size // PART - 1
    traces = [first, *(_part(stack, trace_id, root.trace_id) for trace_id in further)]
    runs = {span.attributes["cascade.run.id"] for spans in traces for span in spans}
    found = stack.jaeger.find(f"e2e-{size}", tags={"cascade.run.id": runs.pop()})
    assert (found, runs) == ({result["trace_id"], *further}, set())
    items = [span.attributes["cascade.map.index"] for spans in traces for span in spans.named("step")]
    assert sorted(items) == list(range(size))
    assert [spans.orphans() for spans in traces] == [[]] * len(traces)
    return traces


def _part(stack: Processes, trace_id: str, first_id: str) -> Spans:
    """Return a further part. It is complete and has a root with a link to the first trace."""
    spans = stack.jaeger.wait_for(trace_id, lambda spans: len(spans) == PART + 1, TIMEOUT)
    root = spans.one("map(step) part")
    assert spans.roots() == [root]
    assert {link.trace_id for link in root.links} == {first_id}
    return spans
