"""The context that a run and its tasks inherit: the current one of OpenTelemetry, else that of the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from cascade.connectors.otel._below import with_task
from cascade.connectors.otel._environment import Problem, report
from cascade.telemetry.identity import SpanRef


@dataclass(frozen=True, slots=True)
class Inherited:
    """OpenTelemetry context of a run's caller.

    `context` has the caller's baggage and other values; no span is current in it, and no task. Samplers and span
    processors get it with the spans of the run. `span` is the caller's current span, or None. `baggage` comes from
    BAGGAGE of the environment, which is used if the caller has neither a span nor baggage.
    """

    context: Context = field(default_factory=Context)
    span: SpanRef | None = None
    is_remote: bool = True
    baggage: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_caller(cls, environ: Mapping[str, str] = os.environ) -> "Inherited":
        """The context of the code that calls this."""
        caller = otel_context.get_current()
        current = trace.get_current_span(caller).get_span_context()
        found = {} if current.is_valid or baggage.get_all(caller) else _baggage_in(environ)
        context = trace.set_span_in_context(trace.INVALID_SPAN, with_baggage(found, with_task(None, caller)))
        if not current.is_valid:
            return cls(context, baggage=found)
        state, flags = current.trace_state.to_header(), int(current.trace_flags)
        span = SpanRef(f"{current.trace_id:032x}", f"{current.span_id:016x}", flags, state)
        return cls(context, span, current.is_remote, found)


def with_baggage(entries: Mapping[str, object], context: Context) -> Context:
    """The context with these entries of baggage in addition to its own."""
    for name, value in entries.items():
        context = baggage.set_baggage(name, value, context)
    return context


def _baggage_in(environ: Mapping[str, str]) -> Mapping[str, object]:
    """The entries of BAGGAGE, as the process's propagator reads them; it leaves out malformed ones."""
    if not environ.get("BAGGAGE"):
        return {}
    try:
        from opentelemetry import propagate  # raises if OTEL_PROPAGATORS names one that is not installed

        return baggage.get_all(propagate.extract({"baggage": environ["BAGGAGE"]}, Context()))
    except Exception as error:  # noqa: BLE001 - code of another package
        report(Problem("BAGGAGE", environ["BAGGAGE"], f"BAGGAGE of the environment is ignored: {error}"))
        return {}
