"""Very many tasks through the real Collector to Jaeger."""

import pytest

from cascade.testing import Spans
from tests.e2e.runs import run
from tests.e2e.stacks import Processes
from tests.lab.waiting import HANG

PART = 2_000
"""Children in a trace, by default."""

PATIENCE = 5 * HANG

pytestmark = pytest.mark.timeout(1800)


def test_of_20000_tasks_none_is_lost_and_none_orphaned(processes: Processes) -> None:
    check(processes, 20_000)


@pytest.mark.large
def test_a_run_of_100000_tasks_stays_readable(processes: Processes) -> None:
    """No trace has more than some two thousand spans, and all of them are found from the first, by links both ways."""
    traces = check(processes, 100_000)
    assert len(traces) == 100_000 // PART
    assert max(map(len, traces)) <= PART + 10


def check(stack: Processes, size: int) -> list[Spans]:
    """Run so many tasks, and read all of them back; the traces that they are in."""
    said = run({**stack.environment, "OTEL_SERVICE_NAME": f"e2e-{size}"}, "many", size)
    assert said["value"] == size
    first = stack.jaeger.wait_for(
        said["trace_id"],
        lambda spans: len(spans.named("run count")) == 1 and len(spans.named("step")) == PART,
        PATIENCE,
    )
    whole = first.one("map(step)")
    further = sorted({link.trace_id for link in whole.links} - {whole.trace_id})
    assert len(further) == whole.attributes["cascade.parts"] == size // PART - 1
    traces = [first, *(_part(stack, trace_id, whole.trace_id) for trace_id in further)]
    runs = {span.attributes["cascade.run.id"] for spans in traces for span in spans}
    found = stack.jaeger.find(f"e2e-{size}", tags={"cascade.run.id": runs.pop()})
    assert (found, runs) == ({said["trace_id"], *further}, set())
    items = [span.attributes["cascade.map.index"] for spans in traces for span in spans.named("step")]
    assert sorted(items) == list(range(size))
    assert [spans.orphans() for spans in traces] == [[]] * len(traces)
    return traces


def _part(stack: Processes, trace_id: str, home: str) -> Spans:
    """A further part: whole, below a root of its own that leads back."""
    spans = stack.jaeger.wait_for(trace_id, lambda spans: len(spans) == PART + 1, PATIENCE)
    root = spans.one("map(step) part")
    assert spans.roots() == [root]
    assert {link.trace_id for link in root.links} == {home}
    return spans
