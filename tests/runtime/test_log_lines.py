"""The lines of a run on the terminal, and its log in JSON, as they were recorded."""

import io
import re
from pathlib import Path

import pytest

import cascade as cs
from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.bus import MessageStore
from cascade.messaging.renderer import CliRenderer, JsonRenderer
from cascade.runtime import events
from cascade.runtime.subscribers import HumanReadableLogSubscriber
from cascade.telemetry.identity import place_run

RECORDED = Path(__file__).parent
RUN = "0f8fad5b-d9cb-469f-a165-70867728950e"
_TIMESTAMP = re.compile(r'"timestamp": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{6})?\+00:00"')
SECRET = "ConnectionError: password=hunter2 refused\n\x1b[31m"

PUBLISHED = (
    events.RunStarted(run_id=RUN, trace=place_run(RUN), target_tasks=["report"], params={"api_token": "x9", "day": 1}),
    events.TaskExecutionStarted(run_id=RUN, task_id="a", task_name="load"),
    events.TaskRetrying(run_id=RUN, task_id="a", task_name="load", attempt=1, max_attempts=3, delay=0.5, error=SECRET),
    events.TaskExecutionStarted(run_id=RUN, task_id="a", task_name="load", attempt=2),
    events.TaskExecutionFinished(run_id=RUN, task_id="a", task_name="load", status="Succeeded", duration=1.2345),
    events.TaskExecutionStarted(run_id=RUN, task_id="b", task_name="get_token=abc", label="eu"),
    events.TaskExecutionFinished(
        run_id=RUN, task_id="b", task_name="get_token=abc", label="eu", status="Failed", duration=2, error=SECRET
    ),
    events.TaskSkipped(run_id=RUN, task_id="c", task_name="clean", reason="CacheHit"),
    events.TaskExecutionStarted(run_id=RUN, task_id="m/0", task_name="x", map_id="m", map_index=0),
    events.TaskExecutionFinished(
        run_id=RUN, task_id="m/0", task_name="x", map_id="m", map_index=0, status="Succeeded", duration=0.1
    ),
    events.MapProgressed(run_id=RUN, task_id="m", task_name="x", map_size=9000, counts=events.MapCounts(1200, 1)),
    events.ControlDecision(run_id=RUN, scope="task:load", constraint_type="pause", action="APPLIED", params={}),
    events.ResourceSetupFailed(run_id=RUN, resource_name="db", exception=events.ErrorInfo("sqlite3.Error", "locked")),
    events.RunStillStopping(run_id=RUN, work=("load", "load", "x")),
    events.RunFinished(run_id=RUN, status="Failed", duration=3.0, error="TimeoutError: "),
)


@pytest.mark.parametrize("kind", [CliRenderer, JsonRenderer])
def test_the_lines_are_those_that_were_recorded(kind: type[CliRenderer | JsonRenderer]) -> None:
    bus, store, stream = cs.MessageBus(), MessageStore(), io.StringIO()
    renderer = CliRenderer(store, stream, "DEBUG") if kind is CliRenderer else JsonRenderer(stream, "DEBUG")
    messages = Messages(store)
    messages.set_renderer(renderer)
    HumanReadableLogSubscriber(bus, messages=messages)
    for event in PUBLISHED:
        bus.publish(event)
    recorded = RECORDED / f"log_lines_of_{kind.__name__}.txt"
    assert _TIMESTAMP.sub('"timestamp": ""', stream.getvalue()) == recorded.read_text(encoding="utf-8")
