"""Registry of the inputs that a workflow declares."""

from collections.abc import Iterator
from contextvars import ContextVar

from cascade._blocks import block
from cascade.spec.input import InputSpec


class WorkflowContext:
    """Input specs by name. The first registration of a name wins."""

    def __init__(self) -> None:
        self.input_specs: dict[str, InputSpec] = {}

    def register(self, spec: InputSpec) -> None:
        self.input_specs.setdefault(spec.name, spec)

    def get_all_specs(self) -> list[InputSpec]:
        return list(self.input_specs.values())


_default = WorkflowContext()
_scoped: ContextVar[WorkflowContext | None] = ContextVar("cascade_workflow_context", default=None)


def get_current_context() -> WorkflowContext:
    """The context shared by the whole process, unless code runs in a `scoped` one."""
    return _scoped.get() or _default


@block
def scoped() -> Iterator[WorkflowContext]:
    """A new context for the block, apart from that of the process."""
    context = WorkflowContext()
    token = _scoped.set(context)
    try:
        yield context
    finally:
        _scoped.reset(token)
