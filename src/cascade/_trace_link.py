"""The run's end names its trace, and the page to open."""

from collections.abc import Mapping

from cascade.messaging.bus import bus as messaging_bus
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
    """Says at a run's end which trace it is. Nested runs are part of their outer run's trace."""

    def __init__(self, event_bus: MessageBus, template: str | None) -> None:
        self._template = template
        self._trace_ids: dict[str | None, str] = {}
        event_bus.subscribe(RunStarted, self.on_run_started)
        event_bus.subscribe(RunFinished, self.on_run_finished)

    def on_run_started(self, event: RunStarted) -> None:
        if isinstance(event.trace, RunTrace) and not event.nested:
            self._trace_ids[event.run_id] = event.trace.trace_id

    def on_run_finished(self, event: RunFinished) -> None:
        trace_id = self._trace_ids.pop(event.run_id, None)
        if trace_id is None:
            return
        if self._template is None:
            messaging_bus.info("run.trace", trace_id=trace_id)
        else:
            messaging_bus.info("run.trace_url", trace_id=trace_id, url=self._template.replace(_PLACE, trace_id))
