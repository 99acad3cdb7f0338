"""Checks of a run before its first task starts."""

from collections.abc import Collection, Iterable, Mapping

from cascade._loggers import get_logger
from cascade.graph.model import Edge, Graph, Node
from cascade.runtime._map_execution import zip_items
from cascade.runtime._run_context import RunContext
from cascade.runtime.exceptions import UnknownParamError, add_task_note, suggestion
from cascade.runtime.resolvers import input_value
from cascade.spec.input import ParamSpec
from cascade.spec.lazy_types import LazyResult, MappedLazyResult

logger = get_logger(__name__)


TYPO = 0.8
"""Similarity, from 0 to 1, at which a name counts as misspelt: `gpuu` and `gpu` have 0.86, `cpu` and `gpu` 0.67."""


def check_names(graph: Graph, run: RunContext) -> None:
    """Check the names in `params=` and in constraints.

    A constraint's name without a capacity is unlimited. It is an error only if it is similar to a name with one.

    Raises:
        UnknownParamError: A name in `params=` is no Param of the workflow.
        ValueError: A constraint's name is a misspelt name of a system resource.
    """
    if run.params:
        _check_params(run.params, graph)
    if capacity := run.capacity.usage:
        for node in graph.nodes:
            if node.constraints:
                _check_constraints(node, capacity)


def _check_params(params: Mapping[str, object], graph: Graph) -> None:
    specs = (node.param_spec for node in graph.nodes)
    known = dict.fromkeys(spec.name for spec in specs if isinstance(spec, ParamSpec))
    unknown = [name for name in params if name not in known]
    if unknown and known:
        raise UnknownParamError(unknown[0], known)
    if unknown:
        logger.warning("params: the workflow has no Param; the run ignores %s", ", ".join(map(repr, unknown)))


def _check_constraints(node: Node, capacity: Collection[str]) -> None:
    for name in node.constraints.requirements if node.constraints else ():
        if name not in capacity and (hint := suggestion(name, capacity, TYPO)):
            raise ValueError(
                f"Task '{node.name}': the constraint '{name}' is not in system_resources{hint} "
                f"If '{name}' is a resource of its own, give it a capacity in system_resources"
            )


def check_nodes(nodes: Iterable[Node], in_edges: Mapping[str, list[Edge]], run: RunContext) -> None:
    """Check the nodes that a run needs whatever its conditions and routes.

    Raises:
        MissingParamError: A parameter has no value.
        MissingEnvError: An environment variable has no value.
        ValueError: A constraint exceeds the capacity, or the lists of a map have different lengths.
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
