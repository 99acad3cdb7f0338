"""Imports on first use (PEP 562), and the error for the missing library of an extra."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from cascade._forks import no_fork


def load(package: str, name: str, homes: Mapping[str, Iterable[str]] = MappingProxyType({})) -> Any:
    """The name, from the module of the package that `homes` lists it for, or a public submodule of that name.

    Raises:
        AttributeError: The package has neither.
    """
    for module, names in homes.items():
        if name in names:
            with no_fork:
                return getattr(import_module(f"{package}.{module}"), name)
    if not name.startswith("_"):
        try:
            with no_fork:
                return import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":
                raise
    raise AttributeError(f"module '{package}' has no attribute '{name}'")


def missing_extra(extra: str, missing: ImportError) -> ImportError:
    """The error to raise when an optional library is absent; it names the extra and the command that fixes it."""
    return ImportError(
        f"{missing.name or missing} is not installed: run pip install 'cascade-runs[{extra}]'",
        name=missing.name,
    )
