"""The first and the last event of a run."""

from collections.abc import AsyncIterator
from typing import Any

from cascade._context_managers import async_context_manager
from cascade.runtime._run_context import RunContext, seconds
from cascade.runtime.events import RunFinished, RunStarted
from cascade.runtime.task_context import current_task


@async_context_manager
async def published(run: RunContext, started: dict[str, Any]) -> AsyncIterator[None]:
    """Publish RunStarted and RunFinished, and drain the subscribers. `started` has fields of RunStarted."""
    task = current_task()
    run.emit(
        RunStarted,
        params=run.params,
        start_ns=run.start_ns,
        trace=run.trace,
        outer_run_id=task.run_id if task else "",
        **started,
    )
    error: BaseException | None = None
    try:
        yield
    except BaseException as caught:
        error = caught
        raise
    finally:
        end_ns, outcome = run.clock.now_ns(), run.outcome(error)
        times = {"duration": seconds(run.start_ns, end_ns), "start_ns": run.start_ns, "end_ns": end_ns}
        failures = {"failures": tuple(run.failures), "failed_tasks": tuple(run.failed_tasks)}
        starved = None if run.slot_meter is None else run.slot_meter.starved(end_ns - run.start_ns)
        later_errors = tuple(run.later_errors)
        run.emit(RunFinished, later_errors=later_errors, starved=starved, **times, **failures, **outcome)
        run.failures, run.failed_tasks = [], []
        run.report_still_stopping()
        del error  # it refers to this frame
        await run.bus.drain(run.run_id)
