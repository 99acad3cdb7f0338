"""A run within a task of another run."""

from typing import Any, TypeVar

from cascade.runtime.engine import current_engine
from cascade.spec.lazy_types import Lazy

T = TypeVar("T")


async def run_nested(target: Lazy[T], params: dict[str, Any] | None = None) -> T:
    """Run `target` with the engine that runs the calling task: its connector, its resources, its trace.

    Raises:
        RuntimeError: Called from outside of any run.
    """
    engine = current_engine.get()
    if engine is None:
        raise RuntimeError("A nested run needs a run around it: call it from a task")
    return await engine.run(target, params)
