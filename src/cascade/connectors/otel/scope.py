"""Resource of the process and instrumentation scope of Cascade in exported telemetry."""

from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from opentelemetry.sdk.resources import Attributes, Resource
from opentelemetry.sdk.trace import ReadableSpan

from cascade.connectors import _lifetime
from cascade.telemetry import attributes as a
from cascade.telemetry.topics import source

SCOPE = "cascade"
"""Name of the instrumentation scope of Cascade."""


def is_ours(span: ReadableSpan) -> bool:
    """Return whether Cascade has created the span, and not the code of the user or its instrumentation."""
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE


@cache
def scope_version() -> str:
    """Return the version of Cascade; "0" in a source tree that is not installed."""
    try:
        return version("cascade-runs")
    except PackageNotFoundError:
        return "0"


class ProcessResource(Resource):
    """A resource whose `service.instance.id` identifies the current process, also in a forked child.

    The child modifies the object in place, because tracers and spans reference it. `merge` keeps the id: after a fork the
    SDK merges a random id into the resource of each provider, even if the user has set an id.

    Args:
        instance_id: An id that the user has set, for all forked children; None for `source()`.
    """

    def __init__(
        self, attributes: Attributes, schema_url: str | None = None, *, instance_id: str | None = None
    ) -> None:
        self._given_id = instance_id
        super().__init__({**attributes, a.SERVICE_INSTANCE_ID: instance_id or source()}, schema_url)
        _lifetime.watch(self)

    def merge(self, other: Resource) -> "ProcessResource":
        merged = super().merge(other)
        return ProcessResource(merged.attributes, merged.schema_url, instance_id=self._given_id)

    def reset_after_fork(self) -> None:
        super().__init__({**self.attributes, a.SERVICE_INSTANCE_ID: self._given_id or source()}, self.schema_url)

    def start_exit(self) -> Callable[[], None]:
        """Do nothing: a resource has no telemetry to flush."""
        return lambda: None
