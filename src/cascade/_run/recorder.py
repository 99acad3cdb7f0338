"""`RunRecorder`: collects the values of a `RunResult` from the events of the run."""

from collections import Counter
from typing import cast

from cascade._run.result import Status
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import (
    RunFinished,
    RunStarted,
    TaskBlocked,
    TaskEvent,
    TaskExecutionFinished,
    TaskRetrying,
    TaskSkipped,
)
from cascade.runtime.run_counts import COUNTED, count_finished, count_skipped
from cascade.spec.failure import Failure


class RunRecorder:
    """Start, end and counts of the first run on a bus. The events of nested runs are ignored.

    It is a separate object, so that the bus does not refer to the objects of the run.

    Args:
        event_bus: The bus of the run.
        counts: Whether to count tasks.

    Attributes:
        run_id: The id of the run; empty before its start.
        trace_id: The id of its trace; empty before its start.
        status: The status of the run; empty before its end.
        duration: The duration of the run in seconds.
        failures: The failures after which the run continued.
    """

    def __init__(self, event_bus: MessageBus, *, counts: bool) -> None:
        self.run_id = self.trace_id = ""
        self.status: Status | None = None
        self.duration = 0.0
        self.failures: tuple[Failure, ...] = ()
        self._counts = Counter[str]()
        event_bus.subscribe(RunStarted, self._on_started)
        event_bus.subscribe(RunFinished, self._on_finished)
        for kind in (TaskExecutionFinished, TaskSkipped, TaskRetrying, TaskBlocked) if counts else ():
            event_bus.subscribe(kind, self._on_task)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of tasks by outcome, including those that are 0."""
        return {name: self._counts[name] for name in COUNTED}

    def _on_started(self, event: RunStarted) -> None:
        if not self.run_id:
            self.run_id, self.trace_id = str(event.run_id), event.trace.trace_id

    def _on_finished(self, event: RunFinished) -> None:
        if event.run_id == self.run_id:
            self.status = cast("Status", event.status)
            self.duration, self.failures = event.duration, event.failures

    def _on_task(self, event: TaskEvent) -> None:
        if event.run_id != self.run_id:
            return
        match event:
            case TaskExecutionFinished():
                count_finished(event, self._counts)
            case TaskSkipped():
                count_skipped(event, self._counts)
            case TaskRetrying():
                self._counts["retried"] += 1
            case _:
                self._counts["held_back"] += 1
