"""Servers that are killed during a run affect neither the run nor its trace."""

from cascade.testing import Spans
from stack.process import until
from tests.e2e.runs import Run
from tests.e2e.stacks import Processes

SIZE = 400
TASKS = SIZE + len(["map(step)", "disturbed", "map(further)", "disturbed", "count"])
SPANS = TASKS + len(["run count", "run count started"])


def complete(spans: Spans) -> bool:
    return len(spans) == SPANS and not spans.orphans()


def test_accepted_spans_survive_a_kill_of_the_collector(own_processes: Processes) -> None:
    """Jaeger is stopped, so that the spans are only in the queue on the Collector's disk."""
    stack = own_processes
    stack.jaeger_server.stop()
    with Run(stack.environment, "halves", SIZE) as running:
        running.wait_for_line("disturb")
        stack.wait_until_accepted(SIZE // 2)
        stack.collector.kill()
        stack.collector.start()
        running.resume()
        running.wait_for_line("disturb")
        stack.wait_until_accepted(SIZE // 2)
        result = running.result()
    stack.collector.kill()
    stack.jaeger_server.start()
    stack.collector.start()
    assert result["value"] == SIZE // 2
    assert "lost" not in running.stderr
    assert stack.wait_for(result["trace_id"], complete)


def test_the_collector_is_unreachable_for_half_of_a_run(own_processes: Processes) -> None:
    stack = own_processes
    with Run(stack.environment, "halves", SIZE) as running:
        running.wait_for_line("disturb")
        stack.collector.kill()
        running.resume()
        running.wait_for_line("disturb")
        stack.collector.start()
        result = running.result()
    assert "lost" not in running.stderr
    assert stack.wait_for(result["trace_id"], complete)


def test_jaeger_is_killed_and_restarted(own_processes: Processes) -> None:
    """Acknowledged spans are on Jaeger's disk, and the others are in the Collector's queue."""
    stack = own_processes
    with Run(stack.environment, "halves", SIZE) as running:
        running.wait_for_line("disturb")
        stack.jaeger_server.kill()
        result = running.result()
    stack.jaeger_server.start()
    assert stack.wait_for(result["trace_id"], complete)


def test_a_run_without_a_server_returns_its_value_and_reports_undelivered_spans(own_processes: Processes) -> None:
    stack = own_processes
    stack.collector.kill()
    with Run(stack.environment, "halves", SIZE) as running:
        result = running.result()
    assert result["value"] == SIZE // 2
    assert f"{SPANS} spans are not yet delivered" in running.stderr
    assert "connection refused" in running.stderr


def test_no_span_is_lost_while_the_collector_is_out_of_memory(own_processes: Processes) -> None:
    """The memory limiter refuses all requests. After a restart with more memory, the run delivers its spans."""
    stack = own_processes
    stack.collector.stop()
    usual = stack.collector.environment
    stack.collector.environment = {**usual, "COLLECTOR_MEMORY_MIB": "2", "COLLECTOR_MEMORY_SPIKE_MIB": "1"}
    stack.collector.start()
    until(lambda: "Refusing data" in stack.collector.tail(), "the memory limiter refuses data")
    with Run(stack.environment, "halves", SIZE) as running:
        running.wait_for_line("disturb")
        stack.wait_until_refused(1)
        running.resume()
        running.wait_for_line("disturb")
        stack.collector.stop()
        stack.collector.environment = usual
        stack.collector.start()
        result = running.result()
    assert stack.wait_for(result["trace_id"], complete)
