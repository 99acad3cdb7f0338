"""Random workflows with failing tasks under `fail_fast=False`, against a simple model."""

import asyncio
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import cascade as cs
from cascade.runtime.events import RunFinished, TaskExecutionFinished, TaskSkipped
from tests.lab.waiting import with_timeout
from tests.runtime.conftest import RecordedEngine


@dataclass(frozen=True)
class Spec:
    """A task of a random workflow. `sources` and `condition` are positions of earlier tasks."""

    sources: tuple[int, ...]
    condition: int | None
    kind: str
    fails: bool
    is_allowed: bool
    is_true: bool


@st.composite
def workflows(draw: st.DrawFn) -> list[Spec]:
    specs: list[Spec] = []
    for position in range(draw(st.integers(1, 10))):
        earlier = st.integers(0, position - 1) if position else st.nothing()
        specs.append(
            Spec(
                tuple(draw(st.lists(earlier, max_size=3, unique=True))) if position else (),
                draw(st.none() | earlier) if position else None,
                draw(st.sampled_from(["thread", "loop", "coroutine", "map"])),
                draw(st.booleans()),
                draw(st.booleans()),
                draw(st.booleans()),
            )
        )
    return specs


def outcomes(specs: list[Spec]) -> list[str]:
    """Return the expected outcome of each task: "value", "failure", "failed", or the reason of a skip."""
    found: list[str] = []
    for spec in specs:
        found.append(_skip_reason(spec, specs, found) or _own_outcome(spec))
    return found


def _own_outcome(spec: Spec) -> str:
    if not spec.fails:
        return "value"
    return "failure" if spec.is_allowed else "failed"


def _skip_reason(spec: Spec, specs: list[Spec], found: list[str]) -> str | None:
    if spec.condition is not None:
        outcome, condition = found[spec.condition], specs[spec.condition]
        if outcome in {"failed", "UpstreamFailed"}:
            return "UpstreamFailed"
        if outcome not in {"value", "failure"}:
            return "UpstreamSkipped_Condition"
        # The value of a map with a failed item is a list, which is true.
        if condition.kind != "map" and (outcome == "failure" or not condition.is_true):
            return "ConditionFalse"
    for source in spec.sources:
        if found[source] in {"failed", "UpstreamFailed"}:
            return "UpstreamFailed"
        if found[source] not in {"value", "failure"}:
            return "UpstreamSkipped_Data"
    return None


def lazy_of(position: int, spec: Spec, earlier: list[Any]) -> Any:
    def check(*values: Any) -> bool:
        if spec.fails:
            raise ValueError(f"number {position}")
        return spec.is_true

    async def check_later(*values: Any) -> bool:
        await asyncio.sleep(0)
        return check()

    sources = [earlier[source] for source in spec.sources]
    function: Any = check_later if spec.kind == "coroutine" else check
    options: Any = {} if spec.kind == "coroutine" else {"threaded": spec.kind == "thread"}
    task: Any = cs.task(function, name=f"task {position}", **options)
    if spec.kind == "map":

        def item(x: int, values: Any) -> bool:
            return check() if x == 1 else True

        lists = cs.task(lambda *values: [values] * 3, name=f"lists {position}", threaded=False)(*sources)
        task = cs.task(item, name=f"item {position}", threaded=False)
        lazy = task.map(x=[0, 1, 2], values=lists)
    else:
        lazy = task(*sources)
    if spec.is_allowed:
        lazy = lazy.allow_failure()
    return lazy if spec.condition is None else lazy.run_if(earlier[spec.condition])


@settings(max_examples=60, deadline=None)
@given(workflows())
def test_a_run_without_fail_fast_agrees_with_the_model(specs: list[Spec]) -> None:
    lazies: list[Any] = []
    for position, spec in enumerate(specs):
        lazies.append(lazy_of(position, spec, lazies))
    expected = outcomes(specs)
    recorded, value, error = asyncio.run(_run(lazies))
    ids = [lazy._uuid for lazy in lazies]
    skipped = {event.task_id: event.reason for event in recorded.of(TaskSkipped)}
    ended = {event.task_id: event for event in recorded.of(TaskExecutionFinished)}
    ran = {"value", "failure", "failed"}
    assert [skipped.get(id_) for id_ in ids] == [None if outcome in ran else outcome for outcome in expected]
    assert [id_ in ended for id_ in ids] == [outcome in ran for outcome in expected]
    texts = {f"number {position}" for position, outcome in enumerate(expected) if outcome in {"failure", "failed"}}
    assert {str(failure.error) for failure in recorded.of(RunFinished)[0].failures} == texts
    failed = {f"number {position}" for position, outcome in enumerate(expected) if outcome == "failed"}
    if failed:
        assert str(error) in failed
        later = {note.rpartition(": ")[2] for note in error.__notes__ if note.startswith("Later, ")}
        assert later == failed - {str(error)}
    elif set(expected) <= ran:
        assert error is None
        assert len(value) == len(specs)
    else:
        assert isinstance(error, cs.DependencyMissingError)


async def _run(lazies: list[Any]) -> tuple[RecordedEngine, Any, Any]:
    recorded = RecordedEngine()
    try:
        return recorded, await with_timeout(recorded.run(lazies, fail_fast=False)), None
    except Exception as error:  # noqa: BLE001 - the subject of the test
        return recorded, None, error
    finally:
        recorded.executor.close()


def test_the_model_skips_by_the_first_source_without_a_value() -> None:
    base = Spec((), None, "loop", fails=True, is_allowed=False, is_true=True)
    false = Spec((), None, "loop", fails=False, is_allowed=False, is_true=False)
    conditional = Spec((), 1, "loop", fails=False, is_allowed=False, is_true=True)
    both = Spec((2, 0), None, "loop", fails=False, is_allowed=False, is_true=True)
    assert outcomes([base, false, conditional, both]) == ["failed", "value", "ConditionFalse", "UpstreamSkipped_Data"]
