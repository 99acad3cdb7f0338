"""Prints the trace id of a run, or the link to its trace, at the run's end."""

from collections.abc import Mapping
from dataclasses import dataclass

from cascade.messaging.bus import MessageBus as Messages
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import RunFinished, RunStarted
from cascade.runtime.task_context import current_task
from cascade.telemetry.identity import RunTrace

VARIABLE = "CASCADE_TRACE_URL"
_PLACE = "{trace_id}"


def trace_url_template(environ: Mapping[str, str]) -> str | None:
    """The template of CASCADE_TRACE_URL, such as `http://localhost:16686/trace/{trace_id}`.

    Raises:
        ValueError: The template has no `{trace_id}`.
    """
    template = environ.get(VARIABLE, "").strip()
    if template and _PLACE not in template:
        raise ValueError(f"{VARIABLE}={template!r} has no {_PLACE}; put {_PLACE} where the trace id belongs")
    return template or None


class TraceLinkSubscriber:
    """Prints the id of a run's trace, or the link to it, once, at the end of the run.

    The message has the level ERROR if the run, or a run that one of its tasks started, failed; else INFO. A run that a
    task of another run started prints nothing: the outer run prints the id of the trace that they share.

    Args:
        event_bus: The bus of one run and of the runs nested in it.
        template: A URL with `{trace_id}`; None prints the id alone.
        messages: The bus that the message is printed to.
    """

    def __init__(self, event_bus: MessageBus, template: str | None, messages: Messages) -> None:
        self._template = template
        self._messages = messages
        event_bus.subscribe(RunStarted, self.on_run_started)
        event_bus.subscribe(RunFinished, self.on_run_finished)

    def on_run_started(self, event: RunStarted) -> None:
        if event.run_id is not None and isinstance(event.trace, RunTrace):
            _links[event.run_id] = _link_of_outer_run(event) or _Link(event.run_id, event.trace.trace_id)

    def on_run_finished(self, event: RunFinished) -> None:
        link = _links.pop(event.run_id or "", None)
        if link is None:
            return
        link.failed |= event.status == "Failed"
        if link.is_printed or link.run_id == event.run_id:
            link.is_printed = True
            self._print(link)

    def _print(self, link: "_Link") -> None:
        show = self._messages.error if link.failed else self._messages.info
        if self._template is None:
            show("run.trace", trace_id=link.trace_id)
        else:
            show("run.trace_url", trace_id=link.trace_id, url=self._template.replace(_PLACE, link.trace_id))


@dataclass(slots=True)
class _Link:
    """The trace of a run and of the runs that its tasks started. `run_id` is that of the outermost run, which prints."""

    run_id: str
    trace_id: str
    failed: bool = False
    is_printed: bool = False


_links: dict[str, _Link] = {}
"""By the id of each run in progress, of any bus: a task starts runs with its own bus by `cs.run`."""


def _link_of_outer_run(event: RunStarted) -> _Link | None:
    task = current_task()
    link = None if task is None else _links.get(task.run_id)
    shared = link is not None and (event.nested or link.trace_id == event.trace.trace_id)
    return link if shared else None
