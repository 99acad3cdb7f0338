"""Labels: short texts that distinguish the calls of one task on the terminal, in messages and on spans; and tags."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, NamedTuple

from cascade._loggers import get_logger
from cascade.graph.model import Edge, Node, split_arguments
from cascade.runtime.resolvers import hidden_secrets, without_secrets
from cascade.spec.parameters import defaults_of, hashable_cache, positional_names
from cascade.spec.resource import Inject
from cascade.telemetry.limits import MAX_NAME_BYTES
from cascade.telemetry.sanitize import error_text, masked, masked_name, masked_tags

logger = get_logger(__name__)


def fixed_label(node: Node) -> str | None:
    """Return the text label of a node, masked and cut. None without a label, and for a label function."""
    return masked_name(node.label) or None if isinstance(node.label, str) else None


class Labels:
    """Calls the label functions of one run.

    If a function fails, the call has no label; one warning per task name is logged.
    """

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def event_fields_of(
        self, node: Node, inputs: Callable[[], Mapping[str, Any] | None], edges: Sequence[Edge]
    ) -> dict[str, Any]:
        """Return the fields `label` and `tags` of the events of a node, as far as it has them.

        `inputs` returns the arguments for a label function, or None if they have an error.
        """
        fields: dict[str, Any] = {}
        label = fixed_label(node)
        if callable(node.label) and (arguments := inputs()) is not None:
            label = self.label_of(node, arguments, edges)
        if label is not None:
            fields["label"] = label
        if node.tags:
            fields["tags"] = tuple(masked_tags(node.tags))
        return fields

    def label_of(self, node: Node, inputs: Mapping[str, Any], edges: Sequence[Edge] = ()) -> str | None:
        """Return the result of a node's label function, masked and cut to `MAX_NAME_BYTES`.

        The function gets `***` for an argument that has the name of a secret, or comes from an input or a task with
        such a name. It gets no resources.
        """
        try:
            label = _call(node.label, node, hidden_secrets(inputs, node.callable_obj, edges))
            if inspect.iscoroutine(label):
                label.close()  # it is never awaited
            if not isinstance(label, str):
                raise TypeError(f"it returned a {type(label).__name__}; it must return a text")  # noqa: TRY301
            return masked(str.__str__(label), MAX_NAME_BYTES) or None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - not even SystemExit from a label ends the run
            if node.name not in self._reported:
                self._reported.add(node.name)
                shown, reason = masked_name(node.name), error_text(error)
                logger.warning("The label of task %r could not be made, and is left out: %s", shown, reason)
            return None


class _Parameters(NamedTuple):
    """Parameters of a label function.

    `max_positional` is the number of positional arguments; None is unlimited. `by_name` is false if a parameter is
    positional-only. `has_args` and `has_kwargs` are true for a function with `*args` and `**kwargs`.
    """

    names: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    max_positional: int | None = None
    by_name: bool = False
    has_args: bool = False
    has_kwargs: bool = False

    def select(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in arguments.items() if self.has_kwargs or name in self.names}


@hashable_cache
def _parameters_of(function: Any) -> _Parameters:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # such as `str`
        return _Parameters()
    kinds = {p.kind for p in parameters}
    own = [p for p in parameters if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    if not own and inspect.isbuiltin(function):  # `str.format` from Python 3.13 on
        return _Parameters()
    return _Parameters(
        names=frozenset(p.name for p in own),
        required=frozenset(p.name for p in own if p.default is p.empty),
        max_positional=len(own),
        by_name=inspect.Parameter.POSITIONAL_ONLY not in kinds,
        has_args=inspect.Parameter.VAR_POSITIONAL in kinds,
        has_kwargs=inspect.Parameter.VAR_KEYWORD in kinds,
    )


def _call(function: Any, node: Node, inputs: Mapping[str, Any]) -> Any:
    """Call a label function by name, or by position if its parameters have no names of arguments.

    A function with `*args` gets the arguments by position and by name, as in the call of the task.
    """
    args, kwargs = split_arguments(inputs, node.positional)
    named = _by_name(node.callable_obj, args, kwargs)
    args, kwargs = [value for value in args if type(value) is not Inject], _without_resources(kwargs)
    parameters = _parameters_of(function)
    if parameters.has_args:
        return function(*args, **parameters.select(kwargs))
    if missing := parameters.required - named.keys():
        named |= _left_out(node.callable_obj, missing)
    if parameters.by_name and not (parameters.required and parameters.required.isdisjoint(named)):
        return function(**parameters.select(named))
    return function(*[*args, *kwargs.values()][: parameters.max_positional])


def _by_name(function: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a task's call by parameter name, without resources. `*args` is a tuple."""
    names = positional_names(function)
    named = _without_resources(dict(zip(names.names, args, strict=False)) | kwargs)
    if names.rest:
        named[names.rest] = tuple(args[len(names.names) :])
    return named


def _without_resources(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if type(value) is not Inject}


def _left_out(function: Any, names: frozenset[str]) -> dict[str, Any]:
    """Return the values of parameters that the call leaves out: defaults, and the instance of a method."""
    found = without_secrets(defaults_of(function, names), function)
    if isinstance(function, MethodType):
        found |= dict.fromkeys(names.intersection(positional_names(function.__func__).names[:1]), function.__self__)
    return found
