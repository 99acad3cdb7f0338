"""Which run, task, trace and span an event is about."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.subject import subject
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import Event, RunFinished, RunStarted, TaskEvent
from cascade.telemetry.identity import RUN, RunTrace, span_id

Handler = Callable[[Any], None]


class Subjects:
    """Provides the ids of an event while a handler prints messages about it. Keeps the traces of the active runs.

    Args:
        event_bus: The bus of the events.
        messages: Returns the bus that the handlers print to.
    """

    def __init__(self, event_bus: MessageBus, messages: Callable[[], Messages]) -> None:
        self._messages = messages
        self._traces: dict[str, RunTrace] = {}
        event_bus.subscribe(RunStarted, self._begin)

    def told_by(self, handler: Handler) -> Handler:
        """The handler, with the ids of its event in `subject` while it runs, if the renderer prints them."""

        @wraps(handler)
        def tell(event: Event) -> None:
            if self._messages().shows_subject is not True:  # a mock of the bus is not asked for its truth
                handler(event)
                return
            token = subject.set(partial(self._ids_of, event))
            try:
                handler(event)
            finally:
                subject.reset(token)

        return tell

    def forget(self, event: RunFinished) -> None:
        """To be subscribed after the handlers, which want the ids of the run's last message."""
        self._traces.pop(event.run_id or "", None)

    def _begin(self, event: RunStarted) -> None:
        if isinstance(event.trace, RunTrace) and event.run_id:
            self._traces[event.run_id] = event.trace

    def _ids_of(self, event: Event) -> dict[str, str]:
        task_id = event.task_id if isinstance(event, TaskEvent) else RUN
        ids = {"run_id": event.run_id, "task_id": task_id}
        if trace := self._traces.get(event.run_id or ""):
            place = trace.place_of(task_id, event.map_id if isinstance(event, TaskEvent) else None)
            ids |= {"trace_id": place.trace_id, "span_id": span_id(trace.run_id, task_id)}
        return {key: value for key, value in ids.items() if value}
