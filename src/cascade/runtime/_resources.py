"""Resources of a run: set up before its tasks, dependencies first, torn down after them in reverse."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cascade.graph.model import Node
from cascade.runtime._run_context import RunContext, error_info
from cascade.runtime.events import ResourceAcquired, ResourceReleased
from cascade.runtime.resolvers import add_resources, injected_defaults, injected_names
from cascade.spec.resource import Inject

Providers = Mapping[str, Callable[..., Any]]


class ResourceSetup:
    """Sets up the resources that the nodes of a run need, and tears them down in reverse order."""

    def __init__(self, run: RunContext, providers: Providers) -> None:
        self._run = run
        self._providers = dict(providers)
        self._open: list[tuple[str, Any, int]] = []

    async def set_up(self, nodes: Iterable[Node]) -> None:
        """Set up the needed resources in an order in which each finds those it asks for.

        Raises:
            NameError: A resource is not registered.
            ValueError: Resources ask for each other in a circle.
        """
        wanted: dict[str, None] = {}
        for node in nodes:
            for inject in _injects(node):
                self._note(inject)
                wanted[inject.resource_name] = None
        for name in self._in_order(wanted):
            await self._open_one(name)

    async def tear_down(self) -> None:
        """Undo all in reverse; an error does not keep the others from it, and the first one is raised at the end."""
        failure: Exception | None = None
        while self._open:
            name, generator, start_ns = self._open.pop()
            error = await _finish(name, generator)
            failure = failure or error
            end_ns = self._run.clock.now_ns()
            exception = error_info(error) if error else None
            self._emit(ResourceReleased, name, start_ns, end_ns=end_ns, exception=exception)
        if failure is not None:
            raise failure

    def _note(self, inject: Inject) -> None:
        if inject.definition is not None:
            self._providers.setdefault(inject.resource_name, inject.definition.func)

    def _in_order(self, wanted: Iterable[str]) -> list[str]:
        order: dict[str, None] = {}
        path: list[str] = []

        def visit(name: str) -> None:
            if name in order:
                return
            if name in path:
                raise ValueError(f"Resources ask for each other in a circle: {' -> '.join([*path, name])}")
            path.append(name)
            for inject in injected_defaults(self._provider(name, path)).values():
                self._note(inject)
                visit(inject.resource_name)
            path.pop()
            order[name] = None

        for name in wanted:
            visit(name)
        return list(order)

    def _provider(self, name: str, path: list[str]) -> Callable[..., Any]:
        if name not in self._providers:
            known = ", ".join(sorted(self._providers)) or "none"
            asker = f" (asked for by resource '{path[-2]}')" if len(path) > 1 else ""
            raise NameError(
                f"Resource '{name}' is not registered{asker}: call engine.register(…) or inject its definition; "
                f"registered: {known}"
            )
        return self._providers[name]

    async def _open_one(self, name: str) -> None:
        function = self._providers[name]
        start_ns = self._run.clock.now_ns()
        args, kwargs = list[Any](), dict[str, Any]()
        add_resources(function, args, kwargs, self._run.resources)
        generator = function(*args, **kwargs)
        try:
            self._run.resources[name] = await anext(generator) if inspect.isasyncgen(generator) else next(generator)
        except (StopIteration, StopAsyncIteration):
            raise RuntimeError(f"Resource '{name}' did not yield: yield the resource exactly once") from None
        self._open.append((name, generator, start_ns))
        self._emit(ResourceAcquired, name, start_ns)

    def _emit(self, event: type[ResourceAcquired | ResourceReleased], name: str, start_ns: int, **more: Any) -> None:
        usage = self._run.capacity.usage
        self._run.emit(event, resource_name=name, start_ns=start_ns, current_usage=usage, **more)


async def _finish(name: str, generator: Any) -> Exception | None:
    try:
        if inspect.isasyncgen(generator):
            await anext(generator)
            await generator.aclose()
        else:
            next(generator)
            generator.close()
    except (StopIteration, StopAsyncIteration):
        return None
    except Exception as error:  # noqa: BLE001 - handed on by the caller, after the other resources
        return error
    return RuntimeError(f"Resource '{name}' yielded twice: yield the resource exactly once")


def _injects(node: Node) -> Iterator[Inject]:
    function = getattr(node.mapping_factory, "func", None) if node.mapping_factory else node.callable_obj
    for value in node.literal_inputs.values():
        if type(value) is Inject:
            yield value
    if injected_names(function):
        yield from injected_defaults(function).values()
