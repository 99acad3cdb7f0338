"""The functions that run a workflow: `run` returns its value, `execute` its `RunResult`. `RunOptions` has their options."""

from typing import Any

from cascade._run.options import Decorators, RunOptions
from cascade._run.prepared import PreparedRun, perform_to_end, run_to_end
from cascade._run.result import RunResult
from cascade.runtime.engine import refuse_event_loop, require_event_loop

_with_options = Decorators(RunOptions)


@_with_options.run
def run(target: Any, options: RunOptions) -> Any:  # noqa: D417 - Args lists the parameters that the decorator makes
    """Run a workflow and return the value of its target.

    In the main thread, Ctrl-C and SIGTERM cancel the run, unless the program handles the signal itself. The telemetry of
    the run is complete. A plain function in a thread cannot be interrupted: the process waits for its end. A
    second signal ends the process at once, with exit code 130 for Ctrl-C and 143 for SIGTERM.

    Args:
        target: A lazy result: the value of a call of a task or of its `.map`. Or a graph, which `from_json` returns. Or
            several targets in a list, a tuple or a dict, at any depth: the value of the run has the same shape.
        params: Values of the workflow's Params, by name.
        system_resources: Capacities of the resources that `with_constraints` requests, by name. Other names are unlimited.
        log_level: The lowest level of the messages that this run prints on stderr: "DEBUG", "INFO", "WARNING", "ERROR"
            or "OFF", in any case. "OFF" prints none. Warnings of the `logging` module are not affected.
        log_format: "human"; "json" for one JSON object per line; or "logging" for records of the logger `cascade` of the
            `logging` module in place of lines on stderr. Level and format belong to this run alone.
        connector: One or more connectors, which receive the telemetry. None uses those that CASCADE_CONNECTOR names.
        resources: Resources that tasks inject by name.
        max_workers: Maximum number of plain functions of this run that execute at the same time, 1 or more. None is the
            default of `concurrent.futures`: the number of processors plus 4, at most 32. All runs of a process share
            its worker threads: as many as the largest `max_workers` of the runs in progress, and at least the default.
        run_id: Id of the run. None creates one: 128 random bits in UUID form. Any text of at most 128 bytes that can be
            a level of a topic is accepted. The trace id of a run in its own trace has the bits of a UUID, or else is a
            hash of the text.
        name: Name of the run on the terminal, in messages and in its span `run {name}`; None uses the names of the
            targets. Use few different names, as for tasks.
        tags: Texts to find the run by, in messages and in `cascade.run.tags`.
        timeout: Limit of the run in seconds, above 0. It includes the setup of resources, and not their teardown.
        fail_fast: With False, a failed task stops only the tasks that depend on it.
        cache: The cache of all tasks that have none of their own, such as `cs.DiskCache(".cascade")`. Runs that the tasks
            start have the same cache, unless they have one of their own.

    Raises:
        RuntimeError: An event loop is running in this thread: `await cs.run_async(…)` there.
        ValueError: `log_level` or `log_format` is unknown, `max_workers` is not an integer of 1 or more, or `run_id`
            cannot be a level of a topic or is the id of another run in progress.
        DependencyMissingError: A target was skipped.
        TimeoutError: The run exceeded its timeout.
        KeyboardInterrupt: After Ctrl-C. If it is not caught, the interpreter prints no traceback.
        SystemExit: After SIGTERM, with exit code 143.
        BaseException: The exception of the first task that failed, unchanged.
    """
    refuse_event_loop("cs.run")
    return run_to_end(PreparedRun(target, options))


@_with_options.run_async
async def run_async(target: Any, options: RunOptions) -> Any:
    """Run a workflow inside a running asyncio event loop: in a notebook, in a web server. The arguments are those of `run`.

    Signals are not handled.

    Raises:
        RuntimeError: No asyncio event loop is running in this thread.
        BaseException: See `run`.
    """
    require_event_loop("cs.run_async")
    work = PreparedRun(target, options)
    await work.perform()
    return work.result()


@_with_options.execute
def execute(target: Any, options: RunOptions) -> RunResult[Any]:
    """Run a workflow and return its `RunResult`. `cs.run(…)` is `cs.execute(…).unwrap()`. The arguments are those of `run`.

    A failure of the run does not raise: it is in `error` of the result. An exception that a task raises is such a failure,
    also `SystemExit`.

    Raises:
        RuntimeError: An event loop is running in this thread: `await cs.execute_async(…)` there.
        TypeError: The target or an option has a wrong type. Nothing has run.
        ValueError: An option has a value that is not allowed. Nothing has run.
        KeyboardInterrupt: After Ctrl-C, so that the program ends.
        SystemExit: After SIGTERM, with exit code 143.
    """
    refuse_event_loop("cs.execute")
    work = PreparedRun(target, options, has_result=True)
    perform_to_end(work)
    return work.outcome()


@_with_options.execute_async
async def execute_async(target: Any, options: RunOptions) -> RunResult[Any]:
    """Do the same as `execute` inside a running asyncio event loop. The arguments are those of `run`.

    Signals are not handled. If the caller is cancelled, the run is cancelled, and `CancelledError` is raised.

    Raises:
        RuntimeError: No asyncio event loop is running in this thread.
        BaseException: See `execute`.
    """
    require_event_loop("cs.execute_async", "cs.execute")
    work = PreparedRun(target, options, has_result=True)
    await work.perform()
    return work.outcome()
