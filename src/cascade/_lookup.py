"""Names of `cascade` that are found on first use: connectors of an extra, and what providers offer."""

from typing import Any

from cascade.providers.registry import ProviderRegistry


def lookup(name: str) -> Any:
    """A connector's class, or what a provider of that name offers.

    Raises:
        AttributeError: Neither is called so.
        ImportError: The connector's extra is not installed.
    """
    if name == "OtelConnector":
        from cascade.connectors.otel import OtelConnector

        return OtelConnector
    if name.startswith("_"):
        raise AttributeError(f"module 'cascade' has no attribute '{name}'")
    try:
        return ProviderRegistry.instance().get(name)
    except AttributeError:
        raise AttributeError(f"module 'cascade' has no attribute '{name}'") from None
