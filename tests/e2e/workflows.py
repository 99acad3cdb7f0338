"""Workflows of the end-to-end tests in separate processes: `python -m tests.e2e.workflows NAME [ARGUMENTS]`.

The last line on stdout is JSON: the ids of the run, and its value or error. A workflow that the test disturbs prints a line
and waits for a line on stdin.
"""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from opentelemetry import trace

import cascade as cs
from cascade.providers.shell import shell
from cascade.testing import MemoryConnector
from tests.lab.time_limits import raise_time_limits


@cs.task
def load() -> list[int]:
    return [3, 1, 2]


@cs.task
async def flaky() -> str:
    task = cs.current_task()
    if task is not None and task.attempt == 1:
        raise ConnectionError("the first attempt always fails")
    return "v1"


@cs.task
def double(x: int) -> int:
    with trace.get_tracer("mine").start_as_current_span("multiply") as span:
        span.set_attribute("factor", 2)
        return 2 * x


@cs.task
def total(numbers: list[int]) -> int:
    trace.get_current_span().add_event("added", {"numbers": len(numbers)})
    return sum(numbers)


@cs.task
def choose() -> str:
    return "short"


@cs.task
def say(text: str) -> str:
    return text


@cs.task
def story() -> str:
    raise NotImplementedError


@cs.task
def summary(sum_of_all: int, version: str, style: str, parent: str) -> str:
    return f"{version}: {sum_of_all} {style} {parent.split('-')[1]}"


def report() -> Any:
    """Return a workflow with a map, a retry, a router with a pruned branch, own spans and a subprocess."""
    style = cs.Router(choose(), {"short": say("brief"), "long": story()})
    return summary(total(double.map(x=load())), flaky().with_retry(2, delay=0.01), style, shell("echo $TRACEPARENT"))


@cs.task
def break_down(numbers: list[int]) -> list[int]:
    raise ValueError(f"cannot use {numbers}")


@cs.task
async def brief(x: int) -> int:
    await asyncio.sleep(0.01)
    return x


def narrow() -> Any:
    """Return three tasks that need an exclusive resource, so that two of them wait."""
    return count(brief.map(x=[1, 2, 3]).with_constraints(slot=1))


def failure() -> Any:
    return total(break_down(load()))


@cs.task
async def step(x: int) -> int:
    return x


@cs.task
def disturbed(so_far: list[int]) -> list[int]:
    print("disturb", flush=True)
    sys.stdin.readline()
    return so_far


@cs.task
async def further(x: int) -> int:
    return x


@cs.task
async def count(items: list[int]) -> int:
    return len(items)


def halves(size: str) -> Any:
    """Return two maps. After each of them, the workflow waits while the test disturbs a server."""
    half = list(range(int(size) // 2))
    return count(disturbed(further.map(x=disturbed(step.map(x=half)))))


def many(size: str) -> Any:
    return count(step.map(x=list(range(int(size)))))


def fail_below(level: int) -> None:
    if level:
        fail_below(level - 1)
    raise ConnectionError(
        "HTTPSConnectionPool(host='api.example.com', port=443): Max retries exceeded with url: /v1/orders"
    )


@cs.task
async def fetch(x: int) -> int:
    task = cs.current_task()
    if task is not None and task.attempt <= 2:
        fail_below(12)
    return x


def retries(size: str) -> Any:
    """Return a map whose items fail twice each."""
    return count(fetch.map(x=list(range(int(size)))).with_retry(2, delay=0.01))


def one_of_two(level: int) -> None:
    other_of_two(level)


def other_of_two(level: int) -> None:
    if not level:
        raise ValueError("the end")
    one_of_two(level - 1)


@cs.task
def one() -> None:
    one_of_two(30)


def deep() -> Any:
    """Return a task with a stack trace of several kilobytes without repeated lines."""
    return one()


@cs.task
async def forever() -> None:
    print("running", flush=True)
    await asyncio.Event().wait()


def endless() -> Any:
    return forever()


_PAUSE = 0.2
"""Seconds between two continuous runs, and the limit of the flush at the end of each run."""

WORKFLOWS: dict[str, Callable[..., Any]] = {
    "report": report,
    "narrow": narrow,
    "failure": failure,
    "halves": halves,
    "many": many,
    "endless": endless,
    "retries": retries,
    "deep": deep,
}


def main(name: str, *arguments: str) -> None:
    raise_time_limits()
    recorder, result = MemoryConnector(), dict[str, Any]()
    connectors: list[Any] = [cs.OtelConnector(), recorder]
    if os.environ.get("CASCADE_MQTT_URL"):
        connectors.append(cs.MqttConnector.from_url(os.environ["CASCADE_MQTT_URL"]))
    try:
        result["value"] = cs.run(
            WORKFLOWS[name](*arguments), system_resources={"slot": 1}, connector=connectors, log_level="WARNING"
        )
    except BaseException as error:
        result["error"] = type(error).__name__
        if not isinstance(error, ValueError):
            raise
    finally:
        first = recorder.payloads[0]
        print(json.dumps({**result, "run_id": first["run_id"], "trace_id": first["trace_id"]}), flush=True)


def continuous(connectors: str) -> None:
    """Start runs in sequence until stdin ends, with one connector or a connector per run; print a line per run."""
    raise_time_limits()
    is_stopped = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        is_stopped.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    shared = cs.OtelConnector(flush_timeout=_PAUSE) if connectors == "shared" else None
    while not is_stopped.wait(_PAUSE):
        recorder = MemoryConnector()
        connector = shared or cs.OtelConnector(flush_timeout=_PAUSE)
        cs.run(many("20"), connector=[connector, recorder], log_level="WARNING")
        print(json.dumps({"trace_id": recorder.payloads[0]["trace_id"]}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "continuous":
        continuous(sys.argv[2])
    else:
        main(*sys.argv[1:])
