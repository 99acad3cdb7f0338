"""Id, name and trace of a run: checks of its options, the ids of the runs in progress, and the place of a run in its trace."""

import os
from collections.abc import Iterator
from dataclasses import replace

from cascade._context_managers import context_manager
from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.runtime.guard import FAULTS
from cascade.runtime.protocols import Tracing
from cascade.runtime.task_context import TaskContext, current_task
from cascade.telemetry.identity import RunTrace, parse_traceparent, place_run
from cascade.telemetry.topics import checked_level
from cascade.telemetry.trace_budget import Child, PartLimits, caller_in
from cascade.telemetry.trace_shards import TraceShards

logger = get_logger(__name__)

_in_progress: dict[str, object] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_progress.clear)


def checked_run_id(run_id: str) -> str:
    """Return a run_id that a caller has chosen.

    Raises:
        TypeError: It is not a text.
        ValueError: It cannot be a level of a topic.
    """
    if not isinstance(run_id, str):
        raise TypeError(f"run_id must be a text, got a {type(run_id).__name__}; for a UUID, give str(…)")
    return checked_level(str.__str__(run_id), "run_id")


def checked_name(name: str | None) -> str:
    """Return the name of a run, or "" for None.

    Raises:
        TypeError: It is not a text.
        ValueError: It has no visible character.
    """
    if name is None:
        return ""
    if not isinstance(name, str):
        raise TypeError(f"name must be a text, got a {type(name).__name__}")
    if not (text := str.__str__(name)).strip():
        raise ValueError(f"name must have at least one visible character, got {text!r}; omit it for the target's name")
    return text


def checked_fail_fast(fail_fast: bool) -> bool:
    """Return the option `fail_fast`. Raises TypeError if it is not True or False."""
    if not isinstance(fail_fast, bool):
        raise TypeError(f"fail_fast must be True or False, got a {type(fail_fast).__name__}")
    return fail_fast


@context_manager
def in_progress(run_id: str, *, is_chosen: bool) -> Iterator[None]:
    """Hold the id of a run inside the block. `is_chosen` is true for an id that the caller of the run has chosen.

    Raises:
        ValueError: A chosen id is the id of another run in progress in this process.
    """
    run = object()
    if _in_progress.setdefault(run_id, run) is not run and is_chosen:
        raise ValueError(f"run_id={run_id!r} is the id of a run in progress; wait for its end or choose another id")
    try:
        yield
    finally:
        if _in_progress.get(run_id) is run:
            del _in_progress[run_id]


def place_in_trace(
    tracing: Tracing | None, run_id: str, target: str, start_ns: int, limits: PartLimits
) -> tuple[RunTrace, Tracing | None]:
    """Place a run in a trace. Returns the trace, and the connector if it has placed the run and activates its spans.

    The parent of the run is the task that starts it, or else `TRACEPARENT` of the environment.
    """
    task = current_task()
    parent = (
        task.current_span if task else parse_traceparent(os.environ.get("TRACEPARENT"), os.environ.get("TRACESTATE"))
    )
    trace: RunTrace | None = None
    if tracing is not None:
        try:
            trace = tracing.place_run(run_id, target, start_ns, parent)
        except FAULTS as error:
            raise_in_tests(error)
            logger.exception("%s failed to place the run in a trace; the run continues", type(tracing).__name__)
        if not isinstance(trace, RunTrace):
            trace = tracing = None
    trace = trace or place_run(run_id, parent)
    return replace(trace, parts=TraceShards(limits, _enclosing(trace, task, limits))), tracing


def _enclosing(trace: RunTrace, task: TaskContext | None, limits: PartLimits) -> Child | None:
    """Return the task or the caller whose trace contains the run, or None if the run has its own trace."""
    if not trace.parent_span_id:
        return None
    if task is not None and task.trace_id == trace.trace_id:
        return task.child or task.trace.parts.run
    return caller_in(trace.trace_id, limits)
