import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

import cascade as cs
from cascade.testing import FixedClock, record_run, record_run_async
from tests.lab.extras import needs
from tests.lab.waiting import HANG


@cs.task
def one() -> int:
    return 1


@needs("otel")
def test_a_run_is_recorded_with_its_messages_and_spans() -> None:
    run = record_run(cs.task(lambda x: x + 1, name="plus")(one()))
    assert (run.value, run.error) == (2, None)
    assert run.states("one") == ["RUNNING", "COMPLETED"]
    assert {span.name for span in run.spans} == {"run plus", "run plus started", "one", "plus"}
    assert run.events


@needs("otel")
def test_an_error_is_recorded_not_raised() -> None:
    assert isinstance(record_run(cs.task(lambda: 1 / 0, name="divide")()).error, ZeroDivisionError)


def test_a_fixed_clock_makes_times_predictable() -> None:
    clock = FixedClock(1_700_000_000_000_000_000, step=1.0)
    run = record_run(one(), clock=clock, spans=False)
    (completed,) = (p for p in run.payloads if p["body"].get("state") == "COMPLETED")
    assert completed["body"]["duration_ms"] % 1000 == 0
    assert all(p["ts"].endswith(".000000Z") for p in run.payloads)


@needs("otel")
def test_the_times_of_a_run_increase_when_the_clock_is_set_back() -> None:
    clock = FixedClock()

    @cs.task
    def set_back() -> None:
        clock.advance(-3600)

    run = record_run(set_back(), clock=clock)
    assert [p["ts"] for p in run.payloads] == sorted(p["ts"] for p in run.payloads)
    assert all(span.end_ns >= span.start_ns for span in run.spans)


@needs("otel")
async def test_a_run_is_recorded_inside_an_event_loop() -> None:
    target = cs.task(lambda x: x + 1, name="plus")(one())
    run = await record_run_async(target, clock=FixedClock())
    assert (run.value, run.error) == (2, None)
    assert run.states("plus") == ["RUNNING", "COMPLETED"]
    assert run.spans.one("plus").links[0].span_id == run.spans.one("one").span_id
    assert {payload["ts"] for payload in run.payloads} == {"2023-11-14T22:13:20.000000Z"}


async def test_both_forms_have_the_same_record() -> None:
    def shown(run: cs.testing.RunRecord) -> object:
        return run.value, repr(run.error), [type(event) for event in run.events], run.states("divide")

    divide = cs.task(lambda x: 6 // x, name="divide")
    for x in (2, 0):
        in_thread = await asyncio.to_thread(record_run, divide(x), spans=False)
        assert shown(in_thread) == shown(await record_run_async(divide(x), spans=False))


@needs("otel")
async def test_concurrent_runs_have_separate_records() -> None:
    both = cs.task(lambda x: x, name="both")
    first, second = await asyncio.gather(*(record_run_async(both(x)) for x in (1, 2)))
    assert (first.value, second.value) == (1, 2)
    assert {event.run_id for event in first.events}.isdisjoint(event.run_id for event in second.events)
    assert first.spans.one("both").trace_id != second.spans.one("both").trace_id


async def test_params_and_resources_of_the_awaited_form() -> None:
    @cs.resource
    def database() -> Iterator[str]:
        yield "rows"

    @cs.task
    def query(count: int, db: str = cs.inject("database")) -> str:
        return f"{count} {db}"

    run = await record_run_async(
        query(cs.Param("count", type=int)).with_constraints(cpu=1),
        {"count": 3},
        resources=[database],
        system_resources={"cpu": 1},
        spans=False,
    )
    assert run.value == "3 rows"


async def test_the_plain_form_in_an_event_loop_names_the_awaited_form() -> None:
    with pytest.raises(RuntimeError, match=r"use `await record_run_async\(\.\.\.\)` here"):
        record_run(one())


def test_the_awaited_form_without_an_event_loop_names_the_plain_form() -> None:
    with pytest.raises(RuntimeError, match=r"Without an event loop, call record_run\("):
        record_run_async(one()).send(None)


async def test_a_cancellation_of_the_caller_is_raised() -> None:
    started = asyncio.Event()

    @cs.task
    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    recording = asyncio.ensure_future(record_run_async(wait(), spans=False))
    await started.wait()
    recording.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording


async def test_a_cancellation_of_the_run_alone_is_recorded() -> None:
    @cs.task
    async def cancelled() -> None:
        raise asyncio.CancelledError

    assert isinstance((await record_run_async(cancelled(), spans=False)).error, asyncio.CancelledError)
    assert isinstance((await asyncio.to_thread(record_run, cancelled(), spans=False)).error, asyncio.CancelledError)


def test_ctrl_c_ends_the_plain_form() -> None:
    code = """
import asyncio, os, signal
import cascade as cs
from cascade.testing import record_run

@cs.task
async def wait():
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()

record_run(wait(), spans=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=HANG, check=False)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert b"KeyboardInterrupt" in done.stderr


def test_spans_without_the_extra_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    run = record_run(one())
    assert (run.value, run.states("one")) == (1, ["RUNNING", "COMPLETED"])
    assert "pip install 'cascade-runs[otel]'" in repr(run)
    for use in (
        lambda: run.spans.one("one"),
        lambda: len(run.spans),
        lambda: list(run.spans),
        run.spans.roots,
    ):
        with pytest.raises(ImportError, match=r"pip install 'cascade-runs\[otel\]'"):
            use()
    with pytest.raises(ImportError, match=r"pip install 'cascade-runs\[otel\]'"):
        record_run(one(), spans=True)
    assert len(record_run(one(), spans=False).spans) == 0


async def test_options_of_the_run() -> None:
    @cs.task
    def divide(x: int) -> int:
        return 6 // x

    @cs.task
    async def wait() -> None:
        await asyncio.Event().wait()

    both = [divide(0), divide(3)]
    run = await record_run_async(both, spans=False, fail_fast=False, name="nightly", tags=["a"], run_id="mine")
    assert isinstance(run.error, ZeroDivisionError)
    assert sorted(run.states("divide")) == ["COMPLETED", "FAILED", "RUNNING", "RUNNING"]
    assert {payload["run_id"] for payload in run.payloads} == {"mine"}
    assert isinstance((await record_run_async(wait(), spans=False, timeout=0.01)).error, TimeoutError)
    assert isinstance((await asyncio.to_thread(record_run, wait(), spans=False, timeout=0.01)).error, TimeoutError)
