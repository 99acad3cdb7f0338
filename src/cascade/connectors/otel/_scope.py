"""Who we are, in what we export."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

SCOPE = "cascade"
"""The name of our instrumentation scope."""


@cache
def scope_version() -> str:
    """Our version; "0" in a source tree that is not installed."""
    try:
        return version("cascade-runs")
    except PackageNotFoundError:
        return "0"
