"""Providers: functions with the name `cs.<name>` that are built in, registered, or from other packages."""

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
