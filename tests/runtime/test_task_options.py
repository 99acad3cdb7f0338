"""Options of a task in runs: retries, caches, constraints, labels and tags of calls and maps, of all kinds of tasks."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cascade as cs
from cascade.runtime.events import TaskExecutionFinished, TaskRetrying, TaskSkipped
from cascade.testing import MemoryConnector
from tests.lab.extras import needs
from tests.runtime.conftest import RecordedEngine


class Memory:
    """A cache of values by argument."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
        return self.values.get(repr(inputs))

    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
        self.values[repr(inputs)] = output


class Flaky:
    """A function that fails `failures` times, then returns its argument."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls: list[int] = []

    def __call__(self, x: int) -> int:
        self.calls.append(x)
        if len(self.calls) <= self.failures:
            raise ConnectionError(f"attempt {len(self.calls)}")
        return x


KINDS = pytest.mark.parametrize("kind", ["threaded", "inline", "coroutine"])
SHAPES = pytest.mark.parametrize("shape", ["call", "map"])


def task_of(function: Callable[[int], Any], kind: str, **options: Any) -> Any:
    if kind == "coroutine":

        async def work(x: int) -> Any:
            await asyncio.sleep(0)
            return function(x)

        return cs.task(work, **options)
    options.setdefault("name", "work")
    return cs.task(function, threaded=None if kind == "threaded" else False, **options)


def called(task: Any, shape: str) -> Any:
    return task(7) if shape == "call" else task.map(x=[7])


def value(shape: str) -> Any:
    return 7 if shape == "call" else [7]


@KINDS
@SHAPES
async def test_three_retries_are_up_to_four_attempts(recorded: RecordedEngine, kind: str, shape: str) -> None:
    function = Flaky(3)
    task = task_of(function, kind, retries=3, retry_delay=0.001, backoff=2.0, retry_on=ConnectionError)
    assert await recorded.run(called(task, shape)) == value(shape)
    assert function.calls == [7] * 4
    retries = recorded.of(TaskRetrying)
    assert [(e.attempt, e.max_attempts, e.delay) for e in retries] == [(1, 3, 0.001), (2, 3, 0.002), (3, 3, 0.004)]


@KINDS
@SHAPES
async def test_a_chain_method_switches_the_retries_of_a_task_off(
    recorded: RecordedEngine, kind: str, shape: str
) -> None:
    function = Flaky(1)
    with pytest.raises(ConnectionError):
        await recorded.run(called(task_of(function, kind, retries=3), shape).with_retry(0))
    (finished,) = recorded.of(TaskExecutionFinished, "work")
    assert (function.calls, finished.attempts, finished.max_attempts) == ([7], (), 0)


@KINDS
@SHAPES
async def test_the_cache_of_a_task(recorded: RecordedEngine, kind: str, shape: str) -> None:
    function = Flaky(0)
    task = task_of(function, kind, cache=Memory())
    for _ in range(2):
        assert await recorded.run(called(task, shape)) == value(shape)
    assert [e.reason for e in recorded.of(TaskSkipped)] == ["CacheHit"]
    assert await recorded.run(called(task, shape).with_cache(None)) == value(shape)
    assert function.calls == [7, 7]


@SHAPES
async def test_a_task_may_be_excluded_from_the_cache_of_a_run(recorded: RecordedEngine, shape: str) -> None:
    functions = [Flaky(0), Flaky(0)]
    tasks = [task_of(functions[0], "inline"), task_of(functions[1], "inline", cache=False)]
    cache = Memory()
    for _ in range(2):
        for task in tasks:
            assert await recorded.run(called(task, shape), cache=cache) == value(shape)
    assert [len(function.calls) for function in functions] == [1, 2]


@KINDS
@SHAPES
def test_the_constraints_of_a_task(kind: str, shape: str) -> None:
    task = task_of(Flaky(0), kind, constraints={"gpu": 2})
    too_few: Any = {"system_resources": {"gpu": 1}, "log_level": "OFF"}
    assert cs.run(called(task, shape), system_resources={"gpu": 2}, log_level="OFF") == value(shape)
    with pytest.raises(ValueError, match="exceeds total system capacity"):
        cs.run(called(task, shape), **too_few)
    assert cs.run(called(task, shape).with_constraints(gpu=1), **too_few) == value(shape)
    assert cs.run(called(task, shape).with_constraints(), **too_few) == value(shape)


@KINDS
def test_the_label_of_a_task_and_of_a_call(kind: str) -> None:
    def own(x: int) -> str | None:
        task = cs.current_task()
        assert task is not None
        return task.label

    task = task_of(own, kind, label=lambda x: f"x = {x}")
    assert cs.run(task(7), log_level="OFF") == "x = 7"
    assert cs.run(task(7).with_label(None), log_level="OFF") is None
    assert cs.run(task.map(x=[1, 2]), log_level="OFF") == ["x = 1", "x = 2"]
    assert cs.run(task.map(x=[1, 2]).with_label(None), log_level="OFF") == [None, None]


@SHAPES
async def test_the_timeout_of_a_task_and_its_retries(recorded: RecordedEngine, shape: str) -> None:
    forever, calls = asyncio.Event(), list[int]()

    @cs.task(timeout=0.02, retries=1, retry_on=TimeoutError)
    async def stuck(x: int) -> None:
        calls.append(x)
        await forever.wait()

    with pytest.raises(TimeoutError, match="'stuck'"):
        await recorded.run(called(stuck, shape))
    assert calls == [7, 7]
    assert [event.result for event in recorded.of(TaskRetrying)] == ["timeout"]


@SHAPES
async def test_a_chain_method_switches_the_timeout_of_a_task_off(recorded: RecordedEngine, shape: str) -> None:
    @cs.task(timeout=1e-6)
    async def slow(x: int) -> int:
        await asyncio.sleep(0.005)
        return x

    assert await recorded.run(called(slow, shape).with_timeout(None)) == value(shape)
    with pytest.raises(TimeoutError):
        await recorded.run(called(slow, shape))


@needs("otel")
@SHAPES
def test_a_label_and_tags_are_not_in_the_names_of_spans(shape: str) -> None:
    from cascade.testing import record_run

    task = task_of(Flaky(1), "inline", label="unique-label", tags=["unique-tag"], retries=1, retry_delay=0.002)
    spans = record_run(called(task, shape)).spans
    labelled = {span.name for span in spans if span.attributes.get("cascade.task.label") == "unique-label"}
    assert labelled == {"work", "work attempt", "work wait"}
    assert not [span.name for span in spans if "unique" in span.name]


# Tags


def bodies(target: Any, **options: Any) -> list[dict[str, Any]]:
    connector = MemoryConnector()
    cs.run(target, connector=connector, log_level="OFF", **options)
    return [payload["body"] for payload in connector.payloads if payload["body"]["type"] == "TaskStateEvent"]


def tags_of(target: Any, **options: Any) -> dict[tuple[str, str], list[str] | None]:
    """Run, and return the tags by state and name of the task. Tasks of one name have the same tags."""
    return {(b["state"], b["task_name"]): b["metadata"].get("tags") for b in bodies(target, **options)}


@KINDS
def test_all_messages_of_a_task_have_its_tags(kind: str) -> None:
    task = task_of(Flaky(1), kind, tags=("etl", "b"), retries=1, retry_delay=0.001)
    assert tags_of(task(7)) == {(state, "work"): ["etl", "b"] for state in ("RUNNING", "PENDING", "COMPLETED")}
    assert tags_of(task(7).with_tags("own")) == {(state, "work"): ["own"] for state in ("RUNNING", "COMPLETED")}
    assert set(tags_of(task(7).with_tags()).values()) == {None}
    seen = cs.task(lambda: getattr(cs.current_task(), "tags", None), tags=["a"])
    assert cs.run(seen(), log_level="OFF") == ("a",)


@KINDS
def test_a_map_and_its_items_have_the_tags_of_the_task(kind: str) -> None:
    task = task_of(Flaky(0), kind, tags=["etl"])
    names = [(state, name) for state in ("RUNNING", "COMPLETED") for name in ("work", "map(work)")]
    assert tags_of(task.map(x=[1, 2])) == {name: ["etl"] for name in names}
    assert tags_of(task.map(x=[1, 2]).with_tags("own")) == {name: ["own"] for name in names}


def test_a_skipped_or_cached_task_has_its_tags() -> None:
    no = cs.task(lambda: False, name="no")
    task = cs.task(Flaky(0), name="work", tags=["etl"], cache=Memory())
    for target in (task(7).run_if(no()), task.map(x=[7]).run_if(no())):
        connector = MemoryConnector()
        with pytest.raises(cs.DependencyMissingError):
            cs.run(target, connector=connector, log_level="OFF")
        (skipped,) = [p["body"] for p in connector.payloads if p["body"].get("state") == "SKIPPED"]
        assert skipped["metadata"]["tags"] == ["etl"]
    cs.run(task(7), log_level="OFF")
    assert tags_of(task(7)) == {("SKIPPED", "work"): ["etl"]}


def test_a_failed_task_has_its_tags() -> None:
    connector = MemoryConnector()
    with pytest.raises(ConnectionError):
        cs.run(cs.task(Flaky(9), name="work", tags=["etl"])(7), connector=connector, log_level="OFF")
    (failed,) = [p["body"] for p in connector.payloads if p["body"].get("state") == "FAILED"]
    assert failed["metadata"]["tags"] == ["etl"]


def test_secrets_in_tags_are_masked() -> None:
    task = cs.task(lambda: getattr(cs.current_task(), "tags", None), name="work", tags=["password=hunter2", "x" * 999])
    (running, _) = bodies(task())
    masked, cut = running["metadata"]["tags"]
    assert masked == "password=***"
    assert len(cut.encode()) == 256
    assert cs.run(task(), log_level="OFF") == (masked, cut)


@needs("otel")
@pytest.mark.parametrize("shape", ["call", "map"])
def test_the_span_of_a_task_has_its_tags_and_the_spans_below_it_do_not(shape: str) -> None:
    from cascade.testing import record_run

    task = task_of(Flaky(1), "inline", tags=["etl", "b"], retries=1, retry_delay=0.002)
    spans = record_run(called(task, shape)).spans
    found = {span.name: span.attributes.get("cascade.task.tags") for span in spans}
    of_map = {"map(work)": ["etl", "b"]} if shape == "map" else {}
    assert {name: tags for name, tags in found.items() if tags is not None} == {"work": ["etl", "b"], **of_map}
    assert "work attempt" in found


# Kinds of factories


class Factory:
    """A factory of a map that is not a Task: it calls one."""

    name = "factory"

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __call__(self, x: int) -> Any:
        return self.make(x)

    def map(self, **lists: Any) -> Any:
        from cascade.spec.lazy_types import MappedLazyResult

        return MappedLazyResult(self, lists)


async def test_the_items_of_another_factory_have_the_options_of_their_call(recorded: RecordedEngine) -> None:
    function = Flaky(1)
    inner = task_of(function, "inline", retries=2, tags=["a"], label="of the task")
    assert await recorded.run(Factory(inner).map(x=[7])) == [7]
    (finished,) = recorded.of(TaskExecutionFinished, "work")
    assert (finished.max_attempts, finished.tags, finished.label) == (2, ("a",), "of the task")

    function.calls.clear()
    assert await recorded.run(Factory(lambda x: inner(x).with_retry(5).with_tags("b")).map(x=[7])) == [7]
    finished = recorded.of(TaskExecutionFinished, "work")[-1]
    assert (finished.max_attempts, finished.tags, finished.label) == (5, ("b",), "of the task")


async def test_the_chain_methods_of_a_map_override_the_calls_of_another_factory(recorded: RecordedEngine) -> None:
    function = Flaky(1)
    inner = task_of(function, "inline", retries=2, tags=["a"], label="of the task")
    target = Factory(inner).map(x=[7]).with_retry(3).with_tags("c").with_label(lambda x: f"{x}")
    assert await recorded.run(target) == [7]
    finished = recorded.of(TaskExecutionFinished, "work")[-1]
    assert (finished.max_attempts, finished.tags, finished.label) == (3, ("c",), "7")

    function.calls.clear()
    with pytest.raises(ConnectionError):
        await recorded.run(Factory(inner).map(x=[7]).with_retry(0))
    finished = recorded.of(TaskExecutionFinished, "work")[-1]
    assert (finished.max_attempts, finished.tags) == (0, ("a",))


def test_a_task_of_a_provider_has_options(tmp_path: Path) -> None:
    shell = cs.task(cs.shell, name="git", tags=["vcs"], label=lambda command: command, retries=1)
    (running, completed) = bodies(shell("echo done"))
    assert running["task_name"] == "git"
    assert completed["metadata"]["tags"] == ["vcs"]
    assert (completed["metadata"]["label"], completed["metadata"]["max_attempts"]) == ("echo done", 1)
    assert cs.run(shell.map(command=["echo a", "echo b"]), log_level="OFF") == ["a", "b"]
    file = tmp_path / "inner.py"
    file.write_text(
        "import cascade as cs\n"
        "@cs.task(tags=['inner'])\n"
        "def inner():\n"
        "    return cs.current_task().tags\n"
        "target = inner()\n"
    )
    subflow = cs.task(cs.subflow, tags=["outer"])
    assert cs.run(subflow(str(file), "target"), log_level="OFF") == ("inner",)


async def test_a_nested_run_has_the_options_of_its_own_tasks(recorded: RecordedEngine) -> None:
    function = Flaky(1)

    @cs.task(tags=["outer"])
    async def outer() -> int:
        found: int = await cs.run_async(task_of(function, "threaded", retries=1)(7), log_level="OFF")
        return found

    assert await recorded.run(outer()) == 7
    assert function.calls == [7, 7]
