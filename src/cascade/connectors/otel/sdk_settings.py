"""Settings from the variables of the SDK: resource, sampler and span limits of the provider of Cascade, and metrics."""

import math
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args
from urllib.parse import unquote

from opentelemetry.sdk import resources
from opentelemetry.sdk.resources import Attributes, Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.sdk.version import __version__ as sdk_version

from cascade.connectors import _lifetime
from cascade.connectors.otel import environment
from cascade.connectors.otel.environment import SettingWarning, warn_once
from cascade.runtime.threads import is_shutdown_error
from cascade.telemetry import attributes as a
from cascade.telemetry.topics import source

_ATTRIBUTES = "OTEL_RESOURCE_ATTRIBUTES"
_SERVICE_NAME = "OTEL_SERVICE_NAME"
_DETECTORS = "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"
_SAMPLER = "OTEL_TRACES_SAMPLER"
_SAMPLER_ARGUMENT = "OTEL_TRACES_SAMPLER_ARG"

_SAMPLERS = {
    "always_on": ALWAYS_ON,
    "always_off": ALWAYS_OFF,
    "parentbased_always_on": DEFAULT_ON,
    "parentbased_always_off": DEFAULT_OFF,
}
_RATIO_SAMPLERS = {"traceidratio": TraceIdRatioBased, "parentbased_traceidratio": ParentBasedTraceIdRatio}

_DEFAULT_COUNT = 128  # as in the SDK
_NEVER_BLANK = (a.SERVICE_NAME, a.SERVICE_INSTANCE_ID)
"""Attributes by which backends group spans. A blank value is ignored."""


def resource(environ: Mapping[str, str]) -> Resource:
    """Return the attributes of Cascade, of the configured detectors and of the environment; later ones take precedence.

    Without `host.name`, the API v3 of Jaeger would correct the clocks within a host, and move a wait that starts before its
    parent.
    """
    sdk = {
        resources.TELEMETRY_SDK_LANGUAGE: "python",
        resources.TELEMETRY_SDK_NAME: "opentelemetry",
        resources.TELEMETRY_SDK_VERSION: sdk_version,
    }
    defaults = {a.SERVICE_NAME: "cascade", a.SERVICE_INSTANCE_ID: source(), a.HOST_NAME: socket.gethostname() or "host"}
    detected, given = _detected(environ), _given(environ)
    found = Resource({**sdk, **defaults}).merge(detected).merge(Resource(given))
    return ProcessResource(found.attributes, found.schema_url, instance_id=given.get(a.SERVICE_INSTANCE_ID))


def sampler(environ: Mapping[str, str]) -> Sampler:
    """Return the sampler of the environment, which may be from another package. By default all runs are sampled."""
    name = environment.value(environ, _SAMPLER)
    argument = environment.value(environ, _SAMPLER_ARGUMENT)
    if (ratio := _RATIO_SAMPLERS.get(name.lower())) is not None:
        return ratio(_rate(argument))
    if name and name.lower() not in _SAMPLERS:
        return _sampler_of_package(name, argument)
    return _SAMPLERS[name.lower() or "parentbased_always_on"]


def span_limits(environ: Mapping[str, str]) -> SpanLimits:
    """Return the limits of the environment. All arguments are set, because `SpanLimits` raises for invalid variables."""

    def first(*variables: str, default: int = SpanLimits.UNSET) -> int:
        found = (environment.limit(environ, variable) for variable in variables)
        return next((one for one in found if one is not None), default)

    count, length = "OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"
    return SpanLimits(
        max_attributes=first(count, default=_DEFAULT_COUNT),
        max_span_attributes=first("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", count, default=_DEFAULT_COUNT),
        max_event_attributes=first("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", count, default=_DEFAULT_COUNT),
        max_link_attributes=first("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", count, default=_DEFAULT_COUNT),
        max_events=first("OTEL_SPAN_EVENT_COUNT_LIMIT", default=_DEFAULT_COUNT),
        max_links=first("OTEL_SPAN_LINK_COUNT_LIMIT", default=_DEFAULT_COUNT),
        max_attribute_length=first(length),
        max_span_attribute_length=first("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", length),
    )


def _given(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes of the environment, whose keys and values are URL-encoded."""
    listing = environment.value(environ, _ATTRIBUTES)
    given, unusable = {}, []
    for item in filter(None, (part.strip() for part in listing.split(","))):
        key, separator, text = item.partition("=")
        name = unquote(key).strip()
        if separator and name:
            given[name] = unquote(text.strip())
        else:
            unusable.append(item)
    if unusable:
        shown = ", ".join(repr(item[:40]) for item in unusable)
        message = f"{_ATTRIBUTES}: {shown} is ignored; write key=value,key2=value2"
        warn_once(SettingWarning(_ATTRIBUTES, listing, message))
    if name := environment.value(environ, _SERVICE_NAME):
        given[a.SERVICE_NAME] = name
    return {key: text for key, text in given.items() if text.strip() or key not in _NEVER_BLANK}


def _detected(environ: Mapping[str, str]) -> Resource:
    """Return the attributes of the configured detectors, without the defaults of the SDK for the service.

    They are empty while the interpreter shuts down, because `Resource.create` cannot start its thread pool then.
    """
    if not environment.value(environ, _DETECTORS):
        return Resource.get_empty()
    try:
        found = Resource.create()
    except RuntimeError as error:
        if not is_shutdown_error(error):
            raise
        return Resource.get_empty()
    attributes = dict(found.attributes)
    attributes.pop(a.SERVICE_INSTANCE_ID, None)
    name = str(attributes.pop(a.SERVICE_NAME, ""))
    if name.strip() and not name.startswith("unknown_service"):
        attributes[a.SERVICE_NAME] = name
    return Resource(attributes, found.schema_url)


def _rate(argument: str) -> float:
    """Return the ratio of sampled runs; 1.0 if the argument is invalid."""
    try:
        rate = float(argument or 1.0)
    except ValueError:
        rate = -1.0
    if 0.0 <= rate <= 1.0:
        return rate
    message = f"{_SAMPLER_ARGUMENT}={argument!r} is not a ratio; 1.0 is used; write a number from 0.0 to 1.0"
    warn_once(SettingWarning(_SAMPLER_ARGUMENT, argument, message))
    return 1.0


def _sampler_of_package(name: str, argument: str) -> Sampler:
    from importlib.metadata import entry_points

    try:
        made = next(iter(entry_points(group="opentelemetry_traces_sampler", name=name))).load()(argument)
    except StopIteration:
        reason = f"choose from {', '.join([*_SAMPLERS, *_RATIO_SAMPLERS])}"
    except Exception as error:  # noqa: BLE001 - code of the package
        reason = f"it cannot be loaded: {type(error).__name__}: {error}"
    else:
        if isinstance(made, Sampler):
            return made
        reason = f"it returned a {type(made).__name__}, which is not a sampler"
    warn_once(
        SettingWarning(_SAMPLER, name, f"{_SAMPLER}={name!r} is ignored, parentbased_always_on is used; {reason}")
    )
    return DEFAULT_ON


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


MetricExporterName = Literal["otlp", "console"]
Temporality = Literal["cumulative", "delta", "lowmemory"]
Exemplars = Literal["trace_based", "always_on", "always_off"]

DEFAULT_METRIC_INTERVAL = 60.0  # seconds; the default of the specification

_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
_EXEMPLARS = "OTEL_METRICS_EXEMPLAR_FILTER"
_METRIC_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_MAX_METRIC_INTERVAL = 86_400.0 * 365  # seconds; `threading.Condition` cannot wait much longer


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSettings:
    """Settings of metrics. The interval is in seconds. Without exporters nothing is measured."""

    exporters: frozenset[MetricExporterName] = frozenset({"otlp"})
    temporality: Temporality = "cumulative"
    exemplars: Exemplars = "trace_based"
    interval: float = DEFAULT_METRIC_INTERVAL

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables. An invalid value causes one warning, and the default is used.

        Without an exporter the other variables are not read.
        """
        if environment.is_disabled(environ):
            return cls(exporters=frozenset())
        names, _, problem = environment.exporters(environ, "metrics")
        warn_once(*filter(None, (problem,)))
        if not names:
            return cls(exporters=frozenset())
        return cls(
            exporters=cast("frozenset[MetricExporterName]", names),
            temporality=cast("Temporality", _chosen(environ, _TEMPORALITY, get_args(Temporality))),
            exemplars=cast("Exemplars", _chosen(environ, _EXEMPLARS, get_args(Exemplars))),
            interval=_metric_interval(environ),
        )


def _chosen(environ: Mapping[str, str], variable: str, choices: tuple[str, ...]) -> str:
    """Return the value in lower case; the first choice for a missing or invalid value."""
    value = environment.value(environ, variable)
    if not value or value.lower() in choices:
        return value.lower() or choices[0]
    message = f"{variable}={value!r} is unknown; {choices[0]} is used; choose from {', '.join(choices)}"
    warn_once(SettingWarning(variable, value, message))
    return choices[0]


def _metric_interval(environ: Mapping[str, str]) -> float:
    value = environment.value(environ, _METRIC_INTERVAL)
    if not value:
        return DEFAULT_METRIC_INTERVAL
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = math.nan
    if milliseconds > 0:
        return min(milliseconds / 1000, _MAX_METRIC_INTERVAL)
    message = f"{_METRIC_INTERVAL}={value!r} is not an interval; 60000 is used; write milliseconds above zero"
    warn_once(SettingWarning(_METRIC_INTERVAL, value, message))
    return DEFAULT_METRIC_INTERVAL
