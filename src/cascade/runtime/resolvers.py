"""Resolves inputs, arguments of calls, and amounts of constraints from the state of a run."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cascade.graph.model import ArgKind, Edge, EdgeType, Graph, Node, join_arguments, split_arguments
from cascade.runtime._plan import PlannedNode
from cascade.runtime.exceptions import DependencyMissingError, MissingEnvError, MissingParamError
from cascade.runtime.flow import chosen_route, lazy_id
from cascade.spec.failure import Failure
from cascade.spec.input import EnvSpec
from cascade.spec.nested import LAZY, require_values, substitute
from cascade.spec.parameters import injected_names, positional_names, positional_only_defaults
from cascade.spec.protocols import StateBackend
from cascade.spec.resource import Inject
from cascade.spec.routing import Router
from cascade.telemetry.redact import MASK, is_masked, is_secret
from cascade.telemetry.sanitize import sanitize

_DATA, _IMPLICIT, _ROUTE = EdgeType.DATA, EdgeType.IMPLICIT, EdgeType.ROUTER_ROUTE


class Arguments:
    """Arguments of one call.

    `inputs` has them by key (`cascade.graph.model`), without the injected resources. By default, it is made from `args`.
    """

    __slots__ = ("_inputs", "args", "kwargs")

    def __init__(self, args: list[Any], kwargs: dict[str, Any], inputs: dict[str, Any] | None = None) -> None:
        self.args = args
        self.kwargs = kwargs
        self._inputs = inputs

    @property
    def inputs(self) -> dict[str, Any]:
        if self._inputs is None:
            self._inputs = join_arguments(self.args, {})
        return self._inputs


class Values(Protocol):
    """State of a run that arguments are resolved from."""

    @property
    def state(self) -> StateBackend:
        """Results of tasks and inputs."""
        ...

    @property
    def resources(self) -> Mapping[str, Any]:
        """Resources that are set up, by name."""
        ...


class ArgumentResolver:
    """Resolves the arguments of the nodes of one run.

    Args:
        nodes: The nodes of the run by id.
        values: The state of the run.
    """

    def __init__(self, nodes: Mapping[str, PlannedNode], values: Values) -> None:
        self._nodes = nodes
        self._values = values

    def resolve(self, planned: PlannedNode) -> Arguments:
        """Return the arguments of a node whose upstream nodes have ended.

        Raises:
            DependencyMissingError: An upstream node has no value.
            ValueError: A router has no route for the value of its selector.
        """
        node = planned.node
        if planned.is_direct and not (self._values.resources and injected_names(node.callable_obj)):
            state, args = self._values.state, []
            for source, edge in zip(planned.sources, planned.edges, strict=True):
                args.append(value := state.get_result(source.id))
                if value is None and not state.has_result(source.id):
                    raise DependencyMissingError(node.name, edge.arg_name, source.id)
            return Arguments(args, {})
        inputs = dict(node.literal_inputs)
        nested: set[str] = set()
        name: str | None = None
        kind: ArgKind | None = None
        for edge in planned.edges:
            if edge.edge_type is _DATA:
                value = self._result(edge.source.id, node, edge.arg_name)
                inputs[edge.key] = (
                    value if edge.router is None else self._routed(edge.router, value, node, edge.arg_name)
                )
            elif edge.edge_type is _IMPLICIT and (edge.arg_name is not name or edge.arg_kind is not kind):
                nested.add(edge.key)  # once for the 10,000 sources in one argument
                name, kind = edge.arg_name, edge.arg_kind
        if node.order is not None:
            inputs = {key: inputs[key] for key in node.order}
        for key in nested:
            inputs[key] = self._substitute(inputs[key], node, key)
        return self.with_resources(node, inputs)

    def with_resources(self, node: Node, inputs: dict[str, Any]) -> Arguments:
        """Return the arguments of a call with the given inputs. Replaces each `Inject` by its resource."""
        args, kwargs = split_arguments(inputs, node.positional)
        for position, value in enumerate(args):
            if type(value) is Inject:
                args[position] = self._values.resources[value.resource_name]
        for name, value in kwargs.items():
            if type(value) is Inject:
                kwargs[name] = self._values.resources[value.resource_name]
        add_resources(node.callable_obj, args, kwargs, self._values.resources)
        return Arguments(args, kwargs, inputs)

    def chosen_id(self, edge: Edge) -> str | None:
        """Return the id of the branch that the value of a selector chooses; None if it has no value or no route for it."""
        state, source_id = self._values.state, edge.source.id
        if edge.router is None or not state.has_result(source_id):
            return None
        route = chosen_route(edge.router, state.get_result(source_id))
        return None if route is None else lazy_id(route)

    def dependencies(self, planned: PlannedNode) -> tuple[str, ...]:
        """Return the ids of the tasks whose values a node uses, each once. Its upstream nodes have ended."""
        if planned.is_direct:
            return tuple(dict.fromkeys(s.id for s in planned.sources if s.node.param_spec is None))
        found: dict[PlannedNode, None] = {}
        for source, edge in zip(planned.sources, planned.edges, strict=True):
            if edge.edge_type is not _ROUTE:
                found[source] = None
            if edge.router is not None and (chosen := self.chosen_id(edge)) is not None:
                found[self._nodes[chosen]] = None
        return tuple([source.id for source in found if source.node.param_spec is None])

    def amounts(self, node: Node) -> dict[str, Any]:
        """Return the amounts of the constraints of a node whose upstream nodes have ended."""
        requirements = node.constraints.requirements if node.constraints else {}
        return {
            name: self._result(lazy_id(value), node, name) if isinstance(value, LAZY) else value
            for name, value in requirements.items()
        }

    def _routed(self, router: Router, value: Any, node: Node, arg_name: str) -> Any:
        route = chosen_route(router, value)
        if route is None and type(value) is Failure:
            raise ValueError(
                f"Task '{node.name}': no matching route found, because the selector '{value.task_name}' of the router "
                f"failed with {type(value.error).__name__}. Return a key of the routes for the failure: pass the value of "
                f"'{value.task_name}' to another task, which is the selector"
            ) from value.error
        if route is None:
            routes = ", ".join(map(repr, router.routes))
            raise ValueError(
                f"Task '{node.name}': no matching route found for {sanitize(value)!r}; the routes are {routes}"
            )
        return self._result(lazy_id(route), node, arg_name)

    def _substitute(self, value: Any, node: Node, arg_name: str) -> Any:
        state = self._values.state

        def value_of(source: Any) -> Any:
            if not isinstance(source, Router):
                source_id = source._uuid  # noqa: SLF001 - a call of `lazy_id` for each of 10,000 sources takes longer
                value = state.get_result(source_id)
                if value is not None or state.has_result(source_id):
                    return value
                return self._result(source_id, node, arg_name)
            selected = self._result(lazy_id(source.selector), node, arg_name)
            return self._routed(source, selected, node, arg_name)

        return substitute(value, value_of)

    def _result(self, source_id: str, node: Node, arg_name: str) -> Any:
        state = self._values.state
        value = state.get_result(source_id)
        if value is None and not state.has_result(source_id):
            raise DependencyMissingError(node.name, arg_name, source_id)
        return value


def input_value(node: Node, params: Mapping[str, Any]) -> Any:
    """Return the value of a Param or an Env node, or its default.

    Raises:
        MissingParamError: A parameter has neither.
        MissingEnvError: An environment variable is not set and has no default.
        TypeError: The value is, or contains, a lazy result.
    """
    spec = node.param_spec
    if spec is None:
        raise TypeError(f"Node '{node.name}' is not an input")
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


def node_fields(graph: Graph) -> dict[str, Any]:
    """Return the fields of RunStarted about a graph: its targets, the number of tasks by name, and the inputs, each once."""
    counts = Counter(node.name for node in graph.nodes if node.param_spec is None)
    inputs = dict.fromkeys(node.param_spec.name for node in graph.nodes if node.param_spec is not None)
    return {"target_tasks": graph.target_names(), "task_counts": dict(counts), "inputs": list(inputs)}


def add_resources(function: Any, args: list[Any], kwargs: dict[str, Any], resources: Mapping[str, Any]) -> None:
    """Add the resources of parameters whose default is an `Inject` to the arguments of a call."""
    injected = injected_names(function)
    if not injected:
        return
    if any(wanted.positional_only for wanted in injected.values()):
        args.extend(positional_only_defaults(function, len(args), resources))
    for parameter, wanted in injected.items():
        is_given = wanted.positional_only or (wanted.position is not None and wanted.position < len(args))
        if not is_given and parameter not in kwargs:
            kwargs[parameter] = resources[wanted.resource_name]


def without_secrets(arguments: Mapping[str, Any], function: Any) -> dict[str, Any]:
    """Return the arguments by key. An argument whose parameter has the name of a secret is masked."""
    names = positional_names(function)
    return {
        key: MASK if is_masked(names.of(int(key)) if key.isdigit() else key, value) else value
        for key, value in arguments.items()
    }


_FROM_SOURCE = frozenset({_DATA, _IMPLICIT, _ROUTE})
"""Types of the edges whose value may be an argument, or a part of one."""


def hidden_secrets(arguments: Mapping[str, Any], function: Any, edges: Sequence[Edge]) -> dict[str, Any]:
    """Return the arguments by key. An argument is masked if its parameter or its source node has the name of a secret."""
    sources = {edge.key for edge in edges if edge.edge_type in _FROM_SOURCE and is_secret(_source_name(edge))}
    if not sources <= arguments.keys():  # the keys of an item's arguments differ from those of the map's lists
        return dict.fromkeys(arguments, MASK)
    return without_secrets(arguments, function) | dict.fromkeys(sources, MASK)


def _source_name(edge: Edge) -> str:
    return edge.source.name if edge.source.param_spec is None else edge.source.param_spec.name
