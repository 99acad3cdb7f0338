"""JSON of the options of a node. An option of the task itself that has no JSON form is that of the imported task.

A label is left out if it is that of the task. A cache, and conditions of `retry_on` that cannot be imported, such as a lambda,
have the value "task" if they are those of the task. Another cache is not stored, because it is an object of the process;
`false` is no cache in a run that has one.
"""

from dataclasses import fields
from typing import Any

from cascade.graph._json_values import decode, encode, import_name, import_object
from cascade.graph.model import Node
from cascade.spec.caching import NO_CACHE, Cache
from cascade.spec.constraint import ResourceConstraint
from cascade.spec.options import CallOptions
from cascade.spec.retry import RetryPolicy
from cascade.spec.tags import checked_tags

Name = dict[str, str]
"""The import name of an object."""

_OPTIONAL = frozenset({"max_delay", "jitter", "retry_on"})
"""Fields of a retry policy that are left out if they have their defaults."""
_OF_TASK = "task"


def options_to_dict(node: Node, task: Name | None) -> dict[str, Any]:
    """Return the options of a node. None is the value of an option that the node does not have.

    `task` is the import name of the task's function or of the map's factory.

    Raises:
        ValueError: A function cannot be imported. The text names the task.
    """
    own = _options_of(task)
    return {
        "retry_policy": _retry_to_dict(node, own.retry_policy),
        "constraints": _constraints_to_dict(node),
        "cache_policy": _cache_to_json(node, own.cache_policy),
        "label": _label_to_json(node, own.label),
        "tags": [*node.tags] or None,
        "timeout": node.timeout,
        "allow_failure": node.allow_failure or None,
    }


def options_from_dict(data: dict[str, Any], task: Name | None) -> CallOptions:
    """Return the options of a node from the data of `options_to_dict`, without `allow_failure`."""
    own, constraints = _options_of(task), data.get("constraints")
    return CallOptions(
        _retry_from_dict(data.get("retry_policy"), own.retry_policy),
        _cache_from_json(data.get("cache_policy"), own.cache_policy),
        ResourceConstraint({k: decode(v) for k, v in constraints.items()}) if constraints else None,
        data.get("timeout"),
        _label_from_json(data.get("label"), own.label),
        checked_tags(data["tags"]) if "tags" in data else None,
    )


def _options_of(task: Name | None) -> CallOptions:
    """Return the options of the task with an import name."""
    options = None if task is None else getattr(import_object(task), "options", None)
    return options if isinstance(options, CallOptions) else CallOptions()


def _retry_to_dict(node: Node, own: RetryPolicy | None) -> dict[str, Any] | None:
    policy = node.retry_policy
    if policy is None:
        return None
    values = {field.name: (getattr(policy, field.name), field.default) for field in fields(policy)}
    data = {name: value for name, (value, default) in values.items() if name not in _OPTIONAL or value != default}
    if "retry_on" in data:
        try:
            data["retry_on"] = [import_name(item, f"retry_on of task '{node.name}'") for item in data["retry_on"]]
        except ValueError:
            if policy is not own:
                raise
            data["retry_on"] = _OF_TASK
    return data


def _retry_from_dict(data: dict[str, Any] | None, own: RetryPolicy | None) -> RetryPolicy | None:
    if not data:
        return None
    stored = data.get("retry_on")
    if stored == _OF_TASK:
        return RetryPolicy(**{**data, "retry_on": None if own is None else own.retry_on})
    return RetryPolicy(**{**data, "retry_on": None if stored is None else [import_object(name) for name in stored]})


def _cache_to_json(node: Node, own: Cache | None) -> Any:
    if node.cache_policy is NO_CACHE:
        return False
    return _OF_TASK if node.cache_policy is own and own is not None else None


def _cache_from_json(stored: Any, own: Cache | None) -> Cache | None:
    return NO_CACHE if stored is False else own if stored == _OF_TASK else None


def _constraints_to_dict(node: Node) -> dict[str, Any] | None:
    if not node.constraints:
        return None
    return {name: encode(amount, node.name, name) for name, amount in node.constraints.requirements.items()}


def _label_to_json(node: Node, own: Any) -> Any:
    """Return the text of the label, or the import name of its function. None for the function of the task."""
    label = node.label
    if label is None or isinstance(label, str) or label is own:
        return label if isinstance(label, str) else None
    return import_name(label, f"The label of task '{node.name}'")


def _label_from_json(stored: Any, own: Any) -> Any:
    if stored is None:
        return own
    return import_object(stored) if isinstance(stored, dict) else stored
