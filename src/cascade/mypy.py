"""A plugin for mypy: `plugins = ["cascade.mypy"]`. It checks the lists of `.map`, lazy arguments, and the value of a run.

The first two checks derive a type from the type of each parameter. `ParamSpec` cannot express this.
"""

from collections.abc import Callable, Sequence

from mypy.errorcodes import ARG_TYPE
from mypy.maptype import map_instance_to_supertype
from mypy.messages import format_type
from mypy.nodes import ARG_NAMED_OPT, ARG_STAR, ARG_STAR2
from mypy.plugin import CheckerPluginInterface, FunctionContext, MethodContext, MethodSigContext, Plugin
from mypy.subtypes import is_subtype
from mypy.typeops import get_all_type_vars
from mypy.types import (
    AnyType,
    CallableType,
    FunctionLike,
    Instance,
    Overloaded,
    Parameters,
    Type,
    TypeOfAny,
    TypeVarType,
    UnionType,
    flatten_nested_unions,
    get_proper_type,
)

TASK = "cascade.spec.task.Task"
LAZY = "cascade.spec.lazy_types.Lazy"
ENGINE = "cascade.runtime.engine.Engine"
COROUTINES = {"typing.Coroutine", "types.CoroutineType"}
RUNS = {f"cascade._run.signatures.{name}.__call__" for name in ("Run", "RunAsync")} | {f"{ENGINE}.run"}
EXECUTIONS = {f"cascade._run.signatures.{name}.__call__" for name in ("Execute", "ExecuteAsync")}


class CascadePlugin(Plugin):
    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        if fullname == f"{TASK.rpartition('.')[0]}.task":
            return _task_of_function
        return None

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        return _signature_of_map if fullname == f"{TASK}.map" else None

    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        if fullname in RUNS:
            return _value_of_run
        if fullname in EXECUTIONS:
            return _result_of_run
        hooks = {f"{TASK}.__call__": _check_call, f"{TASK}.map": _check_map}
        return hooks.get(fullname)


def _task_of_function(context: FunctionContext) -> Type:
    """Correct the task of two kinds of functions.

    mypy reduces an overloaded function to its first overload: its task accepts all arguments. A function that returns a
    type variable is taken for a coroutine function, because its result might be a coroutine.
    """
    task = get_proper_type(context.default_return_type)
    given = get_proper_type(context.arg_types[0][0]) if context.arg_types[0] else None
    if isinstance(task, Instance) and isinstance(given, Overloaded) and not given.is_type_obj():
        some = AnyType(TypeOfAny.explicit)
        anything = Parameters([some, some], [ARG_STAR, ARG_STAR2], [None, None], is_ellipsis_args=True)
        return task.copy_modified(args=[anything, some])
    if isinstance(task, Instance) and isinstance(given, CallableType) and isinstance(given.ret_type, TypeVarType):
        if given.param_spec() is not None:  # the function of a decorator's caller
            return task
        parameters = Parameters(given.arg_types, given.arg_kinds, given.arg_names, variables=given.variables)
        return task.copy_modified(args=[parameters, given.ret_type])
    return task


def _value_of_run(context: FunctionContext | MethodContext) -> Type:
    """Correct the value of a run whose result has a declared type.

    mypy infers the value from a declared type such as `list[str]`: a lazy result, whose base is Any, fits each type.
    """
    return _corrected(context, lambda _, value: value)


def _result_of_run(context: MethodContext) -> Type:
    """Correct the type of the value in a `RunResult`."""

    def result(returned: Type, value: Type) -> Type:
        found = get_proper_type(returned)
        return found.copy_modified(args=[value]) if isinstance(found, Instance) else value

    return _corrected(context, result)


def _corrected(context: FunctionContext | MethodContext, correct: Callable[[Type, Type], Type]) -> Type:
    """Return the return type of a call, or its result if it is a coroutine, corrected with the type of the run's value."""
    value = _value_of(context.arg_types[0][0]) if context.arg_types[0] else None
    returned = get_proper_type(context.default_return_type)
    if value is None:
        return returned
    if isinstance(returned, Instance) and returned.type.fullname in COROUTINES:
        return returned.copy_modified(args=[*returned.args[:2], correct(returned.args[2], value)])
    return correct(returned, value)


def _signature_of_map(context: MethodSigContext) -> FunctionLike:
    """Return a signature with a keyword of type `Iterable[T] | Unmapped[T]` for each parameter of type T."""
    signature, parameters = context.default_signature, _parameters_of(context.type)
    if parameters is None or not _can_be_mapped(parameters):
        return signature
    given = get_proper_type(signature.arg_types[-1])
    forms = [kind for kind in map(get_proper_type, flatten_nested_unions([given])) if isinstance(kind, Instance)]
    return signature.copy_modified(
        arg_names=parameters.arg_names,
        arg_types=[UnionType([form.copy_modified(args=[kind]) for form in forms]) for kind in _known(parameters)],
        arg_kinds=[ARG_NAMED_OPT] * len(parameters.arg_names),
    )


def _check_call(context: MethodContext) -> Type:
    parameters = _parameters_of(context.type)
    if parameters is not None:
        _check_lazy_arguments(context, parameters.arg_types)
    return context.default_return_type


def _check_map(context: MethodContext) -> Type:
    parameters = _parameters_of(context.type)
    if parameters is not None and _can_be_mapped(parameters):
        _check_lazy_arguments(context, _iterables(parameters, context.api))
    return context.default_return_type


def _check_lazy_arguments(context: MethodContext, parameters: Sequence[Type]) -> None:
    """Report each lazy result whose value has another type than the parameter."""
    for expected, types, expressions in zip(parameters, context.arg_types, context.args, strict=False):
        if get_all_type_vars(expected):
            continue
        for given, expression in zip(types, expressions, strict=True):
            value = _value_of(given)
            if value is not None and not is_subtype(value, expected):
                options = context.api.options
                text = f"a lazy result of {format_type(value, options)}, not of {format_type(expected, options)}"
                context.api.fail(f"The argument is {text}", expression, code=ARG_TYPE)


def _can_be_mapped(parameters: Parameters) -> bool:
    """Whether `.map` has exactly one keyword for each parameter."""
    return None not in parameters.arg_names and not {ARG_STAR, ARG_STAR2} & set(parameters.arg_kinds)


def _iterables(parameters: Parameters, api: CheckerPluginInterface) -> list[Type]:
    return [api.named_generic_type("typing.Iterable", [kind]) for kind in _known(parameters)]


def _known(parameters: Parameters) -> list[Type]:
    """Return the types of the parameters, with Any for each type that has a type variable."""
    some = AnyType(TypeOfAny.explicit)
    return [some if get_all_type_vars(kind) else kind for kind in parameters.arg_types]


def _parameters_of(kind: Type) -> Parameters | None:
    task = _as(kind, TASK)
    found = get_proper_type(task.args[0]) if task is not None and task.args else None
    return found if isinstance(found, Parameters) and not found.is_ellipsis_args else None


def _value_of(kind: Type) -> Type | None:
    lazy = _as(kind, LAZY)
    return lazy.args[0] if lazy is not None and lazy.args else None


def _as(kind: Type, fullname: str) -> Instance | None:
    """Return the type as an instance of the generic base class with this name; None if it has no such base."""
    proper = get_proper_type(kind)
    if not isinstance(proper, Instance):
        return None
    base = next((info for info in proper.type.mro if info.fullname == fullname), None)
    return map_instance_to_supertype(proper, base) if base is not None else None


def plugin(_version: str) -> type[Plugin]:
    return CascadePlugin
