"""Checks of a run before its first task starts."""

from collections.abc import Iterable, Mapping

from cascade.graph.model import Edge, Node
from cascade.runtime._inputs import input_value
from cascade.runtime._map_execution import zip_items
from cascade.runtime._outcome import add_task_note
from cascade.runtime._run_context import RunContext
from cascade.spec.lazy_types import LazyResult, MappedLazyResult


def check_nodes(nodes: Iterable[Node], in_edges: Mapping[str, list[Edge]], run: RunContext) -> None:
    """Check the nodes that a run surely needs.

    Raises:
        MissingParamError: A parameter has no value.
        ValueError: A constraint asks for more than there is, or a map's lists are not equally long.
    """
    for node in nodes:
        if node.param_spec is not None:
            input_value(node, run.params)
            continue
        try:
            _check_task(node, in_edges, run)
        except Exception as error:
            add_task_note(error, f"task {node.name!r}", attempt_start_ns=run.start_ns, now_ns=run.clock.last_ns)
            raise


def _check_task(node: Node, in_edges: Mapping[str, list[Edge]], run: RunContext) -> None:
    if node.constraints:
        run.capacity.check(_known(node.constraints.requirements))
    if node.node_type == "map" and node.id not in in_edges:
        zip_items(node, node.literal_inputs)


def _known(requirements: Mapping[str, object]) -> dict[str, object]:
    return {name: v for name, v in requirements.items() if not isinstance(v, (LazyResult, MappedLazyResult))}
