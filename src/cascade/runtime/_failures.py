"""Failures after which a run continues: those of tasks with `allow_failure()`, and of all tasks with `fail_fast=False`.

Only an `Exception` is such a failure. A cancellation, a `SystemExit` or a `KeyboardInterrupt` ends the run.
"""

from typing import Any

from cascade.graph.model import Node
from cascade.runtime._run_context import RunContext, error_info, without_engine_frames
from cascade.runtime._task_execution import TaskExecution
from cascade.runtime.events import FailedTask, TaskExecutionFinished, TaskExecutionStarted
from cascade.runtime.exceptions import add_later_error, add_task_note, remove_tracebacks
from cascade.spec.failure import Failure
from cascade.telemetry.limits import MAX_FAILURES


def continue_after(
    run: RunContext,
    error: Exception,
    node: Node,
    execution: TaskExecution | None,
    *,
    is_allowed: bool,
    map_index: int | None = None,
) -> Failure:
    """Record a failure after which the run continues, and return the value of the task.

    The traceback of an exception refers to the arguments of the call. The first `MAX_FAILURES` exceptions of a run keep
    theirs. The others lose it, so that 100,000 failed items do not keep all arguments in memory.

    Args:
        run: The run.
        error: The exception of the last attempt.
        node: The node of the task or of the item.
        execution: The execution of the task; None if the task has none.
        is_allowed: Whether the task has `allow_failure()`. Otherwise, the run raises its first error at the end.
        map_index: The index of an item.
    """
    failure = Failure(error, node.name, node.id, map_index, 0 if execution is None else execution.calls)
    if not is_allowed:
        _add_error(run, error, f"task {node.name!r}" if execution is None else execution.describe())
    run.tracebacks.restore(without_engine_frames(error))
    if len(run.failures) < MAX_FAILURES:
        label = None if execution is None else execution.label
        run.failed_tasks.append(FailedTask(run.clock.now_ns(), failure, error_info(error), label))
    elif error is not run.first_error:
        remove_tracebacks(error)
    run.failures.append(failure)
    return failure


def _add_error(run: RunContext, error: Exception, description: str) -> None:
    """Store the first error, which the run raises at its end, or add a note about a later error to it."""
    if run.first_error is None:
        run.first_error = error
    else:
        add_later_error(run.first_error, error, description)


def publish_failure(
    run: RunContext, error: Exception, node: Node, description: str = "", *, is_allowed: bool = False, **item: Any
) -> None:
    """Publish the start and the end of a task that failed before its execution, and add a note to its error.

    `item` has the id of the map and the index, for an item of a map.
    """
    now_ns = run.clock.now_ns()
    add_task_note(error, description or f"task {node.name!r}", attempt_start_ns=now_ns, now_ns=now_ns)
    item |= {"task_id": node.id, "task_name": node.name, "kind": "map" if node.node_type == "map" else "task"}
    run.emit(TaskExecutionStarted, start_ns=now_ns, **item)
    outcome = run.outcome(error, "error")
    run.emit(TaskExecutionFinished, start_ns=now_ns, end_ns=now_ns, is_allowed=is_allowed, **outcome, **item)
