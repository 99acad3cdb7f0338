"""The messages about a map and its items, as a run prints them."""

import asyncio
import io
import json
from typing import Any

import pytest

import cascade as cs
from cascade.messaging.bus import MessageBus, MessageStore
from cascade.messaging.renderer import CliRenderer, JsonRenderer
from cascade.runtime.events import Event, MapProgressed, TaskExecutionFinished, TaskExecutionStarted, TaskSkipped
from cascade.runtime.subscribers import HumanReadableLogSubscriber
from cascade.spec.lazy_types import MappedLazyResult
from cascade.testing import FixedClock
from tests.runtime.conftest import RecordedEngine

STORE = MessageStore()
"""It reads a file, which a test in an event loop must not do."""


class Printed(RecordedEngine):
    """An engine whose messages go to a text."""

    def __init__(self, level: str = "INFO", *, json_log: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._stream, self.messages = io.StringIO(), MessageBus(STORE)
        renderer = JsonRenderer if json_log else lambda *args: CliRenderer(self.messages.store, *args)
        self.messages.set_renderer(renderer(self._stream, level))
        HumanReadableLogSubscriber(self.bus, min_level=level, messages=self.messages)

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@cs.task
async def convert(x: int) -> int:
    return 10 // x


def fail_in_thread(x: int) -> int:
    return 10 // x


SHAPES = {
    "async": convert,
    "thread": cs.task(fail_in_thread, name="convert"),
    "loop": cs.task(fail_in_thread, name="convert", threaded=False),
}


class Cache:
    """A cache policy with values for the items up to a number."""

    def __init__(self, up_to: int) -> None:
        self._up_to = up_to

    def check(self, task_id: str, inputs: dict[str, Any]) -> int | None:
        x: int = inputs["x"]
        return x if x <= self._up_to else None

    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...


async def test_a_quick_map_prints_its_start_its_counts_and_its_end() -> None:
    printed = Printed(clock=FixedClock())
    await printed.run(convert.map(x=list(range(1, 1_201))))
    assert printed.lines == [
        "▶️  Starting run for target(s): ['map(convert)']",
        "⏳ Running map(convert)",
        "⏳ map(convert): 1,200 of 1,200 done",
        "✅ Finished map(convert) in 0.00s",
        "✅ Run finished in 0.00s",
    ]


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("connected", [True, False], ids=["all events are made", "no other handler"])
async def test_a_long_map_prints_its_progress_once_a_second_at_most(connected: bool, size: int) -> None:
    clock = FixedClock()
    printed, reports = Printed(clock=clock), list[MapProgressed]()
    printed.bus.subscribe(MapProgressed, reports.append)
    if connected:
        printed.bus.subscribe(Event, lambda _: None)

    async def half_a_second(x: int) -> None:
        clock.advance(0.5)

    await printed.run(cs.task(half_a_second, threaded=False).map(x=range(size)).with_constraints(one=1))
    progress = [line for line in printed.lines if f" of {size} done" in line]
    assert progress == [f"⏳ map(half_a_second): {done} of {size} done" for done in (2, 4, 6, size)]
    assert [round(report.timestamp - 1_700_000_000, 1) for report in reports] == [1.0, 2.0, 3.0]


async def test_a_map_without_items_prints_no_counts() -> None:
    printed = Printed()
    await printed.run(convert.map(x=[]))
    assert not [line for line in printed.lines if "done" in line]


@pytest.mark.parametrize("level", ["INFO", "WARNING", "ERROR"])
@pytest.mark.parametrize("task", SHAPES.values(), ids=SHAPES)
async def test_a_failure_names_the_item_once_at_every_level(task: Any, level: str) -> None:
    printed = Printed(level, clock=FixedClock(), system_resources={"turn": 1})
    with pytest.raises(ZeroDivisionError) as raised:
        await printed.run(task.map(x=[5, 2, 0]).with_constraints(turn=1))  # one after the other
    error = f"ZeroDivisionError: {raised.value}"
    failures = [line for line in printed.lines if "❌" in line]
    assert failures == [f"❌ Failed convert[2] after 0.00s: {error}", f"❌ Run failed after 0.00s: {error}"]
    assert [line for line in printed.lines if "done" in line] == (
        ["⏳ map(convert): 2 of 3 done, 1 failed"] if level == "INFO" else []
    )


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
async def test_an_item_that_ends_the_program_is_a_failed_one_and_a_cancelled_one_is_not(raised: BaseException) -> None:
    async def end(x: int) -> None:
        if x:
            raise raised

    printed = Printed()
    with pytest.raises(type(raised)):
        await printed.run(cs.task(end).map(x=[0, 1]))
    failed = "" if isinstance(raised, asyncio.CancelledError) else ", 1 failed"
    assert f"⏳ map(end): 1 of 2 done{failed}" in printed.lines


class Divider:
    """A factory of lazy results that is not a task."""

    name = "divide"

    def map(self, **kwargs: Any) -> Any:
        return MappedLazyResult(self, kwargs)

    def __call__(self, x: int) -> Any:
        return convert(10 // x) if x < 10 else x


@pytest.mark.parametrize(
    ("xs", "error"), [([5, 0], "ZeroDivisionError"), ([0], "ZeroDivisionError"), ([5, 10], "TypeError")]
)
async def test_an_item_whose_factory_raises_an_error_is_named(xs: list[int], error: str) -> None:
    printed = Printed(clock=FixedClock())
    with pytest.raises((ZeroDivisionError, TypeError)) as caught:
        await printed.run(Divider().map(x=xs))
    assert caught.value.__notes__ == [f"task 'divide', item {len(xs) - 1}"]
    assert [
        line for line in printed.lines if line.startswith(f"❌ Failed divide[{len(xs) - 1}] after 0.00s: {error}: ")
    ]
    assert f"⏳ map(divide): {len(xs) - 1} of {len(xs)} done, 1 failed" in printed.lines


async def test_a_map_that_fails_before_its_items_is_named() -> None:
    printed = Printed("ERROR")
    five: Any = cs.task(lambda: [1, 2], name="five")()
    with pytest.raises(ValueError, match="mismatched"):
        await printed.run(cs.task(lambda x, y: x, name="add").map(x=five, y=[1]))
    assert ["map(add)" in line for line in printed.lines] == [True, True]


async def test_a_retry_names_the_item() -> None:
    printed = Printed("WARNING")
    with pytest.raises(ZeroDivisionError):
        await printed.run(convert.map(x=[1, 0]).with_retry(1))
    assert printed.lines[0].startswith(
        "⚠️  Retrying convert[1] (attempt 2 of 2, retry 1 of 1) in 0.00s: ZeroDivisionError"
    )


async def test_items_from_the_cache_are_counted_not_listed() -> None:
    printed = Printed()
    await printed.run(convert.map(x=list(range(1, 11))).with_cache(Cache(up_to=8)))
    assert "⏳ map(convert): 10 of 10 done, 8 of them from the cache" in printed.lines
    assert not [line for line in printed.lines if "Skipped" in line]


async def test_the_progress_of_a_map_with_failures_counts_the_values_from_the_cache() -> None:
    printed = Printed()
    await printed.run(convert.map(x=[-3, -2, -1, 5, 0]).with_cache(Cache(up_to=-1)).allow_failure())
    assert "⏳ map(convert): 4 of 5 done, 3 of them from the cache, 1 failed" in printed.lines


async def test_debug_prints_each_item_with_its_index() -> None:
    printed = Printed("DEBUG", clock=FixedClock())
    await printed.run(convert.map(x=[1, 2]).with_cache(Cache(up_to=1)))
    assert printed.lines[2:5] == [
        "⚪ Skipped convert[0]: CacheHit",
        "⏳ Running convert[1]",
        "✅ Finished convert[1] in 0.00s",
    ]


async def test_at_info_successful_items_have_no_events() -> None:
    bus = cs.MessageBus()
    HumanReadableLogSubscriber(bus, min_level="INFO")
    for kind in (TaskExecutionStarted, TaskExecutionFinished, TaskSkipped):
        assert [len(bus.handlers(kind, succeeded=True, item=item)) for item in (True, False)] == [0, 1]
    assert len(bus.handlers(TaskExecutionFinished, item=True)) == 1


async def test_json_has_separate_fields_for_name_index_and_counts() -> None:
    printed = Printed(json_log=True)
    with pytest.raises(ZeroDivisionError):
        await printed.run(convert.map(x=[1, 1, 0]))
    by_id = {record["event_id"]: record for record in printed.records}
    failure, progress = by_id["task.finished_failure"], by_id["map.progress"]
    assert (failure["data"]["task_name"], failure["data"]["map_index"]) == ("convert", 2)
    assert progress["data"] == {"task_name": "map(convert)", "done": 2, "total": 3, "failed": 1}
    assert failure["task_id"] == f"{progress['task_id']}/2"


async def test_control_characters_of_names_and_errors_are_escaped() -> None:
    def fail(x: int) -> None:
        raise ValueError("one\ntwo\x1b[2J\u202e\ud800")

    printed = Printed(clock=FixedClock())
    with pytest.raises(ValueError, match="one"):
        await printed.run(cs.task(fail, name="a\x1b]0;owned\x07\rb").map(x=[1]))
    name = "a\\x1b]0;owned\\x07\\rb"
    assert printed.lines[1:3] == [
        f"⏳ Running map({name})",
        f"❌ Failed {name}[0] after 0.00s: ValueError: one\\ntwo\\x1b[2J\\u202e?",
    ]
