"""JSON of the options of a node: retries, constraints and label."""

from dataclasses import fields
from typing import Any

from cascade.graph._json_values import decode, encode, import_name, import_object
from cascade.graph.model import Node
from cascade.spec.constraint import ResourceConstraint
from cascade.spec.retry import RetryPolicy

Name = dict[str, str]
"""The import name of an object."""

_OPTIONAL = frozenset({"max_delay", "jitter", "retry_on"})
"""Fields of a retry policy that are left out if they have their defaults."""


def options_to_dict(node: Node, task: Name | None) -> dict[str, Any]:
    """Return the options of a node. None is the value of an option that the node does not have.

    `task` is the import name of the task's function or of the map's factory.

    Raises:
        ValueError: A function cannot be imported. The text names the task.
    """
    return {
        "retry_policy": _retry_to_dict(node),
        "constraints": _constraints_to_dict(node),
        "label": _encode_label(node, task),
        "timeout": node.timeout,
        "allow_failure": node.allow_failure or None,
    }


def options_from_dict(data: dict[str, Any], task: Name | None) -> dict[str, Any]:
    """Return the fields of a node from the data of `options_to_dict`."""
    constraints = data.get("constraints")
    return {
        "retry_policy": _retry_from_dict(data.get("retry_policy")),
        "constraints": ResourceConstraint({k: decode(v) for k, v in constraints.items()}) if constraints else None,
        "label": _decode_label(data, task),
    }


def _retry_to_dict(node: Node) -> dict[str, Any] | None:
    policy = node.retry_policy
    if policy is None:
        return None
    values = {field.name: (getattr(policy, field.name), field.default) for field in fields(policy)}
    data = {name: value for name, (value, default) in values.items() if name not in _OPTIONAL or value != default}
    if "retry_on" in data:
        data["retry_on"] = [import_name(item, f"retry_on of task '{node.name}'") for item in data["retry_on"]]
    return data


def _retry_from_dict(data: dict[str, Any] | None) -> RetryPolicy | None:
    if not data:
        return None
    conditions = [import_object(name) for name in data["retry_on"]] if "retry_on" in data else None
    return RetryPolicy(**{**data, "retry_on": conditions})


def _constraints_to_dict(node: Node) -> dict[str, Any] | None:
    if not node.constraints:
        return None
    return {name: encode(amount, node.name, name) for name, amount in node.constraints.requirements.items()}


def _encode_label(node: Node, task: Name | None) -> Any:
    """Return the text of the label, or the import name of its function.

    The import of a task restores the label of the task.
    """
    label = node.label
    if label is None or isinstance(label, str) or label is _task_label(task):
        return label if isinstance(label, str) else None
    return import_name(label, f"The label of task '{node.name}'")


def _decode_label(data: dict[str, Any], task: Name | None) -> Any:
    if (stored := data.get("label")) is None:
        return _task_label(task)
    return import_object(stored) if isinstance(stored, dict) else stored


def _task_label(name: Name | None) -> Any:
    return None if name is None else getattr(import_object(name), "label", None)
