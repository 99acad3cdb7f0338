"""`cs.shell`: runs a command as a task."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from cascade.runtime.task_context import TaskContext, current_task
from cascade.spec.task import task
from cascade.telemetry.sanitize import masked_end

_MAX_STDERR = 2_000
"""Number of characters from the end of stderr in the error of a failed command."""


@task(name="shell", cache=False)
async def shell(command: str | Sequence[str], check: bool = True) -> str:
    """Run a command and return its stripped stdout. A string runs in the shell, a list without it.

    The environment has the span of the task in `TRACEPARENT` and `TRACESTATE` (W3C Trace Context), and the current baggage
    in `BAGGAGE`. stdin is empty. A cancellation kills the command and its child processes.

    Raises:
        RuntimeError: The exit code is not zero, and `check` is true. The text has the end of stderr, with secrets masked.
    """
    pipe = asyncio.subprocess.PIPE
    options: dict[str, Any] = {"stdin": asyncio.subprocess.DEVNULL, "stdout": pipe, "stderr": pipe}
    options |= {"env": _environment(), "start_new_session": True}
    process = await _start(command, options)
    try:
        stdout, stderr = await process.communicate()
    except BaseException:
        await _kill(process)
        raise
    if check and process.returncode:
        reason = masked_end(stderr.decode(errors="replace").strip(), _MAX_STDERR)
        raise RuntimeError(
            f"Command {command!r} failed with exit code {process.returncode}" + (f": {reason}" if reason else "")
        )
    return stdout.decode(errors="replace").strip()


async def _start(command: str | Sequence[str], options: dict[str, Any]) -> asyncio.subprocess.Process:
    """Start the command.

    A cancellation waits for the start: otherwise asyncio would kill the shell without its child processes.
    """
    if isinstance(command, str):
        starting = asyncio.ensure_future(asyncio.create_subprocess_shell(command, **options))
    else:
        starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*command, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _kill(await starting)
        raise


def _environment() -> dict[str, str]:
    """Return the environment of this process with the trace context of the running task. Empty values are removed."""
    running = current_task()
    if running is None:
        return dict(os.environ)
    context = {
        "TRACEPARENT": running.traceparent,
        "TRACESTATE": running.tracestate,
        "BAGGAGE": os.environ.get("BAGGAGE", ""),
        **_injected(running),
    }
    return {name: value for name, value in {**os.environ, **context}.items() if value or name not in context}


def _injected(running: TaskContext) -> dict[str, str]:
    """Return the values that OpenTelemetry would propagate in this context, if it is in use.

    They differ from the values of the task if a sampler has dropped the task, or if `detail="run"` makes the span of the run
    current.
    """
    if "opentelemetry.context" not in sys.modules:
        return {}
    carrier: dict[str, str] = {}
    try:
        propagate, trace = import_module("opentelemetry.propagate"), import_module("opentelemetry.trace")
        propagate.inject(carrier)
        fields, current = propagate.get_global_textmap().fields, trace.get_current_span().get_span_context()
    except Exception:  # noqa: BLE001 - OTEL_PROPAGATORS may name a broken or missing propagator
        return {}
    found: dict[str, str] = {}
    if "baggage" in carrier or ("baggage" in fields and current.is_valid):
        found["BAGGAGE"] = carrier.get("baggage", "")
    if "traceparent" in carrier and f"{current.span_id:016x}" in {running.span_id, running.trace.span_id}:
        found |= {"TRACEPARENT": carrier["traceparent"], "TRACESTATE": carrier.get("tracestate", "")}
    return found


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the command and its child processes, close the pipes, and reap the command."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    # A child process in another session survives and may hold the pipes: close them instead of waiting.
    # `close` of the transport of the process would reap it, and asyncio would warn about an unknown child process.
    transport = process._transport  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio has no public way  # pyright: ignore[reportAttributeAccessIssue]
    for number in range(3):
        if (pipe := transport.get_pipe_transport(number)) is not None:
            pipe.close()
    await process.wait()
