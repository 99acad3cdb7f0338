"""Names of a package that are imported when they are first used (PEP 562)."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any


def load(package: str, name: str, homes: Mapping[str, Iterable[str]]) -> Any:
    """The name, from the module of the package whose names in `homes` it is among.

    Raises:
        AttributeError: It is among none.
    """
    for module, names in homes.items():
        if name in names:
            return getattr(import_module(f"{package}.{module}"), name)
    raise AttributeError(f"module '{package}' has no attribute '{name}'")
