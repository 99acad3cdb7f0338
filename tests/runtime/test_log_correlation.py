import json
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.bus import MessageStore, current_ids
from cascade.runtime import events
from cascade.runtime.log_records import LogCorrelation
from cascade.runtime.subscribers import HumanReadableLogSubscriber
from cascade.telemetry.identity import RunTrace, part_trace_id, place_run, span_id
from cascade.telemetry.trace_budget import PartLimits
from cascade.telemetry.trace_shards import TraceShards

RUN = "0f8fad5b-d9cb-469f-a165-70867728950e"
IDS = {"run_id", "task_id", "trace_id", "span_id"}


class Shown:
    """A renderer that keeps the messages and their ids."""

    def __init__(self, *, shows_ids: bool) -> None:
        self.shows_ids = shows_ids
        self.data: list[dict[str, Any]] = []
        self.ids: list[dict[str, str]] = []

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None:
        self.data.append(kwargs)
        self.ids.append(dict(current_ids()))


def shown(*published: events.Event, shows_ids: bool = True) -> Shown:
    bus, messages, renderer = cs.MessageBus(), Messages(MessageStore()), Shown(shows_ids=shows_ids)
    messages.set_renderer(renderer)
    HumanReadableLogSubscriber(bus, messages=messages)
    for event in published:
        bus.publish(event)
    return renderer


@cs.task
def flaky() -> int:
    task = cs.current_task()
    if task is not None and task.attempt < 2:
        raise ConnectionError
    return 1


@cs.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


def test_a_json_line_has_the_ids_of_the_telemetry(capsys: pytest.CaptureFixture[str]) -> None:
    connector = MemoryConnector()
    cs.run(total([flaky().with_retry(1)]), params={"p": 1}, log_format="json", connector=connector)
    spans = {(p["body"].get("task_id", ""), p["trace_id"], p["span_id"]) for p in connector.payloads}
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    in_the_run = [line for line in lines if line["event_id"] != "run.trace"]
    assert {line["event_id"] for line in in_the_run} == {
        "run.started", "run.started_with_params", "task.started", "task.retrying", "task.finished_success",
        "run.finished_success",
    }  # fmt: skip
    assert {line["run_id"] for line in in_the_run} == {connector.payloads[0]["run_id"]}
    assert {(line.get("task_id", ""), line["trace_id"], line["span_id"]) for line in in_the_run} <= spans
    assert list(in_the_run[-2]) == [
        "timestamp", "level", "event_id", "run_id", "task_id", "trace_id", "span_id", "data",
    ]  # fmt: skip


def test_a_run_in_another_trace_has_the_id_of_that_trace() -> None:
    trace = RunTrace(RUN, "a" * 32, "b" * 16)
    renderer = shown(
        events.RunStarted(run_id=RUN, trace=trace),
        events.TaskExecutionStarted(run_id=RUN, task_id="t"),
        events.RunFinished(run_id=RUN, status="Succeeded"),
    )
    run = {"run_id": RUN, "trace_id": "a" * 32, "span_id": span_id(RUN)}
    assert renderer.ids == [run, {**run, "task_id": "t", "span_id": span_id(RUN, "t")}, run]


def test_an_item_has_the_trace_id_of_its_part() -> None:
    trace = RunTrace(RUN, "a" * 32, parts=TraceShards(PartLimits(children=10)))
    for index in range(26):
        trace.parts.start(f"m/{index}", "x", "m", index)
    item: dict[str, Any] = {"task_id": "m/25", "map_id": "m", "map_index": 25}
    renderer = shown(
        events.RunStarted(run_id=RUN, trace=trace), events.TaskExecutionStarted(run_id=RUN, task_name="x", **item)
    )
    assert renderer.ids[1]["trace_id"] == part_trace_id(RUN, "m", 2)


def test_unknown_ids_are_omitted() -> None:
    renderer = shown(
        events.TaskExecutionStarted(),
        events.TaskExecutionStarted(run_id=RUN, task_id="t"),
        events.RunStarted(run_id=RUN, trace=place_run(RUN)),
        events.RunFinished(run_id=RUN, status="Succeeded"),
        events.TaskExecutionStarted(run_id=RUN, task_id="t"),
    )
    assert [set(ids) for ids in renderer.ids] == [
        set(), {"run_id", "task_id"}, IDS - {"task_id"}, IDS - {"task_id"}, {"run_id", "task_id"},
    ]  # fmt: skip


def test_a_renderer_without_ids_costs_no_lookup() -> None:
    renderer = shown(events.RunStarted(run_id=RUN, trace=place_run(RUN)), shows_ids=False)
    assert renderer.ids == [{}]
    assert renderer.data == [{"target_tasks": []}]


@pytest.mark.parametrize(("log_level", "log_format"), [("ERROR", "json"), ("INFO", "human")])
def test_a_hidden_line_costs_no_lookup(
    log_level: str, log_format: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LogCorrelation, "ids_of", lambda _, event: pytest.fail(f"the ids of {event} were requested"))
    cs.run(total([flaky().with_retry(1)]), log_level=log_level, log_format=log_format)
    assert bool(capsys.readouterr().err) == (log_level == "INFO")


def test_messages_outside_of_events_have_no_ids() -> None:
    messages, renderer = Messages(MessageStore()), Shown(shows_ids=True)
    messages.set_renderer(renderer)
    messages.info("connector.failed", connector="x", error="y")
    assert renderer.ids == [{}]
