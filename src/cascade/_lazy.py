"""Names of a package that are imported when they are first used (PEP 562)."""

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
