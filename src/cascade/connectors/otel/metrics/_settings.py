"""What the `OTEL_METRIC*` variables say."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

Exporter = Literal["otlp", "console", "none"]
Temporality = Literal["cumulative", "delta", "lowmemory"]
Exemplars = Literal["trace_based", "always_on", "always_off"]

DEFAULT_INTERVAL = 60.0  # seconds; the specification's default

_EXPORTER = "OTEL_METRICS_EXPORTER"
_EXPORTERS = (*get_args(Exporter), "prometheus")
"""The specification's. An application that is scraped by Prometheus sets that for itself; it is none of ours."""
_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
_EXEMPLARS = "OTEL_METRICS_EXEMPLAR_FILTER"
_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where metrics go and in which form. `interval` is in seconds; without exporters nothing is measured."""

    exporters: frozenset[Exporter] = frozenset({"otlp"})
    temporality: Temporality = "cumulative"
    exemplars: Exemplars = "trace_based"
    interval: float = DEFAULT_INTERVAL

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Settings from variables; an empty variable is an unset one.

        Raises:
            ValueError: A value is none that there is; the message names it and the choices.
        """
        if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return cls(exporters=frozenset())
        named = environ.get(_EXPORTER, "").split(",")
        exporters = {_choice(_EXPORTER, name, _EXPORTERS) for name in named if name.strip()} or {"otlp"}
        return cls(
            exporters=cast("frozenset[Exporter]", frozenset(exporters.intersection(get_args(Exporter)) - {"none"})),
            temporality=cast("Temporality", _chosen(environ, _TEMPORALITY, get_args(Temporality))),
            exemplars=cast("Exemplars", _chosen(environ, _EXEMPLARS, get_args(Exemplars))),
            interval=_interval(environ),
        )


def _chosen(environ: Mapping[str, str], variable: str, choices: tuple[str, ...]) -> str:
    return _choice(variable, environ.get(variable, "").strip() or choices[0], choices)


def _choice(variable: str, value: str, choices: tuple[str, ...]) -> str:
    chosen = value.strip().lower()
    if chosen not in choices:
        raise ValueError(f"{variable}: {value!r} is unknown; choose from {', '.join(choices)}")
    return chosen


def _interval(environ: Mapping[str, str]) -> float:
    """The variable's milliseconds as seconds."""
    value = environ.get(_INTERVAL, "").strip()
    if not value:
        return DEFAULT_INTERVAL
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise ValueError(f"{_INTERVAL}={value!r} is no interval: write milliseconds above zero, such as 60000")
    return milliseconds / 1000
