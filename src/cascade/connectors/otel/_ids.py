"""Spans with preset ids, in preset traces, with any provider of the SDK.

The API has no argument for a span's id (opentelemetry-python issue 4963). A tracer's id generator and its sampler can be
replaced.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes


class PresetIds(IdGenerator):
    """Returns the ids of the running `preset` block, else those of the tracer's own generator."""

    def __init__(self, original: IdGenerator) -> None:
        self._original = original
        self._next = threading.local()

    @contextmanager
    def preset(self, trace_id: str, span_id: str) -> Iterator[None]:
        """Spans started in the block, in this thread, get these ids; below a parent the trace id is the parent's."""
        self._next.ids = int(trace_id, 16), int(span_id, 16)
        try:
            yield
        finally:
            self._next.ids = None

    def generate_trace_id(self) -> int:
        ids = self._preset
        return ids[0] if ids else self._original.generate_trace_id()

    def generate_span_id(self) -> int:
        ids = self._preset
        return ids[1] if ids else self._original.generate_span_id()

    def is_trace_id_random(self) -> bool:
        """False for a preset trace id: a caller may have chosen the run id (W3C Trace Context 2, random flag)."""
        return not self._preset and self._original.is_trace_id_random()

    @property
    def _preset(self) -> Any:
        return getattr(self._next, "ids", None)


_runs_of_parts: dict[int, int] = {}
"""The trace id of the run, by that of a part of the run."""


def add_part(trace_id: int, run_trace_id: int) -> None:
    """Sample the spans of a part by the trace id of its run, until `remove_part`."""
    _runs_of_parts[trace_id] = run_trace_id


def remove_part(trace_id: int) -> None:
    _runs_of_parts.pop(trace_id, None)


class PresetSampler(Sampler):
    """Lets the tracer's own sampler decide for a span as it does for the run.

    A sampler that follows parents finds none above the root of a part, and above the run's span in a replay. It gets a
    parent with the flags and the tracestate of the run there. A ratio sampler without regard to parents gets one trace id
    for all traces of a run.
    """

    def __init__(self, original: Sampler) -> None:
        self._original = original
        self._state = threading.local()

    @contextmanager
    def preset(self, parent: Context | None, trace_id: int | None) -> Iterator[None]:
        """Sample spans that are started in the block, in this thread, below that parent and by that trace id; None: their own."""
        self._state.parent, self._state.trace_id = parent, trace_id
        try:
            yield
        finally:
            self._state.parent = self._state.trace_id = None

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = getattr(self._state, "parent", None) or parent_context
        decisive = getattr(self._state, "trace_id", None) or _runs_of_parts.get(trace_id, trace_id)
        return self._original.should_sample(parent, decisive, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return self._original.get_description()
