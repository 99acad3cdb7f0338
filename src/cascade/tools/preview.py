"""`dry_run` prints the tasks that a run would execute, in their order."""

from typing import Any

from cascade.adapters.solvers.native import NativeSolver
from cascade.graph.build import build_graph
from cascade.graph.model import Node
from cascade.messaging.renderer import printable
from cascade.runtime.bus import MessageBus
from cascade.runtime.resolvers import without_secrets
from cascade.telemetry.redact import redact_text
from cascade.tools._descriptions import Descriptions, name_of, shown
from cascade.tools.events import PlanAnalysisFinished, PlanAnalysisStarted, PlanNodeInspected

_INDENT = "      "
_TITLE = "--- Cascade Execution Plan (Dry Run) ---"


class DryRunConsoleSubscriber:
    """Prints the analysis of a plan on stdout."""

    def __init__(self, bus: MessageBus) -> None:
        bus.subscribe(PlanAnalysisStarted, self.on_started)
        bus.subscribe(PlanNodeInspected, self.on_node)
        bus.subscribe(PlanAnalysisFinished, self.on_finished)

    def on_started(self, event: PlanAnalysisStarted) -> None:  # noqa: ARG002 - a handler
        _print(_TITLE)

    def on_node(self, event: PlanNodeInspected) -> None:
        literals = ", ".join(f"{key!r}: {shown(value)}" for key, value in event.literal_inputs.items())
        _print(f"[{event.index}/{event.total_nodes}] {event.node_name} (Literals: {{{literals}}})")
        for text in event.details:
            _print(_INDENT + text)

    def on_finished(self, event: PlanAnalysisFinished) -> None:  # noqa: ARG002 - a handler
        _print("-" * len(_TITLE))


def dry_run(target: Any) -> None:
    """Print the plan of a workflow: each node with its literal arguments, then its inputs, decisions and options.

    Secrets are masked, and long values are truncated. The target is that of a run. The function raises the errors that a run
    raises before its first task, such as those for a cycle or an invalid target.
    """
    bus = MessageBus()
    DryRunConsoleSubscriber(bus)
    _analyze_plan(target, bus)


def _analyze_plan(target: Any, bus: MessageBus) -> None:
    graph = build_graph(target)
    nodes = [node for stage in NativeSolver().resolve(graph) for node in stage]
    descriptions = Descriptions(graph)
    targets = graph.target_ids()
    bus.publish(PlanAnalysisStarted(target_node_id=targets[0] if len(targets) == 1 else ""))
    for index, node in enumerate(nodes, 1):
        bus.publish(
            PlanNodeInspected(
                index=index,
                total_nodes=len(nodes),
                node_id=node.id,
                node_name=name_of(node),
                literal_inputs={} if node.param_spec else without_secrets(node.literal_inputs, _function_of(node)),
                details=descriptions.in_plan(node),
            )
        )
    bus.publish(PlanAnalysisFinished(total_steps=len(nodes)))


def _function_of(node: Node) -> Any:
    return node.callable_obj if node.mapping_factory is None else getattr(node.mapping_factory, "func", None)


def _print(line: str) -> None:
    print(printable(redact_text(line)))  # noqa: T201 - the output of dry_run
