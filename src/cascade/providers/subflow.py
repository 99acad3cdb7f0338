"""`cs.subflow`: runs the workflow of another file as a task."""

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
from cascade.spec.lazy_types import Target
from cascade.spec.task import task


@task(name="subflow", cache=False)
async def subflow(path: str, target: str, params: dict[str, Any] | None = None) -> Any:
    """Load a Python file and run its lazy result named `target`. Run and trace are nested in those of the task.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has no lazy result with this name.
    """
    with scoped():
        module = await in_thread(_load, path)
        try:
            return await run_nested(_target_of(module, target, path), params)
        finally:
            sys.modules.pop(module.__name__, None)


class _FreshLoader(SourceFileLoader):
    """Loader without bytecode. The time stamp of bytecode has a resolution of one second, so it may be outdated."""

    def path_stats(self, path: Any) -> Any:  # noqa: ARG002 - signature of the base class
        raise OSError


def _load(path: str) -> ModuleType:
    """Import the file as a module with a unique name."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"No workflow file at '{path}'")
    name = f"cascade_subflow_{uuid4().hex}"
    loader = _FreshLoader(name, str(file))
    module = module_from_spec(ModuleSpec(name, loader, origin=str(file), is_package=False))
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses and pickle look up the module by name
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _target_of(module: ModuleType, target: str, path: str) -> Any:
    found = getattr(module, target, None)
    if isinstance(found, Target) or _has_targets(found):
        return found
    raise ValueError(f"Target '{target}' not found in '{path}'; it has: {', '.join(_targets(module)) or 'none'}")


def _targets(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, Target)]


def _has_targets(value: object) -> bool:
    """Whether the value is a list, a tuple or a dict of several targets."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(isinstance(item, Target) for item in items)
