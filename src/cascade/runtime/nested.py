"""A run within a task of another run."""

from typing import Any

from cascade.runtime.engine import current_engine


async def run_nested(target: Any, params: dict[str, Any] | None = None) -> Any:
    """Run `target` with the engine that runs the calling task: its connector, its resources, its trace.

    Raises:
        RuntimeError: Called from outside of any run.
    """
    engine = current_engine.get()
    if engine is None:
        raise RuntimeError("A nested run needs a run around it: call it from a task")
    return await engine.run(target, params)
