"""`dry_run` prints the tasks that a run would execute, in their order."""

from typing import Any

from cascade.adapters.solvers.native import NativeSolver
from cascade.graph.build import build_graph
from cascade.messaging.renderer import printable
from cascade.runtime.bus import MessageBus
from cascade.runtime.resolvers import without_secrets
from cascade.telemetry.redact import redact_text
from cascade.tools.events import PlanAnalysisFinished, PlanAnalysisStarted, PlanNodeInspected

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
        _print(f"[{event.index}/{event.total_nodes}] {event.node_name} (Literals: {event.literal_inputs})")

    def on_finished(self, event: PlanAnalysisFinished) -> None:  # noqa: ARG002 - a handler
        _print("-" * len(_TITLE))


def dry_run(target: Any) -> None:
    """Print the plan of a workflow, with secrets masked in names and literals.

    It raises the errors that a run raises before its first task, such as those for a cycle or an invalid target.
    """
    bus = MessageBus()
    DryRunConsoleSubscriber(bus)
    _analyze_plan(target, bus)


def _analyze_plan(target: Any, bus: MessageBus) -> None:
    graph = build_graph(target)
    nodes = [node for stage in NativeSolver().resolve(graph) for node in stage]
    bus.publish(PlanAnalysisStarted(target_node_id=graph.require_target().id))
    for index, node in enumerate(nodes, 1):
        bus.publish(
            PlanNodeInspected(
                index=index,
                total_nodes=len(nodes),
                node_id=node.id,
                node_name=node.name,
                literal_inputs=without_secrets(node.literal_inputs, node.callable_obj),
            )
        )
    bus.publish(PlanAnalysisFinished(total_steps=len(nodes)))


def _print(line: str) -> None:
    print(printable(redact_text(line)))  # noqa: T201 - the output of dry_run
