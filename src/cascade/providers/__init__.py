"""Providers: what `cs.<name>` offers beyond Cascade's own names. `registry.get(name)` and `registry.register(name, …)`."""

from functools import partial
from typing import TYPE_CHECKING

from cascade._imports import load
from cascade.providers import registry
from cascade.providers.registry import ProviderNamespace, ProviderRegistry

if TYPE_CHECKING:
    from cascade.providers import shell, subflow

__all__ = ["ProviderNamespace", "ProviderRegistry", "registry", "shell", "subflow"]

if not TYPE_CHECKING:
    __getattr__ = partial(load, __name__)
