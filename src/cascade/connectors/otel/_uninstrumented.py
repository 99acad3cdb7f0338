"""No spans of the export itself."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context
from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, _SUPPRESS_INSTRUMENTATION_KEY


@contextmanager
def uninstrumented() -> Iterator[None]:
    """Keep instrumentation from making spans of the export itself, as the SDK's own processors do."""
    current = context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True)
    token = context.attach(context.set_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY, True, current))
    try:
        yield
    finally:
        context.detach(token)
