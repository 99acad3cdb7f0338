"""Sets up the resources of a run before its tasks, dependencies first, and tears them down in reverse order."""

import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from cascade._loggers import get_logger
from cascade.graph.model import Node
from cascade.runtime import threads
from cascade.runtime._run_context import RunContext, error_info
from cascade.runtime.events import ResourceAcquired, ResourceEvent, ResourceReleased, ResourceSetupFailed
from cascade.runtime.exceptions import add_note, is_cancellation, result_of
from cascade.runtime.resolvers import add_resources
from cascade.runtime.task_context import CURRENT_TASK, Execution, TaskContext, in_context
from cascade.runtime.threads import SerialThread, Step
from cascade.spec.nested import require_values
from cascade.spec.parameters import injected_defaults, injected_names
from cascade.spec.resource import Inject
from cascade.telemetry.identity import setup_id, teardown_id
from cascade.telemetry.sanitize import masked_name

logger = get_logger(__name__)

T = TypeVar("T")

_END: Any = object()
_Active = tuple[Token[Execution | None], AbstractContextManager[None] | None]

Providers = Mapping[str, Callable[..., Any]]


@dataclass(slots=True)
class _OpenResource:
    """A resource that is set up. `hold_start_ns` is the time when the setup ended."""

    name: str
    generator: Any
    hold_start_ns: int


class ResourceSetup:
    """Sets up the resources that the nodes of a run need, and tears them down in reverse order.

    Plain generators run in a `SerialThread` of the run, async generators in the asyncio task that runs the engine. A
    teardown runs in the thread, the asyncio task and the context of its setup, so that a resource can use another one
    that is bound to its thread, such as a connection of sqlite3. The thread is separate from those of the executor:
    long tasks do not delay a teardown.
    """

    def __init__(self, run: RunContext, providers: Providers) -> None:
        self._run = run
        self._providers = dict(providers)
        self._needed: dict[str, None] = {}
        self._open: list[_OpenResource] = []
        self._context = run.new_context()
        self._thread = SerialThread("cascade-resource", run.new_context())
        self._is_thread_stuck = False

    def collect(self, nodes: Iterable[Node]) -> None:
        """Find the resources that the nodes need. It may be called in a thread."""
        functions: set[int] = set()  # ids of the functions that were examined: many nodes call the same one
        for node in nodes:
            if id(node.callable_obj) in functions and not node.literal_inputs and node.mapping_factory is None:
                continue
            functions.add(id(node.callable_obj))
            for inject in _injects(node):
                self._add_definition(inject)
                self._needed[inject.resource_name] = None

    async def set_up(self) -> None:
        """Set up the resources in the order of their dependencies.

        Raises:
            NameError: A resource is not registered.
            ValueError: Resources use each other in a circle.
            BaseException: The error of the first setup that failed, with a note that names the resource.
        """
        for name in self._in_order(self._needed):
            await self._set_up_one(name)

    async def tear_down(self, first: BaseException | None) -> None:
        """Tear down all resources in reverse order. An error of one teardown does not stop the others.

        Args:
            first: The error of the run. Errors of a teardown become notes on it.

        Raises:
            BaseException: Without `first`, the first error of a teardown. Later errors become notes on it.
        """
        is_failing = first is not None
        error: BaseException | None = None
        try:
            while self._open:
                resource = self._open.pop()
                for error in await self._tear_down_one(resource):
                    if first is None:
                        first = error
                    else:
                        self._run.add_later_error(first, error, f"the teardown of resource {resource.name!r}")
            if first is not None and not is_failing:
                raise first
        finally:
            del first, error  # their tracebacks refer to this frame
            self._run.resources.clear()
            self._thread.close()

    def _add_definition(self, inject: Inject) -> None:
        if inject.definition is not None:
            self._providers.setdefault(inject.resource_name, inject.definition.func)

    def _in_order(self, wanted: Iterable[str]) -> list[str]:
        order: dict[str, None] = {}
        for name in wanted:
            self._visit(name, [], order)
        return list(order)

    def _visit(self, name: str, path: list[str], order: dict[str, None]) -> None:
        """Append a resource to `order`, after the resources that it uses. `path` has its chain of users."""
        if name in order:
            return
        path = [*path, name]
        if name in path[:-1]:
            raise ValueError(f"Resources use each other in a circle: {' -> '.join(path)}")
        for inject in injected_defaults(self._provider(name, path)).values():
            self._add_definition(inject)
            self._visit(inject.resource_name, path, order)
        order[name] = None

    def _provider(self, name: str, path: list[str]) -> Callable[..., Any]:
        if name not in self._providers:
            known = ", ".join(sorted(self._providers)) or "none"
            user = f" (used by resource '{path[-2]}')" if len(path) > 1 else ""
            raise NameError(
                f"Resource '{name}' is not registered{user}: call engine.register(…) or inject its definition; "
                f"registered: {known}"
            )
        return self._providers[name]

    async def _set_up_one(self, name: str) -> None:
        function, value, span = self._providers[name], None, self._span_of(name, "setup")
        start_ns = span.start_ns
        args, kwargs = list[Any](), dict[str, Any]()
        try:
            add_resources(function, args, kwargs, self._run.resources)
            generator = function(*args, **kwargs)
            if is_async := inspect.isasyncgen(generator):
                value = await in_context(self._context, self._with_span(span, _set_up_async(name, generator)))
        except BaseException as error:
            self._publish_failed(name, start_ns, error)
            raise
        if is_async:
            self._add_open(name, generator, value, start_ns)
        else:
            await self._set_up_in_thread(name, generator, span)

    async def _set_up_in_thread(self, name: str, generator: Any, span: TaskContext) -> None:
        with self._run.waiting_for(f"setup of resource {name!r}"):
            is_over, step = await self._in_thread(
                f"setup of resource {name!r}", partial(_set_up, name, generator), span
            )
        start_ns = span.start_ns
        if not is_over:
            self._thread.submit(
                f"teardown of resource {name!r}", partial(_tear_down_if_set_up, name, generator)
            ).abandon()
            self._warn_of_stuck_thread(name, "setup")
        value, error, cancelled = step.take()
        first = cancelled or error  # a cancellation is raised, with a note for the error of the setup
        try:
            if is_over and error is None:
                self._add_open(name, generator, value, start_ns)
            elif (failure := cancelled if error is None else error) is not None:
                self._publish_failed(name, start_ns, failure)
            if first is not None and error is not None:
                self._run.add_later_error(first, error, f"the setup of resource {name!r}")
            if first is not None:
                raise first
        finally:
            first = error = cancelled = failure = None  # their tracebacks refer to this frame

    async def _tear_down_one(self, resource: _OpenResource) -> list[BaseException]:
        """Tear down a resource.

        Returns the cancellation of this wait, if any, and the error of the teardown, if any.
        """
        name, span = resource.name, self._span_of(resource.name, "teardown")
        errors: list[BaseException] = []
        with self._run.waiting_for(f"teardown of resource {name!r}"):
            if not inspect.isasyncgen(resource.generator):
                errors = await self._tear_down_in_thread(resource, span)
            else:
                try:
                    await in_context(self._context, self._with_span(span, _tear_down_async(name, resource.generator)))
                except KeyboardInterrupt:  # raised by the resource
                    raise
                except BaseException as caught:  # noqa: BLE001 - raised again, or a note, after the other resources
                    errors = [caught]
        error = errors[-1] if errors else None
        try:
            self._emit(ResourceReleased, name, span.start_ns, error, hold_start_ns=resource.hold_start_ns)
            return errors
        finally:
            del error, errors  # the errors refer to this frame

    async def _tear_down_in_thread(self, resource: _OpenResource, span: TaskContext) -> list[BaseException]:
        name = resource.name
        label, function = f"teardown of resource {name!r}", partial(_tear_down, name, resource.generator)
        if self._is_thread_stuck:
            self._thread.submit(label, function).abandon()
            return []
        is_over, step = await self._in_thread(label, function, span)
        if not is_over:
            self._warn_of_stuck_thread(name, "teardown")
        _, error, cancelled = step.take()
        return [found for found in (cancelled, error) if found is not None]

    async def _in_thread(self, label: str, function: Callable[[], Any], span: TaskContext) -> tuple[bool, Step]:
        """Run a step in the thread. Returns whether it has ended, and the step."""
        context = self._thread.context
        active = context.run(self._activate, span)
        step = self._thread.submit(label, function)
        is_over = await step.wait(self._run.cancel)
        if is_over:  # else the thread is still in the context
            context.run(self._deactivate, *active)
        return is_over, step

    async def _with_span(self, span: TaskContext, step: Coroutine[Any, Any, T]) -> T:
        """Await a step of an async generator while its span is current."""
        active = self._activate(span)
        try:
            return await step
        finally:
            self._deactivate(*active)

    def _span_of(self, name: str, step: str) -> TaskContext:
        run, id_of = self._run, setup_id if step == "setup" else teardown_id
        public_name = masked_name(name)
        start_ns = run.clock.now_ns()
        return TaskContext(
            run.run_id,
            id_of(public_name),
            f"{public_name} {step}",
            run.trace,
            start_ns=start_ns,
            kind="resource",
            child=run.trace.parts.run,
        )

    def _activate(self, span: TaskContext) -> _Active:
        return CURRENT_TASK.set(span), self._run.enter_span(span)

    def _deactivate(self, token: Token[Execution | None], active: AbstractContextManager[None] | None) -> None:
        self._run.leave_span(active)
        CURRENT_TASK.reset(token)

    def _warn_of_stuck_thread(self, name: str, step: str) -> None:
        self._is_thread_stuck = True
        self._thread.outlive_run()
        logger.warning(
            "Resource '%s': its %s still runs %g s after the cancellation. The run ends without waiting for it; "
            "the teardown of this and of earlier resources follows in that thread",
            name,
            step,
            threads.CANCEL_GRACE,
        )

    def _add_open(self, name: str, generator: Any, value: Any, start_ns: int) -> None:
        self._run.resources[name] = value
        self._open.append(_OpenResource(name, generator, self._emit(ResourceAcquired, name, start_ns, None)))

    def _publish_failed(self, name: str, start_ns: int, error: BaseException) -> None:
        if not is_cancellation(error):
            add_note(error, f"The setup of resource {name!r} failed.")
        self._emit(ResourceSetupFailed, name, start_ns, error)

    def _emit(
        self, event: type[ResourceEvent], name: str, start_ns: int, error: BaseException | None, **more: int
    ) -> int:
        """Publish the end of a setup or teardown. Returns the time of the end."""
        end_ns, result = self._run.clock.now_ns(), result_of(error)
        self._run.emit(
            event,
            resource_name=name,
            start_ns=start_ns,
            end_ns=end_ns,
            current_usage=self._run.capacity.usage,
            result=result,
            exception=None if error is None or result == "cancellation" else error_info(error),
            **more,
        )
        return end_ns


def _injects(node: Node) -> Iterator[Inject]:
    function = getattr(node.mapping_factory, "func", None) if node.mapping_factory else node.callable_obj
    for value in node.literal_inputs.values():
        if type(value) is Inject:
            yield value
    if injected_names(function):
        yield from injected_defaults(function).values()


def _set_up(name: str, generator: Any) -> Any:
    try:
        return _checked(name, next(generator, _END))
    except TypeError:
        generator.close()
        raise


async def _set_up_async(name: str, generator: Any) -> Any:
    try:
        return _checked(name, await anext(generator, _END))
    except TypeError:
        await generator.aclose()
        raise


def _checked(name: str, value: Any) -> Any:
    if value is _END:
        raise RuntimeError(f"Resource '{name}' did not yield: yield the resource exactly once")
    require_values(value, f"Resource '{name}' is")
    return value


def _tear_down(name: str, generator: Any) -> None:
    if next(generator, _END) is not _END:
        generator.close()
        raise _second_yield(name)


async def _tear_down_async(name: str, generator: Any) -> None:
    if await anext(generator, _END) is not _END:
        await generator.aclose()
        raise _second_yield(name)


def _tear_down_if_set_up(name: str, generator: Any) -> None:
    if inspect.getgeneratorstate(generator) == inspect.GEN_SUSPENDED:
        _tear_down(name, generator)


def _second_yield(name: str) -> RuntimeError:
    return RuntimeError(f"Resource '{name}' yielded twice: yield the resource exactly once")
