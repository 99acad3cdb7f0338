"""Inputs of a workflow: `Param`, `Env` and the registry of declared inputs."""

import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TypeVar, overload

from cascade._context_managers import context_manager
from cascade.spec.input import EnvSpec, InputSpec, ParamSpec
from cascade.spec.lazy_types import LazyResult
from cascade.spec.task import Task

T = TypeVar("T")
D = TypeVar("D")


class WorkflowContext:
    """Registry of input specs by name. The first registration of a name wins."""

    def __init__(self) -> None:
        self.input_specs: dict[str, InputSpec] = {}

    def register(self, spec: InputSpec) -> None:
        self.input_specs.setdefault(spec.name, spec)

    def get_all_specs(self) -> list[InputSpec]:
        return list(self.input_specs.values())


_default = WorkflowContext()
_scoped: ContextVar[WorkflowContext | None] = ContextVar("cascade_workflow_context", default=None)


def get_current_context() -> WorkflowContext:
    """Return the context of the innermost `scoped` block, or that of the process."""
    return _scoped.get() or _default


@context_manager
def scoped() -> Iterator[WorkflowContext]:
    """Use a new context inside the `with` block, instead of that of the process."""
    context = WorkflowContext()
    token = _scoped.set(context)
    try:
        yield context
    finally:
        _scoped.reset(token)


class _InputTask(Task[..., Any]):
    """Task of an input. Its spec marks the node of the graph, whose value the engine supplies without an executor."""

    def __init__(self, func: Any, spec: InputSpec) -> None:
        super().__init__(func)
        self.input_spec = spec


@overload
def Param(name: str, default: T | None = None, *, type: type[T], description: str = "") -> LazyResult[T]: ...
@overload
def Param(name: str, default: T | None, type: type[T], description: str = "") -> LazyResult[T]: ...
@overload
def Param(name: str, default: Any = None, type: Any = str, description: str = "") -> LazyResult[Any]: ...
def Param(name: str, default: Any = None, type: Any = str, description: str = "") -> LazyResult[Any]:  # noqa: A002, N802
    """Declare a parameter of the workflow. `cs.run(…, params={name: value})` sets its value.

    A run without the value uses the default. A run without both fails with an error that names the parameter.
    """
    spec = ParamSpec(name, default, description, type)
    get_current_context().register(spec)
    return LazyResult(_InputTask(_get_param_value, spec), (), {"name": name})


@overload
def Env(name: str, default: None = None, description: str = "") -> LazyResult[str]: ...
@overload
def Env(name: str, default: D, description: str = "") -> LazyResult[str | D]: ...
def Env(name: str, default: Any = None, description: str = "") -> LazyResult[Any]:  # noqa: N802 - a public name of the contract
    """Declare an environment variable as an input. The run reads it; if it is not set, the value is the default."""
    spec = EnvSpec(name, default, description)
    get_current_context().register(spec)
    return LazyResult(_InputTask(_get_env_var, spec), (), {"name": name})


def _get_param_value(name: str) -> Any:
    """Return the declared default: outside of a run there are no parameters."""
    return get_current_context().input_specs[name].default


def _get_env_var(name: str) -> str | None:
    return os.environ.get(name)
