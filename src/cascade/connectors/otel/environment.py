"""Values of `OTEL_*` variables. An invalid value raises no error, but is logged once per process.

An empty variable counts as unset. Whitespace and one pair of quotes around a value, which env files of Docker keep, are
removed.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import cache
from typing import Literal, NamedTuple, TypeVar

from cascade._loggers import get_logger
from cascade.telemetry.sanitize import masked

logger = get_logger("cascade.connectors.otel")

_Protocol = Literal["grpc", "http/protobuf"]
T = TypeVar("T")

DISABLED = "OTEL_SDK_DISABLED"
LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
)
"""Variables with the limits of spans, which the SDK reads at its import."""

_EXPORTERS = {
    "otlp": "otlp",
    "otlp_proto_http": "otlp",
    "otlp_proto_grpc": "otlp",
    "console": "console",
    "logging": "console",  # deprecated name of the specification
    "none": "none",
}
_PROTOCOLS: dict[str, _Protocol] = {
    "otlp_proto_http": "http/protobuf",
    "otlp_proto_grpc": "grpc",
}
_FOREIGN_EXPORTERS = frozenset({"zipkin", "zipkin_json", "zipkin_proto", "jaeger", "prometheus", "otlp/stdout"})
_SURROGATES = re.compile("[\ud800-\udfff]")

_MAX_WARNING = 1000  # characters

reported: set[tuple[str, str]] = set()
"""Variables and values that a warning of the process has named."""


class SettingWarning(NamedTuple):
    """Warning about a value of a variable that is ignored or replaced."""

    variable: str
    value: str
    message: str


def warn_once(*problems: SettingWarning) -> None:
    """Log the warnings, each pair of variable and value once per process."""
    for problem in problems:
        key = (problem.variable, problem.value)
        if key not in reported:
            reported.add(key)
            logger.warning("OtelConnector: %s", masked(problem.message, _MAX_WARNING))


def value(environ: Mapping[str, str], variable: str) -> str:
    """Return the value of a variable; "" if it is unset. Bytes that are not UTF-8 are replaced by U+FFFD."""
    return unquoted(_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", environ.get(variable, "")))


def unquoted(text: str) -> str:
    """Return the text without whitespace and one pair of quotes around it."""
    text = text.strip()
    is_quoted = len(text) > 1 and text[0] in "\"'" and text.find(text[0], 1) == len(text) - 1
    return text[1:-1].strip() if is_quoted else text


def is_true(environ: Mapping[str, str], variable: str) -> bool:
    """Return a boolean as the specification defines it: "true" in any case is True, other values are False."""
    given = value(environ, variable).lower()
    if given not in {"", "true", "false"}:
        warn_once(SettingWarning(variable, given, f"{variable}={given!r} counts as false; choose true or false"))
    return given == "true"


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Return whether the SDK is disabled for all signals."""
    return is_true(environ, DISABLED)


def global_provider(get: Callable[[], T], signal: str) -> T | None:
    """Return the global provider of the signal "tracer" or "meter"; None if the provider of a variable cannot be loaded."""
    try:
        return get()
    except Exception:  # noqa: BLE001 - the API logs it
        variable = f"OTEL_PYTHON_{signal.upper()}_PROVIDER"
        given = os.environ.get(variable, "")
        warn_once(
            SettingWarning(
                variable, given, f"{variable}={given!r} cannot be loaded; Cascade uses a provider of its own"
            )
        )
        return None


class Exporters(NamedTuple):
    """Exporters of a signal: "otlp", "console" or both. Some names of exporters also select the protocol."""

    names: frozenset[str]
    protocol: _Protocol | None
    problem: SettingWarning | None


def exporters(environ: Mapping[str, str], signal: str) -> Exporters:
    """Return the exporters of `OTEL_{SIGNAL}_EXPORTER`.

    Unknown names are ignored. If no name is usable, but one is the exporter of another package, Cascade exports nothing,
    because the program sets up that exporter.
    The default is OTLP for spans and metrics, and no export for logs.
    """
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    given = value(environ, variable)
    names = [name.strip().lower() for name in given.split(",") if name.strip()]
    available = _available_exporters(signal)
    usable = [name for name in names if name in available]
    others = [name for name in names if name not in available]
    chosen = {available[name] for name in usable}
    if not chosen:
        chosen = {"none" if signal == "logs" or any(_is_foreign(name, signal) for name in others) else "otlp"}
    protocols: list[_Protocol] = list(dict.fromkeys(_PROTOCOLS[name] for name in usable if name in _PROTOCOLS))
    message = ""
    if others and not (signal == "metrics" and set(others) == {"prometheus"}):
        effect = f"Cascade exports no {signal}" if chosen == {"none"} else f"{', '.join(sorted(chosen))} is used"
        unknown = ", ".join(map(repr, others))
        message = f"Cascade has no exporter {unknown}; {effect}; choose from {', '.join(available)}"
    elif len(protocols) > 1:
        message = f"Cascade exports over one protocol; {protocols[0]} is used"
    problem = SettingWarning(variable, given, f"{variable}={given!r}: {message}") if message else None
    return Exporters(frozenset(chosen - {"none"}), protocols[0] if protocols else None, problem)


def limit(environ: Mapping[str, str], variable: str) -> int | None:
    """Return a limit of the spans, at most `sys.maxsize`; None if the variable is unset or invalid."""
    given = value(environ, variable)
    number = _whole_number(given)
    if given and number is None:
        message = f"{variable}={given!r} is not a limit; the default is used; write a whole number from 0 on"
        warn_once(SettingWarning(variable, given, message))
    return number


@contextmanager
def hide_invalid_limits(environ: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Remove invalid limits from the environment during the import of the SDK, which raises ValueError for them."""
    hidden = {}
    if "opentelemetry.sdk.trace" not in sys.modules:
        unusable = [name for name in LIMITS if name in environ and _whole_number(value(environ, name)) is None]
        hidden = {name: environ.pop(name) for name in unusable}
    try:
        yield
    finally:
        environ.update(hidden)


def _available_exporters(signal: str) -> dict[str, str]:
    return {name: kind for name, kind in _EXPORTERS.items() if signal != "logs" or kind != "console"}


@cache
def _is_foreign(name: str, signal: str) -> bool:
    """Return whether another package provides the exporter."""
    from importlib.metadata import entry_points

    return name in _FOREIGN_EXPORTERS or bool(entry_points(group=f"opentelemetry_{signal}_exporter", name=name))


def _whole_number(text: str) -> int | None:
    try:
        number = int(text)
    except ValueError:
        return None
    return min(number, sys.maxsize) if number >= 0 else None
