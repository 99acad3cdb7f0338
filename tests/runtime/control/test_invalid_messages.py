"""Invalid control messages do not affect a paused run: it continues once the pause is cleared."""

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import cascade as cs
from cascade.runtime.events import TaskBlocked, TaskExecutionStarted
from cascade.telemetry.topics import control_filter
from tests.lab.waiting import with_timeout
from tests.runtime.control.controlled_engine import ControlledEngine

PREFIX = control_filter("local", "default").removesuffix("#")

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_types = st.sampled_from(["pause", "concurrency", "rate_limit", "resource", "stop", ""])
_levels = st.sampled_from(["global", "run", "task", "*", "%2A", "%ff", "team", "..", "[", "\x00"]) | st.text(max_size=5)
_topics = st.lists(_levels, max_size=4).map("/".join) | st.builds("{}/{}".format, _levels, _types)
_payloads = (
    st.binary(max_size=60)
    | _json.map(json.dumps).map(str.encode)
    | st.builds(lambda kind, params: json.dumps({"type": kind, "params": params}).encode(), _types, _json)
)


@cs.task
async def one() -> int:
    return 1


@settings(max_examples=60)
@given(st.lists(st.tuples(_topics, _payloads), max_size=25))
def test_a_paused_run_is_not_affected(messages: list[tuple[str, bytes]]) -> None:
    asyncio.run(_send_to_paused_run([(PREFIX + below, data) for below, data in messages]))


async def _send_to_paused_run(messages: list[tuple[str, bytes]]) -> None:
    controlled = ControlledEngine()
    await controlled.constrain("task/one", "pause")
    run = controlled.start(one())
    await with_timeout(controlled.wait_for(TaskBlocked))
    for topic, data in messages:
        await controlled.connector.deliver(topic, data, retain=bool(data))
    assert not controlled.events_of(TaskExecutionStarted)
    await _clear_all(controlled, messages)
    await controlled.clear("task/one", "pause")
    assert await with_timeout(run) == 1


async def _clear_all(controlled: ControlledEngine, messages: list[tuple[str, Any]]) -> None:
    for topic, _ in messages:
        await controlled.connector.deliver(topic, b"", retain=True)
