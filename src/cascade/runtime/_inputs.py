"""The values of Params and Envs. They are inputs, not tasks: no executor, no message, no span."""

import os
from collections.abc import Mapping
from typing import Any

from cascade.graph.model import Graph, Node
from cascade.runtime.exceptions import MissingEnvError, MissingParamError
from cascade.spec.input import EnvSpec
from cascade.spec.nested import require_values


def input_value(node: Node, params: Mapping[str, Any]) -> Any:
    """The value that the run was given for an input node, else its default.

    Raises:
        MissingParamError: A parameter has neither.
        MissingEnvError: An environment variable is not set and has no default.
        TypeError: The value is, or contains, a lazy result.
    """
    spec = node.param_spec
    if spec is None:
        raise TypeError(f"Node '{node.name}' is no input")
    if isinstance(spec, EnvSpec):
        if (value := os.environ.get(spec.name, spec.default)) is None:
            raise MissingEnvError(spec.name)
        require_values(value, f"Environment variable '{spec.name}' is")
        return value
    if spec.name not in params and not spec.has_default:
        raise MissingParamError(spec.name)
    value = params.get(spec.name, spec.default)
    require_values(value, f"Parameter '{spec.name}' is")
    return value


def input_names(graph: Graph) -> list[str]:
    """The inputs a graph declares, each once, in the order of its nodes."""
    return list(dict.fromkeys(node.param_spec.name for node in graph.nodes if node.param_spec is not None))
