import subprocess
import sys
from types import ModuleType

import pytest

import cascade
import cascade.runtime
import cascade.testing
from tests.extras import needs


def visible(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name != "Any"
        and not (isinstance(value, ModuleType) and name not in module.__all__)
    }


def test_all_is_what_is_visible() -> None:
    for module in (cascade, cascade.runtime):
        for name in module.__all__:
            getattr(module, name)
    assert visible(cascade) - {"lookup", "TYPE_CHECKING"} == set(cascade.__all__)
    assert set(cascade.__all__) <= set(dir(cascade))
    assert set(cascade.runtime.__all__) <= visible(cascade.runtime) & set(dir(cascade.runtime))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = cascade.runtime.nonsense
    assert cascade.__all__ == sorted(cascade.__all__)


@pytest.mark.parametrize("module", [cascade, pytest.param(cascade.testing, marks=needs("otel"))])
def test_every_name_of_all_is_there(module: ModuleType) -> None:
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_submodules_are_attributes() -> None:
    assert cascade.runtime.MessageBus is cascade.MessageBus
    assert cascade.graph.model.EdgeType.DATA


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match=r"^module 'cascade' has no attribute 'nonsense'$"):
        _ = cascade.nonsense  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="nonsense"):
        _ = cascade.testing.nonsense


@needs("otel")
def test_connectors_are_found_on_first_use() -> None:
    assert cascade.OtelConnector.__name__ == "OtelConnector"


def test_importing_cascade_imports_no_optional_library() -> None:
    code = """
import sys, cascade, cascade.testing
heavy = {"opentelemetry", "grpc", "google", "typer", "requests", "urllib3", "aiomqtt", "paho"}
sys.exit(", ".join(sorted(heavy & {name.partition(".")[0] for name in sys.modules})) or 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
