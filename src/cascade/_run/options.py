"""`RunOptions`: the options of a run, and decorators that make them the parameters of a function."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import wraps
from typing import Any, Generic, ParamSpec, cast

from cascade._run.signatures import Execute, ExecuteAsync, Run, RunAsync
from cascade.runtime.protocols import Connector
from cascade.spec.caching import Cache
from cascade.spec.resource import ResourceDefinition

P = ParamSpec("P")


@dataclass(frozen=True)
class RunOptions:
    """Options of a run, in the order of the parameters of `run`, which documents them."""

    params: dict[str, Any] | None = None
    system_resources: Mapping[str, float] | None = None
    log_level: str = "INFO"
    log_format: str = "human"
    connector: Connector | Sequence[Connector] | None = None
    _: KW_ONLY
    resources: Iterable[ResourceDefinition] = ()
    max_workers: int | None = None
    run_id: str | None = None
    name: str | None = None
    tags: Iterable[str] = ()
    timeout: float | None = None
    fail_fast: bool = True
    cache: Cache | None = None


class Decorators(Generic[P]):
    """Decorators for functions of a target and its options. `options` creates the options from the other arguments.

    The decorated function has the target and the parameters of `options` as its parameters, also for `help`.
    """

    def __init__(self, options: Callable[P, RunOptions]) -> None:
        self._options = options

    def run(self, function: Callable[[Any, RunOptions], Any]) -> Run[P]:
        return cast("Run[P]", self._sync(function))

    def run_async(self, function: Callable[[Any, RunOptions], Any]) -> RunAsync[P]:
        return cast("RunAsync[P]", self._async(function))

    def execute(self, function: Callable[[Any, RunOptions], Any]) -> Execute[P]:
        return cast("Execute[P]", self._sync(function))

    def execute_async(self, function: Callable[[Any, RunOptions], Any]) -> ExecuteAsync[P]:
        return cast("ExecuteAsync[P]", self._async(function))

    def _sync(self, function: Callable[[Any, RunOptions], Any]) -> Any:
        @wraps(function)
        def call(target: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
            return function(target, self._options_of(function, *args, **kwargs))

        return self._with_signature(call)

    def _async(self, function: Callable[[Any, RunOptions], Any]) -> Any:
        @wraps(function)
        async def call(target: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
            return await function(target, self._options_of(function, *args, **kwargs))

        return self._with_signature(call)

    def _options_of(self, function: Callable[..., Any], *args: P.args, **kwargs: P.kwargs) -> RunOptions:
        try:
            return self._options(*args, **kwargs)
        except TypeError as error:  # an unknown argument: the text names the function that was called
            raise TypeError(str(error).replace("RunOptions.__init__", function.__name__)) from None

    def _with_signature(self, function: Any) -> Any:
        parameters = inspect.signature(self._options).parameters
        target = inspect.Parameter("target", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Any)
        returned = inspect.signature(function).return_annotation
        function.__signature__ = inspect.Signature([target, *parameters.values()], return_annotation=returned)
        function.__annotations__ = {name: each.annotation for name, each in parameters.items()}
        return function
