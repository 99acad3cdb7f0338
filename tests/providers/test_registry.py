from importlib.metadata import EntryPoint
from typing import Any

import pytest

import cascade as cs
from cascade.providers import registry as module
from cascade.providers.registry import ProviderNamespace, ProviderRegistry

dynamic: Any = cs  # a checker cannot see what is registered at run time


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> ProviderRegistry:
    fresh = ProviderRegistry()
    monkeypatch.setattr(ProviderRegistry, "_instance", fresh)
    return fresh


def test_a_registered_provider_is_an_attribute_of_cascade(registry: ProviderRegistry) -> None:
    task = cs.task(lambda: 5, name="five")
    registry.register("five", task)
    assert dynamic.five is task
    assert cs.run(dynamic.five()) == 5


def test_dotted_names_make_namespaces(registry: ProviderRegistry) -> None:
    registry.register("io.files.read", cs.task(lambda: "text", name="read"))
    assert isinstance(dynamic.io, ProviderNamespace)
    assert cs.run(dynamic.io.files.read()) == "text"
    with pytest.raises(AttributeError, match="write"):
        _ = dynamic.io.files.write


def test_shell_and_subflow_are_built_in() -> None:
    assert cs.shell.name == "shell"
    assert cs.subflow.name == "subflow"


@pytest.mark.parametrize("name", ["", "a b", "1a", "a..b", 5])
def test_bad_names_are_refused(registry: ProviderRegistry, name: Any) -> None:
    with pytest.raises(ValueError, match="Provider name"):
        registry.register(name, print)


def test_a_provider_that_is_not_callable_is_refused(registry: ProviderRegistry) -> None:
    with pytest.raises(TypeError, match="'x' cannot be called"):
        registry.register("x", 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Plugin:
    name = "plugged"

    def create_factory(self) -> Any:
        return cs.task(lambda: "in", name="plugged")


def test_a_broken_entry_point_is_logged_once_and_skipped(
    registry: ProviderRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = [
        EntryPoint("broken", "no.such.module:thing", module.GROUP),
        EntryPoint("plugin", f"{__name__}:Plugin", module.GROUP),
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)
    assert cs.run(dynamic.plugged()) == "in"
    for _ in range(2):
        with pytest.raises(AttributeError):
            _ = dynamic.broken
    assert ["'broken'" in message for message in caplog.messages] == [True]
