"""`cs.shell`: a command as a task."""

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
from cascade.telemetry.safe import masked_end

_SHOWN = 2_000
"""Characters of a failed command's stderr in the error: the last ones, which as a rule have the reason."""


@task(name="shell")
async def shell(command: str | Sequence[str], check: bool = True) -> str:
    """Run a command, a string in the shell or a list without one, and return its stripped stdout.

    The environment has the task's span in `TRACEPARENT` and `TRACESTATE` (W3C Trace Context), and the current baggage in
    `BAGGAGE`. There is nothing on stdin. On cancellation the command is killed, with all that it has started.

    Raises:
        RuntimeError: The command's exit code is not zero, and `check` is true. The text has the end of the command's
            stderr, with secrets masked.
    """
    pipe = asyncio.subprocess.PIPE
    options: dict[str, Any] = {"stdin": asyncio.subprocess.DEVNULL, "stdout": pipe, "stderr": pipe}
    options |= {"env": _environment(), "start_new_session": True}
    process = await _started(command, options)
    try:
        stdout, stderr = await process.communicate()
    except BaseException:
        await _kill(process)
        raise
    if check and process.returncode:
        said = masked_end(stderr.decode(errors="replace").strip(), _SHOWN)
        raise RuntimeError(
            f"Command {command!r} failed with exit code {process.returncode}" + (f": {said}" if said else "")
        )
    return stdout.decode(errors="replace").strip()


async def _started(command: str | Sequence[str], options: dict[str, Any]) -> asyncio.subprocess.Process:
    """Start the command. Cancelled in between, asyncio would kill the shell alone, not what it has started by then."""
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
    """The environment of this process, with the context of the running task. A value that the task lacks is removed."""
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
    """The values that OpenTelemetry would send from here, if it is in use, where they differ from those of the task.

    A sampler may have decided otherwise for the task than for its run. With `detail="run"` the run's span is current.
    """
    if "opentelemetry.context" not in sys.modules:
        return {}
    carrier: dict[str, str] = {}
    try:
        propagate, trace = import_module("opentelemetry.propagate"), import_module("opentelemetry.trace")
        propagate.inject(carrier)
        fields, current = propagate.get_global_textmap().fields, trace.get_current_span().get_span_context()
    except Exception:  # noqa: BLE001 - OTEL_PROPAGATORS may name any propagator, or one that is not installed
        return {}
    found: dict[str, str] = {}
    if "baggage" in carrier or ("baggage" in fields and current.is_valid):
        found["BAGGAGE"] = carrier.get("baggage", "")
    if "traceparent" in carrier and f"{current.span_id:016x}" in {running.span_id, running.trace.span_id}:
        found |= {"TRACEPARENT": carrier["traceparent"], "TRACESTATE": carrier.get("tracestate", "")}
    return found


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the command and what it has started, which may outlive it, and leave neither a zombie nor open pipes."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    # A process that has moved to a session of its own lives on and may hold the pipes: close them instead of waiting.
    process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way  # pyright: ignore[reportAttributeAccessIssue]
    await process.wait()
