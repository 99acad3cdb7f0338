"""Labels: short texts that distinguish the calls of one task on the terminal, in messages and on spans."""

import inspect
from asyncio import CancelledError
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cascade._loggers import get_logger
from cascade.graph.arguments import split
from cascade.graph.model import Edge, Node
from cascade.runtime.hashable_cache import hashable_cache
from cascade.runtime.resolvers import hidden_secrets, positional_names
from cascade.spec.resource import Inject
from cascade.telemetry.limits import MAX_NAME_BYTES
from cascade.telemetry.safe import error_text, masked, masked_name

logger = get_logger(__name__)


class Labels:
    """Makes the labels of one run. A label that cannot be made is left out, with one warning for each task name."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def label_of(self, node: Node, inputs: Mapping[str, Any], edges: Sequence[Edge] = ()) -> str | None:
        """Return the label of a call with the given inputs: masked, and at most `MAX_NAME_BYTES` long.

        A function gets the arguments without injected resources. An argument that has the name of a secret, or comes from
        an input or a task with such a name, is masked before.
        """
        if isinstance(node.label, str):
            return masked_name(node.label) or None
        try:
            given = _text(_call(node.label, node, hidden_secrets(inputs, node.callable_obj, edges)))
            return masked(given, MAX_NAME_BYTES) or None
        except (Exception, CancelledError, SystemExit) as error:  # noqa: BLE001 - a label ends no run
            self._report(node.name, error)
            return None

    def _report(self, name: str, error: BaseException) -> None:
        if name not in self._reported:
            self._reported.add(name)
            logger.warning("The label of task %r could not be made, and is left out: %s", name, error_text(error))


def _text(given: Any) -> str:
    if isinstance(given, str):
        return str.__str__(given)
    if inspect.iscoroutine(given):
        given.close()  # it is never awaited
    raise TypeError(f"it returned a {type(given).__name__}; it must return a text")


class _Wanted(NamedTuple):
    """The parameters of a label function. Without `by_name` it gets its arguments by position."""

    names: tuple[str, ...]
    required: frozenset[str]
    by_name: bool


@hashable_cache
def _wanted(function: Any) -> _Wanted | None:
    """The parameters of a label function; None if it takes any arguments, or has no signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD} for p in parameters):
        return None
    return _Wanted(
        tuple(p.name for p in parameters),
        frozenset(p.name for p in parameters if p.default is p.empty),
        all(p.kind is not p.POSITIONAL_ONLY for p in parameters),
    )


def _call(label: Any, node: Node, inputs: Mapping[str, Any]) -> Any:
    """Call the label function with the arguments that have the names of its parameters, else with the first ones."""
    args, kwargs = split({k: v for k, v in inputs.items() if type(v) is not Inject}, node.positional or 0)
    wanted = _wanted(label)
    if wanted is None:
        return label(*args, **kwargs)
    names = positional_names(node.callable_obj)
    named = {names.of(position) or str(position): value for position, value in enumerate(args)} | kwargs
    if missing := wanted.required - named.keys():
        named |= _defaults(node.callable_obj, missing)
    if wanted.by_name and wanted.required <= named.keys():
        return label(**{name: named[name] for name in wanted.names if name in named})
    return label(*[*args, *kwargs.values()][: len(wanted.names)])


def _defaults(function: Any, names: frozenset[str]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    defaults = {name: parameters[name].default for name in names if name in parameters}
    return {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
