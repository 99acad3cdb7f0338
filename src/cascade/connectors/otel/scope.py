"""The identity of this process and of Cascade in exported telemetry: resource and instrumentation scope."""

from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from opentelemetry.sdk.resources import Attributes, Resource
from opentelemetry.sdk.trace import ReadableSpan

from cascade.connectors import _lifetime
from cascade.telemetry import attributes as a
from cascade.telemetry.topics import source

SCOPE = "cascade"
"""The name of our instrumentation scope."""


def is_ours(span: ReadableSpan) -> bool:
    """Whether Cascade has made the span, not the user's code or its instrumentation."""
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE


@cache
def scope_version() -> str:
    """Our version; "0" in a source tree that is not installed."""
    try:
        return version("cascade-runs")
    except PackageNotFoundError:
        return "0"


class ProcessResource(Resource):
    """A resource whose `service.instance.id` is that of the current process, in a forked child too.

    The object is changed in place in the child, because tracers and spans hold it. `merge` keeps the id: after a fork
    the SDK merges a random one over the resource of each provider, over an id that the user has set too.

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
        """Do nothing: a resource holds nothing to deliver."""
        return lambda: None


class EncodedResource:
    """The bytes of a provider's current resource, encoded again when the resource has changed, as in a forked child.

    Args:
        resource: Returns the current resource.
        encode: Encodes a resource.
    """

    def __init__(self, resource: Callable[[], Resource], encode: Callable[[Resource], bytes]) -> None:
        self._resource = resource
        self._encode = encode
        self._encoded: tuple[object, bytes] = (None, b"")

    def __call__(self) -> bytes:
        resource = self._resource()
        attributes, encoded = self._encoded
        if attributes is not resource.attributes:
            encoded = self._encode(resource)
            self._encoded = resource.attributes, encoded
        return encoded
