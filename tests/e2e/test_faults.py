"""Servers that die in the middle of a run: the run does not notice, and the trace is whole in the end."""

from cascade.testing import Spans
from stack.process import until
from tests.e2e.runs import Run
from tests.e2e.stacks import Processes

SIZE = 400
TASKS = SIZE + len(["map(step)", "disturbed", "map(further)", "disturbed", "count"])
SPANS = TASKS + len(["run count", "run count started"])


def whole(spans: Spans) -> bool:
    return len(spans) == SPANS and not spans.orphans()


def test_what_the_collector_has_taken_survives_its_death(own_processes: Processes) -> None:
    """Jaeger is away all the time, so that there is nothing but the queue on the Collector's disk."""
    stack = own_processes
    stack.jaeger_server.stop()
    with Run(stack.environment, "halves", SIZE) as running:
        running.wait_for_line("disturb")
        stack.wait_until_taken(SIZE // 2)
        stack.collector.kill()
        stack.collector.start()
        running.go_on()
        running.wait_for_line("disturb")
        stack.wait_until_taken(SIZE // 2)
        said = running.result()
    stack.collector.kill()
    stack.jaeger_server.start()
    stack.collector.start()
    assert said["value"] == SIZE // 2
    assert "lost" not in running.stderr
    assert stack.wait_for(said["trace_id"], whole)


def test_the_collector_is_away_for_half_of_a_run(own_processes: Processes) -> None:
    stack = own_processes
    with Run(stack.environment, "halves", SIZE) as running:
        running.wait_for_line("disturb")
        stack.collector.kill()
        running.go_on()
        running.wait_for_line("disturb")
        stack.collector.start()
        said = running.result()
    assert "lost" not in running.stderr
    assert stack.wait_for(said["trace_id"], whole)


def test_jaeger_is_killed_and_comes_back(own_processes: Processes) -> None:
    """What it has answered for is on its disk; the rest is in the Collector's queue."""
    stack = own_processes
    with Run(stack.environment, "halves", SIZE) as running:
        running.wait_for_line("disturb")
        stack.jaeger_server.kill()
        said = running.result()
    stack.jaeger_server.start()
    assert stack.wait_for(said["trace_id"], whole)


def test_a_run_without_any_server_gives_its_value_and_says_what_was_lost(own_processes: Processes) -> None:
    stack = own_processes
    stack.collector.kill()
    with Run(stack.environment, "halves", SIZE) as running:
        said = running.result()
    assert said["value"] == SIZE // 2
    assert f"{SPANS} spans are not yet delivered" in running.stderr
    assert "connection refused" in running.stderr


def test_a_collector_without_memory_says_later_and_nothing_is_lost(own_processes: Processes) -> None:
    """The memory limiter refuses all that comes; with more memory the Collector gets what was kept for it."""
    stack = own_processes
    stack.collector.stop()
    usual = stack.collector.environment
    stack.collector.environment = {**usual, "COLLECTOR_MEMORY_MIB": "2", "COLLECTOR_MEMORY_SPIKE_MIB": "1"}
    stack.collector.start()
    until(lambda: "Refusing data" in stack.collector.tail(), "the memory limiter has looked")
    with Run(stack.environment, "halves", SIZE) as running:
        running.wait_for_line("disturb")
        stack.wait_until_refused(1)
        running.go_on()
        running.wait_for_line("disturb")
        stack.collector.stop()
        stack.collector.environment = usual
        stack.collector.start()
        said = running.result()
    assert stack.wait_for(said["trace_id"], whole)
