"""The items of a map: the inputs of its calls, from its lists and its unmapped arguments."""

from itertools import takewhile
from typing import Any

from cascade.graph.model import Node, join_arguments, split_arguments
from cascade.spec.failure import Failure
from cascade.spec.signature import require_items
from cascade.spec.unmapped import require_list


class _Constant:
    """An unmapped argument: a list of any length with the same value at each index."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def copy(self) -> "_Constant":
        return self

    def __getitem__(self, index: int) -> Any:
        return self._value

    def __setitem__(self, index: int, value: None) -> None:
        """Keep the value: the other items need it."""


class Items:
    """Inputs of the items of a map, in copies of the lists. A value is freed when its last item ends.

    An unmapped argument is stored once. The first `positional` inputs are positional arguments.
    """

    def __init__(self, lists: "dict[str, list[Any] | _Constant]", size: int, positional: int) -> None:
        self._lists = {name: values.copy() for name, values in lists.items()}
        self._size = size
        self.positional = positional

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self._lists.items()}

    def take(self, index: int) -> dict[str, Any]:
        """Remove and return the inputs of an index."""
        item = self[index]
        for values in self._lists.values():
            values[index] = None
        return item


def zip_items(node: Node, inputs: dict[str, Any]) -> Items:
    """Return the items of a map from its lists and its unmapped arguments. Each list is read once.

    Raises:
        TypeError: An argument is not an ordered collection, or all arguments are unmapped.
        ValueError: The lists have different lengths.
    """
    arguments = split_arguments(inputs, 0)[1]
    require_list(node.unmapped, len(arguments), node.name)
    count = len(arguments) - len(node.unmapped)
    columns: dict[str, list[Any] | _Constant] = {
        name: _Constant(value) if name in node.unmapped else _as_list(node, name, value, count)
        for name, value in arguments.items()
    }
    sizes = {name: len(values) for name, values in columns.items() if isinstance(values, list)}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"{node.name}: mismatched lengths of its lists ({shown}); all must be equally long")
    names = takewhile(columns.__contains__, getattr(node.mapping_factory, "positional_only", ()))
    args = [columns.pop(name) for name in names]
    return Items(join_arguments(args, columns), next(iter(sizes.values()), 0), len(args))


def _as_list(node: Node, name: str, value: Any, count: int) -> list[Any]:
    if type(value) is list:
        return value
    subject = f"{node.name}: '{name}'"
    if type(value) is Failure:
        raise TypeError(
            f"{subject} must be a list, but the task '{value.task_name}' that makes it failed"
        ) from value.error
    require_items(value, subject, is_alone=count == 1)
    try:
        return [item for item in value]  # noqa: C416 - list() also calls the length of the value
    except TypeError as error:
        raise TypeError(f"{subject} must be a list, got {type(value).__name__}: {error}") from error
