import functools
import inspect
import operator
import pickle
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any
from unittest import mock

import pytest

import cascade as cs
from cascade.graph.build import build_graph
from cascade.spec.task import Task


@cs.task
def load() -> int:
    raise AssertionError("nothing runs")


@cs.resource
def database() -> Iterator[str]:
    yield "db"


def none() -> None: ...
def two(a: Any, b: Any) -> None: ...
def default(a: Any, b: Any = 1) -> None: ...
def keyword_only(*, a: Any, b: Any = 1) -> None: ...
def positional_only(a: Any, b: Any = 2, /) -> None: ...
def mixed(a: Any, /, b: Any, *c: Any, d: Any, e: Any = 4, **f: Any) -> None: ...
def variadic(*args: Any, **kwargs: Any) -> None: ...
def injected(a: Any, db: Any = cs.inject(database)) -> None: ...
async def asynchronous(a: Any) -> None: ...
def generator(a: Any) -> Iterator[int]:
    yield a


async def async_generator(a: Any) -> Any:
    yield a


class Method:
    def __init__(self, a: Any) -> None: ...
    def method(self, a: Any, b: Any = 2) -> None: ...
    @classmethod
    def of_class(cls, a: Any) -> None: ...
    @staticmethod
    def static(a: Any) -> None: ...
    def __call__(self, a: Any) -> None: ...


class AsyncCallable:
    async def __call__(self, a: Any) -> None: ...


def through(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(a: Any, *args: Any) -> Any:
        return function(a, "added", *args)

    return wrapper


FUNCTIONS: list[Callable[..., Any]] = [
    *(none, two, default, keyword_only, positional_only, mixed, variadic, injected, asynchronous, generator),
    *(
        async_generator,
        lambda: 1,
        lambda a, b=1: a,
        Method,
        Method(1).method,
        Method.of_class,
        Method.static,
        Method(1),
    ),
    *(AsyncCallable(), functools.partial(two, 1), functools.partial(two, b=1), functools.partial(mixed, 1, d=2)),
    *(functools.lru_cache(default), functools.partial(Method(1).method, 1)),
]
PLAIN = (FunctionType, MethodType)
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    *(((), {}), ((1,), {}), ((1, 2), {}), ((1, 2, 3), {}), ((1,), {"b": 2}), ((1,), {"a": 2}), ((), {"a": 1, "b": 2})),
    *(
        ((), {"b": 1}),
        ((1, 2), {"c": 3}),
        ((1, 2), {"d": 3}),
        ((), {"a": 1, "b": 2, "d": 3}),
        ((1, 2, 3), {"d": 4, "a": 5}),
    ),
    *(((1,), {"db": 2}), ((), {"self": 1}), ((1,), {"0": 2})),
]


LAZY = load()
ROUTER = cs.Router(LAZY, {1: LAZY})
as_task: Any = cs.task


def refusal(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except TypeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_call_raises_the_error_of_python(function: Callable[..., Any]) -> None:
    task: Any = cs.task(function)
    for args, kwargs in CALLS:
        lazies = [load() for _ in args]
        expected = refusal(lambda: python_call(function, args, kwargs))  # noqa: B023 - called at once
        for given in (args, lazies):
            found = refusal(lambda: task(*given, **kwargs))  # noqa: B023 - called at once
            assert (found if type(function) in PLAIN else bool(found)) == (
                expected if type(function) in PLAIN else bool(expected)
            )


def python_call(function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Call a function, so that Python checks the arguments."""
    result = function(*args, **kwargs)
    if hasattr(result, "close"):
        result.close()


@pytest.mark.parametrize("function", [operator.add, pow, max, divmod, zip, "{} {}".format, range, print])
def test_a_built_in_function_is_a_task(function: Callable[..., Any]) -> None:
    assert cs.task(function)(1, 2).args == (1, 2)


def test_a_decorator_may_add_arguments() -> None:
    assert cs.task(through(two))(1).args == (1,)
    assert cs.task(functools.singledispatch(two))(1, 2).args == (1, 2)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        as_task(through(two))()


def test_the_error_has_the_name_of_the_function() -> None:
    with pytest.raises(TypeError, match=r"^two\(\) missing 1 required positional argument: 'b'$"):
        as_task(two, name="other")(load())
    with pytest.raises(TypeError, match=r"^two\(\) got an unexpected keyword argument 'c'$"):
        as_task(two)(load(), 1, c=1)
    with pytest.raises(
        TypeError, match=r"^Method\.method\(\) takes from 2 to 3 positional arguments but 4 were given$"
    ):
        as_task(Method(1).method)(1, 2, 3)


def test_a_router_and_an_inject_count_as_arguments() -> None:
    router = cs.Router(load(), {1: load()})
    for target in (cs.task(two)(router, load()), cs.task(two)(a=[router], b=cs.inject(database))):
        assert isinstance(target, cs.LazyResult)
    with pytest.raises(TypeError, match="missing 1 required"):
        as_task(two)(router)


@pytest.mark.parametrize(
    ("function", "lists", "text"),
    [
        (two, {"a": [1], "c": [load()]}, "unexpected keyword argument 'c'"),
        (two, {"a": [1]}, "missing 1 required positional argument: 'b'"),
        (positional_only, {"b": [1]}, "missing 1 required positional argument|positional-only"),
        (keyword_only, {"b": [1]}, "missing 1 required keyword-only argument: 'a'"),
        (two, {}, "missing 2 required positional arguments: 'a' and 'b'"),
    ],
)
def test_a_map_is_checked_when_it_is_created(function: Callable[..., Any], lists: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        cs.task(function).map(**lists)


def test_a_replaced_function_is_checked_when_the_graph_is_built() -> None:
    task: Task[..., Any] = cs.task(two)
    call, mapped = task(1, 2), task.map(a=[1], b=[2])
    task.func = default
    assert build_graph(call).nodes[0].callable_obj is default
    task.func = none
    with pytest.raises(TypeError, match=r"none\(\) takes 0 positional arguments but 2 were given"):
        build_graph(call)
    with pytest.raises(TypeError, match=r"none\(\) got an unexpected keyword argument 'a'"):
        build_graph(mapped)
    assert build_graph(task())
    with mock.patch.object(task, "func", 5), pytest.raises(TypeError, match="needs a function, got 5"):
        task()
    with mock.patch.object(task, "func", lambda a: a):
        assert task(1).args == (1,)
    assert task.func is none


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: cs.task(lambda x=LAZY: x), "is a lazy result of task 'load'.*pass it as an argument"),
        (lambda: cs.task(lambda *, x=LAZY: x), "is a lazy result of task 'load'"),
        (lambda: cs.task(lambda x=[LAZY]: x), "is a lazy result of task 'load'"),
        (lambda: cs.task(lambda x=ROUTER: x), "is a Router"),
        (lambda: cs.task(functools.partial(two, load())), "is a lazy result of task 'load'"),
        (lambda: cs.task(functools.partial(functools.partial(two, b=load()), 1)), "is a lazy result of task 'load'"),
        (lambda: cs.task(functools.partial(two, cs.inject("db"))), r"without cs\.inject\(\.\.\.\) among"),
        (lambda: as_task(classmethod(two)), r"put @cs\.task below @classmethod"),
        (lambda: as_task(load()), "needs a function"),
    ],
)
def test_an_invalid_function_is_refused_at_the_declaration(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        make()


def test_a_task_shows_the_signature_and_the_documentation_of_its_function() -> None:
    def documented(a: int, *, b: str = "") -> float:
        """Return a number."""
        return float(a)

    task = cs.task(documented, name="other")
    assert inspect.signature(task) == inspect.signature(documented)
    assert (task.__doc__, task.name) == ("Return a number.", "other")


def test_a_task_of_a_task_has_its_function() -> None:
    first = cs.task(two, name="first", threaded=False)
    assert (cs.task(first).func, cs.task(first).name, cs.task(first).threaded) == (two, "first", False)
    assert cs.task(first, name="second", threaded=True).name == "second"
    assert cs.task(first, name="second", threaded=True).threaded is True


def test_a_task_is_pickled_after_a_call() -> None:
    task = cs.task(two)
    task(1, 2)
    again = pickle.loads(pickle.dumps(task))  # noqa: S301 - its own bytes
    assert again(1, 2).args == (1, 2)
    with pytest.raises(TypeError, match="missing"):
        as_task(again)(1)


def test_a_task_of_a_partial_of_a_task_has_its_function() -> None:
    of_task: Any = cs.task(functools.partial(cs.task(two, name="pair", threaded=False), 1))
    assert (of_task.name, of_task.threaded, of_task.func.func) == ("pair", False, two)
    with pytest.raises(TypeError, match=r"pair\(\) missing 1 required positional argument: 'b'"):
        of_task()
