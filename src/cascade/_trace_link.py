"""The run's end names its trace, and the page to open."""

from collections.abc import Mapping

from cascade.messaging.bus import MessageBus as Messages
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import RunFinished, RunStarted
from cascade.telemetry.identity import RunTrace

VARIABLE = "CASCADE_TRACE_URL"
_PLACE = "{trace_id}"


def trace_url_template(environ: Mapping[str, str]) -> str | None:
    """The template of CASCADE_TRACE_URL, such as `http://localhost:16686/trace/{trace_id}`.

    Raises:
        ValueError: It has no place for the trace id.
    """
    template = environ.get(VARIABLE, "").strip()
    if template and _PLACE not in template:
        raise ValueError(f"{VARIABLE}={template!r} has no {_PLACE}: say where the trace id goes")
    return template or None


class TraceLinkSubscriber:
    """Prints the id of a run's trace, or the link to it, once, at the end of the run.

    The message has the level ERROR if the run, or a run nested in it, failed; else INFO. A nested run prints nothing:
    it is a part of the outer run's trace.

    Args:
        event_bus: The bus of one run and of the runs nested in it.
        template: A URL with `{trace_id}`; None prints the id alone.
        messages: The bus that the message is printed to.
    """

    def __init__(self, event_bus: MessageBus, template: str | None, messages: Messages) -> None:
        self._template = template
        self._messages = messages
        self._trace_ids: dict[str | None, str] = {}
        self._failed = False
        event_bus.subscribe(RunStarted, self.on_run_started)
        event_bus.subscribe(RunFinished, self.on_run_finished)

    def on_run_started(self, event: RunStarted) -> None:
        if isinstance(event.trace, RunTrace) and not event.nested:
            self._trace_ids[event.run_id] = event.trace.trace_id

    def on_run_finished(self, event: RunFinished) -> None:
        self._failed |= event.status == "Failed"
        trace_id = self._trace_ids.pop(event.run_id, None)
        if trace_id is None:
            return
        show = self._messages.error if self._failed else self._messages.info
        if self._template is None:
            show("run.trace", trace_id=trace_id)
        else:
            show("run.trace_url", trace_id=trace_id, url=self._template.replace(_PLACE, trace_id))
