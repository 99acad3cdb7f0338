"""Converts graphs to JSON and back. A function is stored by its import name."""

import json
from collections.abc import Callable
from typing import Any

from cascade.graph._json_options import options_from_dict, options_to_dict
from cascade.graph._json_values import (
    LAZY_REF,
    decode,
    decode_type,
    encode,
    encode_at,
    encode_type,
    import_name,
    import_object,
    lazy_reference,
)
from cascade.graph.build import build_graph
from cascade.graph.model import ArgKind, Edge, EdgeType, Graph, Node, NodeWithOptions
from cascade.spec.input import EnvSpec, InputSpec, ParamSpec
from cascade.spec.options import CallOptions
from cascade.spec.routing import Router
from cascade.spec.task import Task


def to_json(target: Any, indent: int | None = 2) -> str:
    """Return the graph of a target as JSON text. The target is that of a run, or a graph.

    The cache of a call is not stored, because it is an object of the process. The options of a task that have no JSON form
    are those of the imported task: its cache, and a lambda in `retry_on` or `label`.

    Raises:
        TypeError: A literal argument has no JSON form. The text names the node and the argument.
        ValueError: A function cannot be imported, such as a lambda, a partial or a bound method. The text names the
            task.
    """
    return json.dumps(graph_to_dict(build_graph(target)), indent=indent)


def from_json(text: str) -> Graph:
    """Return the graph of a text from `to_json`. The graph is a target: `cs.run(cs.from_json(text))`.

    The text names modules, which are imported, and functions, which a run calls. Read only a text that you trust as much
    as code.

    Raises:
        ValueError: The text is not the JSON of a graph, a function cannot be imported, or an edge refers to an unknown
            node.
    """
    return graph_from_dict(json.loads(text))


def graph_to_dict(graph: Graph) -> dict[str, Any]:
    """Return a graph as data for JSON. Raises the errors of `to_json`."""
    routers: dict[int, Router] = {}
    for edge in graph.edges:
        if edge.router is not None:
            routers.setdefault(id(edge.router), edge.router)
    index = {key: position for position, key in enumerate(routers)}
    data: dict[str, Any] = {
        "nodes": [_node_to_dict(node) for node in graph.nodes],
        "edges": [_edge_to_dict(edge, index) for edge in graph.edges],
        "routers": [_router_to_dict(router) for router in routers.values()],
    }
    if graph.target is not None and graph.unused() != [graph.target]:
        data["target"] = graph.target.id
    if graph.shape is not None:
        data["targets"] = encode_at("The container of the targets", graph.shape)
    return data


def graph_from_dict(data: dict[str, Any]) -> Graph:
    """Return the graph of the data that `graph_to_dict` returned. Raises the errors of `from_json`."""
    try:
        nodes = {item["id"]: _node_from_dict(item) for item in data["nodes"]}
        routers = [_router_from_dict(item) for item in data.get("routers", ())]
        edges = [_edge_from_dict(item, nodes, routers) for item in data["edges"]]
        target = _require_node("target of the graph", data["target"], nodes) if "target" in data else None
        graph = Graph(list(nodes.values()), edges, target, decode(data.get("targets")))
        for target_id in graph.target_ids() if graph.shape is not None else ():
            _require_node("target of the graph", target_id, nodes)
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"The data is not a graph that to_json has written: {type(error).__name__}: {error}"
        ) from error
    return graph


def _node_to_dict(node: Node) -> dict[str, Any]:
    literals = {name: encode(value, node.name, name) for name, value in node.literal_inputs.items()}
    function, factory = _function_name(node), _factory_name(node)
    optional = {
        "callable": function,
        "mapping_factory": factory,
        **options_to_dict(node, function or factory),
        "param_spec": _spec_to_dict(node.param_spec),
        "threaded": node.threaded,
        "positional": node.positional,
        "order": None if node.order is None else list(node.order),
        "unmapped": sorted(node.unmapped) or None,
    }
    required = {"id": node.id, "name": node.name, "node_type": node.node_type, "literal_inputs": literals}
    return required | {key: value for key, value in optional.items() if value is not None}


def _node_from_dict(data: dict[str, Any]) -> Node:
    function, factory = data.get("callable"), data.get("mapping_factory")
    options, allow_failure = options_from_dict(data, function or factory), data.get("allow_failure", False)
    unmapped = frozenset(data.get("unmapped", ()))
    node = (NodeWithOptions if allow_failure or unmapped or options != CallOptions() else Node)(
        id=data["id"],
        name=data["name"],
        node_type=data["node_type"],
        callable_obj=_function(function),
        mapping_factory=_factory(factory),
        literal_inputs={name: decode(value) for name, value in data["literal_inputs"].items()},
        param_spec=_spec_from_dict(data.get("param_spec")),
        threaded=data.get("threaded"),
        positional=data.get("positional"),
        order=tuple(data["order"]) if "order" in data else None,
    )
    if isinstance(node, NodeWithOptions):
        node.set_options(options)
        node.allow_failure, node.unmapped = allow_failure, unmapped
    return node


def _edge_to_dict(edge: Edge, routers: dict[int, int]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "source_id": edge.source.id,
        "target_id": edge.target.id,
        "arg_name": edge.arg_name,
        "edge_type": edge.edge_type.name,
    }
    if edge.arg_kind is not None:
        data["arg_kind"] = edge.arg_kind.value
    if edge.router is not None:
        data["router_index"] = routers[id(edge.router)]
    return data


def _edge_from_dict(data: dict[str, Any], nodes: dict[str, Node], routers: list[Router]) -> Edge:
    source, target = (_require_node(f"{end} of an edge", data[end], nodes) for end in ("source_id", "target_id"))
    router = routers[int(data["router_index"])] if "router_index" in data else None
    kind = ArgKind(data["arg_kind"]) if "arg_kind" in data else None
    return Edge(source, target, data["arg_name"], EdgeType[data["edge_type"]], router, kind)


def _require_node(what: str, node_id: str, nodes: dict[str, Node]) -> Node:
    if node_id not in nodes:
        raise ValueError(f"The {what} is {node_id!r}, but the graph has no such node")
    return nodes[node_id]


def _router_to_dict(router: Router) -> dict[str, Any]:
    keys = [encode(key, "router", "key") for key in router.routes]
    routes: dict[str, Any] = {}
    for key, route in zip(keys, router.routes.values(), strict=True):
        name = key if isinstance(key, str) else json.dumps(key)
        while name in routes:  # the keys 2 and "2"
            name += "*"
        routes[name] = encode(route, "router", name)[LAZY_REF]
    selector = encode(router.selector, "router", "selector")[LAZY_REF]
    return {"selector_id": selector, "routes": routes, "keys": keys}


def _router_from_dict(data: dict[str, Any]) -> Router:
    # The keys of a JSON object are strings: `keys` has the original keys.
    keys = [decode(key) for key in data.get("keys", data["routes"])]
    routes = {key: lazy_reference(route) for key, route in zip(keys, data["routes"].values(), strict=True)}
    return Router(lazy_reference(data["selector_id"]), routes)


def _spec_to_dict(spec: InputSpec | None) -> dict[str, Any] | None:
    if spec is None:
        return None
    data = {"kind": "env" if isinstance(spec, EnvSpec) else "param", "name": spec.name, "description": spec.description}
    data["default"] = encode(spec.default, spec.name, "default")
    if isinstance(spec, ParamSpec):
        data["type"] = encode_type(spec.type, spec.name)
    return data


def _spec_from_dict(data: dict[str, Any] | None) -> InputSpec | None:
    if data is None:
        return None
    default = decode(data.get("default"))
    if data["kind"] == "env":
        return EnvSpec(data["name"], default, data["description"])
    return ParamSpec(data["name"], default, data["description"], decode_type(data.get("type", "str")))


def _function_name(node: Node) -> dict[str, str] | None:
    return None if node.callable_obj is None else import_name(node.callable_obj, f"Task '{node.name}'")


def _factory_name(node: Node) -> dict[str, str] | None:
    factory = node.mapping_factory
    return None if factory is None else {**import_name(factory, f"Map '{node.name}'"), "name": factory.name}


def _function(name: dict[str, str] | None) -> Callable[..., Any] | None:
    found = None if name is None else import_object(name)
    return found.func if isinstance(found, Task) else found


def _factory(name: dict[str, str] | None) -> Any:
    found = None if name is None else import_object(name)
    if found is None or (hasattr(found, "map") and name is not None and found.name == name.get("name", found.name)):
        return found
    return Task(found, name=name.get("name")) if name is not None else None
