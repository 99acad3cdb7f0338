"""Runs in the terminal: a live view, and the trace as a tree. Needs the extra `[cli]`."""

from cascade._imports import missing_extra

try:
    from cascade.connectors.console.connector import ConsoleConnector
except ImportError as error:
    if (error.name or "").partition(".")[0] == "rich":
        raise missing_extra("cli", error) from error
    raise

__all__ = ["ConsoleConnector"]
