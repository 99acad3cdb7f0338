"""Creates the connectors that the environment selects: `CASCADE_CONNECTOR=otel,memory`."""

from collections.abc import Callable, Mapping
from typing import Any

from cascade.spec.protocols import Connector

VARIABLE = "CASCADE_CONNECTOR"


def connectors_from(environ: Mapping[str, str]) -> list[Connector]:
    """Return new connectors for the names in `CASCADE_CONNECTOR`, in that order. Raises the errors of `connectors_named`."""
    return connectors_named(environ.get(VARIABLE, ""), VARIABLE)


def connectors_named(text: str, source: str) -> list[Connector]:
    """Return new connectors for names that are separated by commas, in that order.

    Args:
        text: The names, such as "otel,mqtt", in any case.
        source: The setting that contains the text, for the error.

    Raises:
        ValueError: A name is unknown.
        ImportError: The extra of a connector is not installed.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FACTORIES]
    if unknown:
        raise ValueError(f"{source}={text!r}: no connector '{unknown[0]}'; choose from {', '.join(FACTORIES)}")
    return [FACTORIES[name]() for name in names]


def _memory() -> Any:
    from cascade.connectors.memory import MemoryConnector

    return MemoryConnector()


def _otel() -> Any:
    from cascade.connectors.otel import OtelConnector

    return OtelConnector()


def _mqtt() -> Any:
    from cascade.connectors.mqtt import MqttConnector

    return MqttConnector.from_environment()


def _console() -> Any:
    from cascade.connectors.console import ConsoleConnector

    return ConsoleConnector()


FACTORIES: dict[str, Callable[[], Connector]] = {"otel": _otel, "mqtt": _mqtt, "memory": _memory, "console": _console}
"""The connectors that `CASCADE_CONNECTOR` can name. Each optional library is imported in its own function only."""
