"""Settings of metrics from the `OTEL_METRIC*` variables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

from cascade.connectors.otel import environment
from cascade.connectors.otel.environment import SettingWarning, warn_once

Exporter = Literal["otlp", "console"]
Temporality = Literal["cumulative", "delta", "lowmemory"]
Exemplars = Literal["trace_based", "always_on", "always_off"]

DEFAULT_INTERVAL = 60.0  # seconds; the default of the specification

_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
_EXEMPLARS = "OTEL_METRICS_EXEMPLAR_FILTER"
_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_LONGEST_INTERVAL = 86_400.0 * 365  # seconds; `threading.Condition` cannot wait much longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Exporters, temporality, exemplar filter, and the interval in seconds. Without exporters nothing is measured."""

    exporters: frozenset[Exporter] = frozenset({"otlp"})
    temporality: Temporality = "cumulative"
    exemplars: Exemplars = "trace_based"
    interval: float = DEFAULT_INTERVAL

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
            exporters=cast("frozenset[Exporter]", names),
            temporality=cast("Temporality", _chosen(environ, _TEMPORALITY, get_args(Temporality))),
            exemplars=cast("Exemplars", _chosen(environ, _EXEMPLARS, get_args(Exemplars))),
            interval=_interval(environ),
        )


def _chosen(environ: Mapping[str, str], variable: str, choices: tuple[str, ...]) -> str:
    """Return the value in lower case; the first choice for a missing or invalid value."""
    value = environment.value(environ, variable)
    if not value or value.lower() in choices:
        return value.lower() or choices[0]
    message = f"{variable}={value!r} is unknown; {choices[0]} is used; choose from {', '.join(choices)}"
    warn_once(SettingWarning(variable, value, message))
    return choices[0]


def _interval(environ: Mapping[str, str]) -> float:
    value = environment.value(environ, _INTERVAL)
    if not value:
        return DEFAULT_INTERVAL
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = math.nan
    if milliseconds > 0:
        return min(milliseconds / 1000, _LONGEST_INTERVAL)
    message = f"{_INTERVAL}={value!r} is not an interval; 60000 is used; write milliseconds above zero"
    warn_once(SettingWarning(_INTERVAL, value, message))
    return DEFAULT_INTERVAL
