import contextlib
import sys
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.console.progress import RunProgress
from cascade.connectors.console.run_tree import MAX_NODES, RunTree, prune
from cascade.connectors.console.span_nodes import SpanNode, walk


@cs.task
async def step(n: int) -> int:
    if n % 100 == 99:
        raise ValueError(f"number {n}")
    return n


@cs.task
async def collect(*values: Any) -> int:
    return len(values)


def payloads_of(target: Any) -> list[dict[str, Any]]:
    connector = cs.MemoryConnector()
    with contextlib.suppress(ValueError):
        cs.run(target, connector=connector, log_level="OFF")
    return connector.payloads


def tree_of(payloads: list[dict[str, Any]]) -> SpanNode:
    tree = RunTree()
    for payload in payloads[1:-1]:
        tree.add(payload)
    return tree.finish(payloads[-1])


@pytest.mark.parametrize("shape", ["map", "tasks", "names", "maps"])
def test_the_tree_of_a_large_run_counts_all_spans_and_keeps_few(shape: str) -> None:
    size = 600
    targets: dict[str, Any] = {
        "map": lambda: collect(step.map(n=[1] * size)),
        "tasks": lambda: collect(*[step(1) for _ in range(size)]),
        "names": lambda: collect(*[cs.task(step.func, name=f"task-{n}")(1) for n in range(size)]),
        "maps": lambda: collect(*[step.map(n=[1, 2, 3]) for _ in range(size // 3)]),
    }
    payloads = payloads_of(targets[shape]())
    spans = sum(payload["body"].get("state") in {"COMPLETED", "FAILED", "SKIPPED"} for payload in payloads) + 1
    top = tree_of(payloads)
    assert top.size == spans
    prune(top)
    top.summarize()
    assert top.size == spans
    assert len(list(walk([top]))) <= MAX_NODES
    assert sum(len(node.hidden) for node in walk([top])) <= MAX_NODES


def test_the_failed_parts_stay_and_all_errors_are_counted() -> None:
    payloads = payloads_of(collect(step.map(n=range(150)), *[step.map(n=[1] * 20) for _ in range(60)]))
    top = tree_of(payloads)
    assert top.errors == 2  # the item and the run
    prune(top, 5)
    failed = [node.span.name for node in walk([top]) if node.span.status == "ERROR"]
    assert failed == ["run collect", "step"]


def test_what_is_kept_does_not_grow_with_the_number_of_tasks() -> None:
    payloads = payloads_of(collect(step.map(n=[1] * 50)))
    item = next(payload for payload in payloads if payload["body"].get("state") == "COMPLETED")
    sizes = []
    for count in (1_000, 20_000):
        tree, progress = RunTree(), RunProgress(payloads[0])
        for number in range(count):
            body = {**item["body"], "task_id": str(number)}
            task = {**item, "span_id": f"{number:016x}", "body": body}
            tree.add(task)
            progress.add({**task, "body": {**body, "state": "RUNNING"}})
            progress.add(task)
        sizes.append(_size(tree) + _size(progress))
    assert sizes[1] < 1.1 * sizes[0]


def _size(value: Any, seen: set[int] | None = None) -> int:
    """Return the bytes of an object and of all that it refers to."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, type):
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(_size(key, seen) + _size(item, seen) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)) or hasattr(value, "popleft"):
        return size + sum(_size(item, seen) for item in value)
    names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
    return size + sum(_size(getattr(value, name, None), seen) for name in names)
