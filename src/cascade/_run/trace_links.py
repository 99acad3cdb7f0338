"""The id of a run's trace, or the link to it, on the terminal. CASCADE_TRACE_URL is the template of the link."""

from collections.abc import Mapping
from dataclasses import dataclass

from cascade.messaging.bus import MessageBus as Messages
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import RunFinished, RunStarted
from cascade.runtime.task_context import current_task
from cascade.telemetry.identity import RunTrace

TRACE_URL_VARIABLE = "CASCADE_TRACE_URL"
_PLACEHOLDER = "{trace_id}"


def trace_url_template(environ: Mapping[str, str]) -> str | None:
    """Return the template of CASCADE_TRACE_URL, such as `http://localhost:16686/trace/{trace_id}`.

    Raises:
        ValueError: The template has no `{trace_id}`.
    """
    template = environ.get(TRACE_URL_VARIABLE, "").strip()
    if template and _PLACEHOLDER not in template:
        raise ValueError(
            f"{TRACE_URL_VARIABLE}={template!r} has no {_PLACEHOLDER}; put {_PLACEHOLDER} where the trace id belongs"
        )
    return template or None


def trace_url(template: str | None, trace_id: str) -> str | None:
    """Return the URL of a trace; None without a template."""
    return None if template is None else template.replace(_PLACEHOLDER, trace_id)


class TraceLinkSubscriber:
    """Prints the id of a run's trace, or the link to it, once, at the end of the run.

    The level is ERROR if the run failed, or a run that one of its tasks has started; otherwise INFO. A run that a task has
    started in the trace of its own run prints nothing: the outer run prints the id of the common trace.

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
            _links[event.run_id] = _link_of_outer_run(event) or _TraceLink(event.run_id, event.trace.trace_id)

    def on_run_finished(self, event: RunFinished) -> None:
        link = _links.pop(event.run_id or "", None)
        if link is None:
            return
        link.failed |= event.status == "Failed"
        if link.is_printed or link.run_id == event.run_id:
            link.is_printed = True
            self._print(link)

    def _print(self, link: "_TraceLink") -> None:
        show = self._messages.error if link.failed else self._messages.info
        url = trace_url(self._template, link.trace_id)
        if url is None:
            show("run.trace", trace_id=link.trace_id)
        else:
            show("run.trace_url", trace_id=link.trace_id, url=url)


@dataclass(slots=True)
class _TraceLink:
    """The trace of a run and of the runs that its tasks started. `run_id` is that of the outermost run, which prints."""

    run_id: str
    trace_id: str
    failed: bool = False
    is_printed: bool = False


_links: dict[str, _TraceLink] = {}
"""Links by the id of each run in progress. All buses share them, because `cs.run` in a task creates a new bus."""


def _link_of_outer_run(event: RunStarted) -> _TraceLink | None:
    task = current_task()
    link = None if task is None else _links.get(task.run_id)
    shared = link is not None and (event.nested or link.trace_id == event.trace.trace_id)
    return link if shared else None
