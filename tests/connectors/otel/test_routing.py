"""Spans that end after their run: the first connector's provider is global, the run sends to another endpoint."""

import random
import subprocess
import sys
import textwrap

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags

from cascade.connectors.otel import routing
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.transport import FailedTransport
from cascade.testing import OtlpReceiver
from tests.lab.waiting import HANG

HEAD = """
import asyncio, contextvars, gc, sys, threading
import cascade as cs
from cascade.connectors.otel import OtelConnector
from opentelemetry import trace
from opentelemetry.propagate import extract, inject

first, second = map(OtelConnector, sys.argv[1:])
tracer = trace.get_tracer("users")
ended = threading.Event()
threads = []

def late(name="late", context=None):
    ended.wait()
    with tracer.start_as_current_span(name, context):
        pass

def in_thread(*arguments):
    threads.append(threading.Thread(target=contextvars.copy_context().run, args=(late, *arguments)))
    threads[-1].start()

@cs.task
def other():
    with tracer.start_as_current_span("other"):
        pass

def run(target, connector=second):
    return cs.run(target, connector=connector, log_level="ERROR")

def end(more=()):
    for connector in more:
        run(other(), connector)
    gc.collect()
    ended.set()
    for thread in threads:
        thread.join()
    trace.get_tracer_provider().force_flush()

run(other(), first)
"""

BELOW_THE_TASK = """
def starts():
    in_thread()
"""
BELOW_A_SPAN = """
def starts():
    with tracer.start_as_current_span("outer"):
        in_thread()
"""
BELOW_AN_ENDED_SPAN_IN_A_RETRY = """
attempts = []
@cs.resource
def held():
    yield 1
def starts(held=cs.inject(held)):
    attempts.append(1)
    if len(attempts) == 1:
        raise ValueError
    with tracer.start_as_current_span("outer"):
        with tracer.start_as_current_span("inner"):
            context = contextvars.copy_context()
    threads.append(threading.Thread(target=context.run, args=(late,)))
    threads[-1].start()
"""
FROM_HEADERS = """
def starts():
    headers = {}
    inject(headers)
    threads.append(threading.Thread(target=late, args=("late", extract(headers))))
    threads[-1].start()
"""


@pytest.mark.parametrize(
    "starts",
    [BELOW_THE_TASK, BELOW_A_SPAN, BELOW_AN_ENDED_SPAN_IN_A_RETRY, FROM_HEADERS],
    ids=["task", "span", "retry", "headers"],
)
@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("later_runs", ["", "first", "first, second, first"])
def test_a_span_after_its_runs_end_goes_where_its_run_went(starts: str, threaded: bool, later_runs: str) -> None:
    _check(
        f"""
        target = cs.task(starts, threaded={threaded})().with_retry(max_attempts=2)
        run(target)
        end([{later_runs}])
        """,
        starts,
    )


def test_a_span_of_a_map_item_or_a_nested_run_goes_where_its_run_went() -> None:
    _check(
        """
        @cs.task
        def item(x):
            in_thread()
        @cs.task
        def nests():
            return cs.run(item(0), connector=first, log_level="ERROR")
        run(item.map(x=[1, 2]))
        run(nests())
        end([first])
        """,
        "",
        expected=(1, 2),
    )


def test_a_task_of_the_event_loop_that_outlives_the_run() -> None:
    _check(
        """
        async def main():
            over = asyncio.Event()
            async def later():
                await over.wait()
                ended.set()
                late()
            tasks = []
            @cs.task
            async def starts():
                tasks.append(asyncio.create_task(later()))
            await cs.run_async(starts(), connector=second, log_level="ERROR")
            await cs.run_async(other(), connector=first, log_level="ERROR")
            over.set()
            await tasks[0]
        asyncio.run(main())
        end()
        """,
        "",
    )


def test_a_context_that_lives_is_known_after_more_runs_than_traces_are_kept() -> None:
    _check(
        """
        from cascade.connectors.otel import routing
        routing.KEPT_TRACES = 2
        run(cs.task(starts)())
        end([first, second, first, first])
        """,
        BELOW_A_SPAN,
    )


def _check(code: str, starts: str, expected: tuple[int, int] = (0, 1)) -> None:
    with OtlpReceiver() as first, OtlpReceiver() as second:
        program = HEAD + starts + textwrap.dedent(code)
        command = [sys.executable, "-c", program, first.http_endpoint, second.http_endpoint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert (len(first.spans.named("late")), len(second.spans.named("late"))) == expected


def test_the_number_of_stored_targets_of_ended_runs_is_limited() -> None:
    queue = ExportQueue(lambda: FailedTransport(ValueError()))
    own = routing.ExportTarget(queue)
    first_id = random.getrandbits(127)
    targets = [routing.ExportTarget(queue, "run") for _ in range(routing.KEPT_TRACES + 1)]
    for number, target in enumerate(targets):
        for _ in range(3):  # runs in one trace
            routing.add_target(first_id + number, target)
            routing.remove_target(first_id + number, target)
    for number in (0, routing.KEPT_TRACES):
        context = SpanContext(first_id + number, 1, is_remote=False, trace_flags=TraceFlags(1))
        routing.RoutingProcessor(own).on_end(ReadableSpan("late", context))
    assert [queue.report(target.counters).put for target in (own, targets[0], targets[-1])] == [1, 0, 1]
    queue.close(0)
