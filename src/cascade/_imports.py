"""Imports on first use (PEP 562), and the error for a missing extra."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from cascade._forks import no_fork


def load(package: str, name: str, exports: Mapping[str, Iterable[str]] = MappingProxyType({})) -> Any:
    """Return the name from the module that `exports` lists for it, or the public submodule with this name.

    Raises:
        AttributeError: The package has no such name and no such submodule.
    """
    for module, names in exports.items():
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
    """Return the error for a missing optional library. Its text names the extra and the command that installs it."""
    return ImportError(
        f"{missing.name or missing} is not installed: run pip install 'cascade-runs[{extra}]'",
        name=missing.name,
    )
