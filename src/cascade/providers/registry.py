"""Registry of the providers behind `cs.<name>`: built in, registered, or from the entry points of other packages."""

from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any, ClassVar

from cascade._loggers import get_logger

logger = get_logger(__name__)

GROUP = "cascade.providers"
_BUILT_IN = {"shell": "cascade.providers.shell:shell", "subflow": "cascade.providers.subflow:subflow"}


class ProviderNamespace:
    """Prefix of dotted provider names: `cs.io` for the provider `io.read`."""

    def __init__(self, registry: "ProviderRegistry", prefix: str) -> None:
        self._registry = registry
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        return self._registry.get(f"{self._prefix}.{name}")

    def __repr__(self) -> str:
        return f"<ProviderNamespace {self._prefix}>"


class ProviderRegistry:
    """Providers by name. A provider is a task, or another callable that returns a lazy result."""

    _instance: ClassVar["ProviderRegistry | None"] = None

    def __init__(self) -> None:
        self._providers: dict[str, Any] = {}
        self._entry_points_loaded = False

    @classmethod
    def instance(cls) -> "ProviderRegistry":
        """Return the registry of this process."""
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def register(self, name: str, factory: Callable[..., Any]) -> None:
        """Register `factory` as `cs.<name>`. A dotted name creates namespaces.

        Raises:
            ValueError: The name is not made of identifiers with dots between them.
            TypeError: The factory is not callable.
        """
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"Provider name {name!r}: use identifiers, with dots between them")
        if not callable(factory):
            raise TypeError(f"Provider '{name}' cannot be called: {factory!r}")
        self._providers[name] = factory

    def get(self, name: str) -> Any:
        """Return the provider or the namespace with a name.

        Raises:
            AttributeError: The name is unknown.
        """
        found = self._find(name)
        if found is None and not self._entry_points_loaded:
            self._load_entry_points()
            found = self._find(name)
        if found is None:
            raise AttributeError(f"no provider '{name}'")
        return found

    def _find(self, name: str) -> Any:
        if name in self._providers:
            return self._providers[name]
        if name in _BUILT_IN:
            module, _, attribute = _BUILT_IN[name].partition(":")
            self._providers[name] = getattr(import_module(module), attribute)
            return self._providers[name]
        if any(known.startswith(f"{name}.") for known in self._providers):
            return ProviderNamespace(self, name)
        return None

    def _load_entry_points(self) -> None:
        self._entry_points_loaded = True
        for entry in metadata.entry_points(group=GROUP):
            try:
                name, factory = _provider_of(entry)
                if name not in self._providers and name not in _BUILT_IN:
                    self.register(name, factory)
            except Exception as error:  # noqa: BLE001 - an error of another package does not stop the lookup
                logger.warning(
                    "Provider '%s' (%s) failed to load and is skipped: %s: %s",
                    entry.name,
                    entry.value,
                    type(error).__name__,
                    error,
                )


def get(name: str) -> Any:
    """Return the provider or the namespace with a name from the registry of this process. Raises AttributeError."""
    return ProviderRegistry.instance().get(name)


def register(name: str, factory: Callable[..., Any]) -> None:
    """Register `factory` as `cs.<name>` in this process. Raises the errors of `ProviderRegistry.register`."""
    ProviderRegistry.instance().register(name, factory)


def _provider_of(entry: metadata.EntryPoint) -> tuple[str, Any]:
    """Return name and provider. The object of an entry point is the provider, or has `name` and `create_factory()`."""
    loaded = entry.load()
    if not hasattr(loaded, "create_factory"):
        return entry.name, loaded
    provider = loaded() if isinstance(loaded, type) else loaded
    return getattr(provider, "name", entry.name), provider.create_factory()
