"""A Jupyter kernel whose cells a test runs and interrupts."""

import contextlib
import queue
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jupyter_client.manager import KernelManager

from tests.lab.waiting import HANG


class Kernel:
    """An ipykernel in its own process: `with Kernel(folder, environment) as kernel`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._manager: Any = KernelManager(kernel_name="python3")

    def __enter__(self) -> Self:
        self._manager.start_kernel(cwd=str(self._folder), env=dict(self._environment))
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=HANG)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel()

    def run(self, code: str, *, interrupt_at: str = "") -> "Output":
        """Run a cell. Interrupt the kernel, as its stop button does, when the cell has printed this text."""
        request, output = self._client.execute(code), Output()
        is_interrupted = False
        while True:
            message = self._next(interrupt=is_interrupted)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return output
            output.add(message["msg_type"], message["content"])
            if not is_interrupted and interrupt_at and interrupt_at in output.stdout:
                is_interrupted = True
                self._manager.interrupt_kernel()

    def _next(self, *, interrupt: bool) -> dict[str, Any]:
        """Return the next message. If none arrives after an interrupt, send a request, as a frontend often does.

        The signal does not wake the event loop of ipykernel 7: a cell that only waits is cancelled when the loop wakes.
        """
        for _ in range(round(HANG)):
            with contextlib.suppress(queue.Empty):
                message: dict[str, Any] = self._client.get_iopub_msg(timeout=1)
                return message
            if interrupt:
                self._client.kernel_info()
        raise TimeoutError("the kernel sends no message")


class Output:
    """The output below a cell."""

    def __init__(self) -> None:
        self.stdout = self.stderr = self.value = self.error = ""

    def add(self, kind: str, content: Mapping[str, Any]) -> None:
        if kind == "stream" and content["name"] == "stdout":
            self.stdout += content["text"]
        elif kind == "stream":
            self.stderr += content["text"]
        elif kind == "execute_result":
            self.value = content["data"]["text/plain"]
        elif kind == "error":
            self.error = f"{content['ename']}: {content['evalue']}"
