"""`cs.subflow`: another file's workflow as a task of this one."""

import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from cascade.context import scoped
from cascade.runtime.engine import run_nested
from cascade.runtime.threads import in_thread
from cascade.spec.lazy_types import LazyResult, MappedLazyResult
from cascade.spec.task import task


@task(name="subflow")
async def subflow(path: str, target: str, params: dict[str, Any] | None = None) -> Any:
    """Load a Python file and run the workflow that it calls `target`, nested in this run and in its trace.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has no lazy result of that name.
    """
    with scoped():
        module = await in_thread(_load, path)
        try:
            return await run_nested(_target_of(module, target, path), params)
        finally:
            sys.modules.pop(module.__name__, None)


class _FreshLoader(SourceFileLoader):
    """Leaves no bytecode beside the file, nor takes any, which may be older than the file within one second."""

    def path_stats(self, path: Any) -> Any:  # noqa: ARG002 - the importer's
        raise OSError


def _load(path: str) -> ModuleType:
    """The file as a module of its own, under a name that no other file has."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"No workflow file at '{path}'")
    name = f"cascade_subflow_{uuid4().hex}"
    loader = _FreshLoader(name, str(file))
    module = module_from_spec(ModuleSpec(name, loader, origin=str(file), is_package=False))
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses and pickling look their module up by its name
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _target_of(module: ModuleType, target: str, path: str) -> Any:
    found = getattr(module, target, None)
    if isinstance(found, (LazyResult, MappedLazyResult)):
        return found
    raise ValueError(f"Target '{target}' not found in '{path}'; it has: {', '.join(_targets(module)) or 'none'}")


def _targets(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, (LazyResult, MappedLazyResult))]
