"""`cs.shell`: a command as a task."""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from cascade.runtime.task_context import current_task
from cascade.spec.task import task

_SHOWN = 2_000
"""Characters of a failed command's stderr in the error: its last ones, which say what went wrong."""


@task(name="shell")
async def shell(command: str | Sequence[str], check: bool = True) -> str:
    """Run a command, a string in the shell or a list without one, and return its stripped stdout.

    The task's span goes along as `TRACEPARENT` in the environment (W3C Trace Context). On cancellation the command is
    killed, with all that it has started.

    Raises:
        RuntimeError: The command's exit code is not zero, and `check` is true.
    """
    pipe = asyncio.subprocess.PIPE
    options = {"stdout": pipe, "stderr": pipe, "env": _environment(), "start_new_session": True}
    if isinstance(command, str):
        process = await asyncio.create_subprocess_shell(command, **options)  # type: ignore[arg-type]
    else:
        process = await asyncio.create_subprocess_exec(*command, **options)  # type: ignore[arg-type]
    try:
        stdout, stderr = await process.communicate()
    finally:
        await _end(process)
    if check and process.returncode:
        said = stderr.decode(errors="replace").strip()[-_SHOWN:]
        raise RuntimeError(
            f"Command {command!r} failed with exit code {process.returncode}" + (f": {said}" if said else "")
        )
    return stdout.decode(errors="replace").strip()


def _environment() -> dict[str, str]:
    running = current_task()
    return dict(os.environ) if running is None else {**os.environ, "TRACEPARENT": running.traceparent}


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    # To its very end, or it stays behind as a zombie, and its pipes open.
    await process.communicate()
