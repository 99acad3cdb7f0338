"""Rules for the files of `src`: size, private modules, import cycles, and modules that only forward names."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted(SRC.rglob("*.py"))
MAX_LINES = 350
FIXED_PATHS = {"cascade/adapters/state.py"}
"""Public paths of a class that the engine needs itself, so that it is defined in a lower layer."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(module: str) -> Iterator[str]:
    """Yield the modules of `cascade` that a module imports, also within functions and for type checkers only."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).strip(".")
            for alias in node.names:
                if (name := f"{base}.{alias.name}") in MODULES:
                    yield name
                elif base in MODULES:
                    yield base


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(SRC)): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_no_modules_import_each_other() -> None:
    """A package's `__init__` re-exports names of its modules; an import of a sibling through it would be a cycle too."""
    graph = {module: {found for found in imports_of(module) if found != module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_private_module_is_imported_in_its_package_only() -> None:
    """`a.b._c` belongs to `a.b`: modules in `a.b` and below may import it."""
    assert [
        f"{module} imports {found}"
        for module in MODULES
        for found in imports_of(module)
        for owner in [found.partition("._")[0]]
        if "._" in found and module != owner and not module.startswith(f"{owner}.")
    ] == []


def test_no_module_only_forwards_names() -> None:
    """Except a package's `__init__`, which is its public face."""

    def forwards(path: Path) -> bool:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.Import, ast.ImportFrom, ast.Expr)
        return all(isinstance(node, kinds) or _is_all(node) for node in tree.body)

    names = {str(path.relative_to(SRC)) for path in FILES if path.name != "__init__.py" and forwards(path)}
    assert names - FIXED_PATHS == set()


def _is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
