"""Labels: short texts that distinguish the calls of one task on the terminal, in messages and on spans."""

import inspect
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, NamedTuple

from cascade._loggers import get_logger
from cascade.graph.model import Edge, Node, count_positional, split_arguments
from cascade.runtime.resolvers import defaults_of, hashable_cache, hidden_secrets, positional_names, without_secrets
from cascade.spec.resource import Inject
from cascade.telemetry.limits import MAX_NAME_BYTES
from cascade.telemetry.safe import error_text, masked, masked_name

logger = get_logger(__name__)


def fixed_label(node: Node) -> str | None:
    """The label of a node as a message has it, if it is a text; None for a function, which needs the arguments."""
    return masked_name(node.label) or None if isinstance(node.label, str) else None


class Labels:
    """Makes the labels of one run. A label that cannot be made is left out, with one warning for each task name."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def label_of(self, node: Node, inputs: Mapping[str, Any], edges: Sequence[Edge] = ()) -> str | None:
        """Return what the label function of a node makes of the inputs: masked, and at most `MAX_NAME_BYTES` long.

        The function gets the arguments without injected resources. An argument that has the name of a secret, or comes
        from an input or a task with such a name, is masked before.
        """
        try:
            given = _text(_call(node.label, node, hidden_secrets(inputs, node.callable_obj, edges)))
            return masked(given, MAX_NAME_BYTES) or None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a label ends no run, by SystemExit either
            self._report(node.name, error)
            return None

    def _report(self, name: str, error: BaseException) -> None:
        if name not in self._reported:
            self._reported.add(name)
            shown, reason = masked_name(name), error_text(error)
            logger.warning("The label of task %r could not be made, and is left out: %s", shown, reason)


def _text(given: Any) -> str:
    if isinstance(given, str):
        return str.__str__(given)
    if inspect.iscoroutine(given):
        given.close()  # it is never awaited
    raise TypeError(f"it returned a {type(given).__name__}; it must return a text")


class _Wanted(NamedTuple):
    """The parameters of a label function. `all_by_position`: `*args`, `all_by_name`: `**kwargs`."""

    names: tuple[str, ...]
    required: frozenset[str]
    by_name: bool
    all_by_position: bool
    all_by_name: bool


@hashable_cache
def _wanted(function: Any) -> _Wanted | None:
    """The parameters of a label function; None for one that has no signature or no names in it, such as `str`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = {p.kind for p in parameters}
    own = [p for p in parameters if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    if not own and inspect.isbuiltin(function):  # the `format` of a text, from Python 3.13 on
        return None
    return _Wanted(
        tuple(p.name for p in own),
        frozenset(p.name for p in own if p.default is p.empty),
        by_name=inspect.Parameter.POSITIONAL_ONLY not in kinds,
        all_by_position=inspect.Parameter.VAR_POSITIONAL in kinds,
        all_by_name=inspect.Parameter.VAR_KEYWORD in kinds,
    )


def _call(label: Any, node: Node, inputs: Mapping[str, Any]) -> Any:
    """Call the label function with the arguments that have the names of its parameters.

    If no parameter has the name of an argument, it gets the first arguments. With `*args` it gets them as the task does.
    """
    args, kwargs = split_arguments(inputs, count_positional(inputs) if node.positional is None else node.positional)
    names = positional_names(node.callable_obj)
    named = _without_resources(dict(zip(names.names, args, strict=False)) | kwargs)
    if names.rest:
        named[names.rest] = tuple(args[len(names.names) :])
    args, kwargs = [value for value in args if type(value) is not Inject], _without_resources(kwargs)
    wanted = _wanted(label)
    if wanted is None:
        return label(*args, *kwargs.values())
    if wanted.all_by_position:
        return label(*args, **{k: v for k, v in kwargs.items() if wanted.all_by_name or k in wanted.names})
    if missing := wanted.required - named.keys():
        named |= _not_given(node.callable_obj, missing)
    if wanted.by_name and not (wanted.required and wanted.required.isdisjoint(named)):
        return label(**{name: value for name, value in named.items() if wanted.all_by_name or name in wanted.names})
    return label(*[*args, *kwargs.values()][: len(wanted.names)])


def _without_resources(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if type(value) is not Inject}


def _not_given(function: Any, names: frozenset[str]) -> dict[str, Any]:
    """Return the values of parameters that the call leaves out: defaults, and the instance of a method."""
    found = without_secrets(defaults_of(function, names), function)
    if isinstance(function, MethodType):
        found |= dict.fromkeys(names.intersection(positional_names(function.__func__).names[:1]), function.__self__)
    return found
