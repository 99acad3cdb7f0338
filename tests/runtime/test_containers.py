import collections
import dataclasses
import io
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import cascade as cs
from cascade.runtime.engine import run_nested
from cascade.runtime.events import TaskExecutionStarted
from tests.runtime.conftest import RecordedEngine


@cs.task(threaded=False)
def load(x: Any) -> Any:
    return x


@cs.task(threaded=False)
def show(x: Any) -> Any:
    return Shown(x)


class Shown:
    """Holds a value that must be neither compared nor copied."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Pair(NamedTuple):
    left: Any
    right: Any = 2


class Items(list[Any]):
    unit = "m"


class Point(tuple[Any, ...]):  # noqa: SLOT001 - with attributes of its own
    note = "none"


class Table(dict[str, Any]):
    def __init__(self, *, owner: str) -> None:
        super().__init__()
        self.owner = owner


@dataclasses.dataclass
class Data:
    a: Any
    b: Any = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: Any


@dataclasses.dataclass
class Derived:
    a: Any
    k: dataclasses.InitVar[int]
    b: int = dataclasses.field(init=False)

    def __post_init__(self, k: int) -> None:
        self.b = k


class Sub(Data):
    def __init__(self, a: Any) -> None:
        super().__init__(a)
        self.extra = a


class Attribute(NamedTuple):
    name: str


class Attrs:
    """Imitates an instance of an attrs class."""

    __attrs_attrs__ = (Attribute("a"),)
    __slots__ = ("a",)

    def __init__(self, a: Any) -> None:
        self.a = a


def items(*content: Any) -> Items:
    made = Items(content)
    made.unit = "km"
    return made


def point(*content: Any) -> Point:
    made = Point(content)
    made.note = "kept"
    return made


def table(**content: Any) -> Table:
    made = Table(owner="me")
    made.update(content)
    return made


def data_with_an_attribute(a: Any) -> Data:
    made = Data(1)
    made.extra = a  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    return made


CONTAINERS: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
    (lambda x: [x], lambda v: v == [1]),
    (lambda x: (x, 2), lambda v: v == (1, 2)),
    (lambda x: {"k": [x]}, lambda v: v == {"k": [1]}),
    (lambda x: {x: "k"}, lambda v: v == {1: "k"}),
    (Pair, lambda v: v == Pair(1)),
    (items, lambda v: (v, v.unit) == ([1], "km")),
    (point, lambda v: (v, v.note) == ((1,), "kept")),
    (lambda x: table(a=x), lambda v: (dict(v), v.owner) == ({"a": 1}, "me")),
    (lambda x: collections.OrderedDict(b=2, a=x), lambda v: list(v.items()) == [("b", 2), ("a", 1)]),
    (lambda x: collections.defaultdict(list, a=x), lambda v: v["a"] == 1 and v["new"] == []),
    (lambda x: collections.Counter(a=x), lambda v: v.most_common() == [("a", 1)]),
    (lambda x: collections.deque([x, 2], maxlen=5), lambda v: (list(v), v.maxlen) == ([1, 2], 5)),
    (lambda x: collections.UserList([x]), lambda v: v.data == [1]),
    (lambda x: collections.UserDict(a=x), lambda v: v.data == {"a": 1}),
    (lambda x: collections.ChainMap({"a": 0}, {"b": x}), lambda v: v.maps == [{"a": 0}, {"b": 1}]),
    (lambda x: types.MappingProxyType({"a": x}), lambda v: dict(v) == {"a": 1}),
    (lambda x: types.SimpleNamespace(a=x, b=2), lambda v: vars(v) == {"a": 1, "b": 2}),
    (Data, lambda v: v == Data(1)),
    (Frozen, lambda v: v == Frozen(1)),
    (lambda x: Derived(x, 5), lambda v: (v.a, v.b) == (1, 5)),
    (Sub, lambda v: (v.a, v.b, v.extra) == (1, 2, 1)),
    (data_with_an_attribute, lambda v: (v.a, v.extra) == (1, 1)),
    (Attrs, lambda v: v.a == 1),
]


@pytest.mark.parametrize(("make", "is_right"), CONTAINERS)
async def test_a_container_keeps_its_type(
    recorded: RecordedEngine, make: Callable[[Any], Any], is_right: Callable[[Any], Any]
) -> None:
    kind = type(make(load(1)))
    alone = (await recorded.run(show(make(load(1))))).value
    (nested,) = (await recorded.run(show([make(load(1))]))).value
    (mapped,) = await recorded.run(show.map(x=[make(load(1))]))
    for value in (alone, nested, mapped.value):
        assert type(value) is kind
        assert is_right(value)


@pytest.mark.parametrize(("make", "is_right"), CONTAINERS)
async def test_a_value_without_lazy_results_is_the_same_object(
    recorded: RecordedEngine, make: Callable[[Any], Any], is_right: Callable[[Any], Any]
) -> None:
    literal = make(1)
    assert (await recorded.run(show(literal))).value is literal
    assert (await recorded.run(show([literal, load(2)]))).value[0] is literal
    assert is_right(literal)


async def test_a_literal_is_not_changed_by_a_run(recorded: RecordedEngine) -> None:
    lazy = load(1)
    literal = {"list": [lazy], "data": Data(lazy), "names": types.SimpleNamespace(a=lazy)}
    target = show(literal)
    first, second = (await recorded.run(target)).value, (await recorded.run(target)).value
    assert first == second == {"list": [1], "data": Data(1), "names": types.SimpleNamespace(a=1)}
    assert literal["list"][0] is literal["data"].a is literal["names"].a is lazy  # type: ignore[index, attr-defined]


async def test_a_container_that_occurs_twice_or_contains_itself_is_copied_once(recorded: RecordedEngine) -> None:
    loop: list[Any] = [load(1)]
    loop.append(loop)
    loop.append({"again": loop})
    shared = [load(2)]
    value, first, second = (await recorded.run(show((loop, shared, shared)))).value
    assert value[0] == 1
    assert value[1] is value
    assert value[2]["again"] is value
    assert first is second
    assert first == [2]


async def test_a_router_in_a_container_runs_the_chosen_branch_only(recorded: RecordedEngine) -> None:
    chosen, other = load("chosen"), load("other")
    router = cs.Router(load("b"), {"a": other, "b": chosen})
    value = (await recorded.run(show({"x": [router, load(3)], "y": (router,)}))).value
    assert value == {"x": ["chosen", 3], "y": ("chosen",)}
    started = {event.task_id for event in recorded.of(TaskExecutionStarted)}
    assert chosen._uuid in started
    assert other._uuid not in started
    with pytest.raises(ValueError, match="no matching route found"):
        await recorded.run(show([cs.Router(load("c"), {"a": load(1)})]))


async def async_items() -> Any:
    yield load(1)


HIDDEN: list[tuple[Callable[[], Any], str]] = [
    (lambda: {load(1)}, "a lazy result is in a set"),
    (lambda: frozenset([load(1)]), "a lazy result is in a frozenset"),
    ({"a": load(1)}.values, "a lazy result is in a dict_values"),
    ({load(1): "a"}.keys, "a lazy result is in a dict_keys"),
    ({"a": load(1)}.items, "a lazy result is in a dict_items"),
    (lambda: {(1, load(1))}, "a lazy result is in a set"),
    (lambda: (load(n) for n in range(3)), r"an iterator \(generator\)"),
    (lambda: map(load, [1, 2]), r"an iterator \(map\)"),
    (lambda: filter(None, [1]), r"an iterator \(filter\)"),
    (lambda: zip([load(1)], [2], strict=True), r"an iterator \(zip\)"),
    (lambda: enumerate([load(1)]), r"an iterator \(enumerate\)"),
    (lambda: iter([load(1)]), r"an iterator \(list_iterator\)"),
    (lambda: itertools.chain([load(1)]), r"an iterator \(chain\)"),
    (async_items, r"an iterator \(async_generator\)"),
]


@pytest.mark.parametrize(("make", "text"), HIDDEN)
async def test_an_argument_that_hides_a_lazy_result_is_refused_at_the_call(
    recorded: RecordedEngine, make: Callable[[], Any], text: str
) -> None:
    with pytest.raises(TypeError, match=rf"Task 'show': argument '0': {text}.*give a list"):
        show(make())
    with pytest.raises(TypeError, match=rf"Task 'show': argument 'x': {text}.*give a list"):
        show(x=make())
    for nested in ([make()], {"k": (make(),)}, Data(make()), types.SimpleNamespace(a=make())):
        with pytest.raises(TypeError, match=rf"Task 'show': argument '0': {text}.*give a list"):
            await recorded.run(show(nested))
    assert recorded.recorder.events == []


async def test_a_resource_in_a_container_is_refused(recorded: RecordedEngine) -> None:
    with pytest.raises(TypeError, match=r"cs\.inject\('db'\) is in a container; make it an argument of its own"):
        await recorded.run(show([cs.inject("db")]))


class Cursor:
    def __iter__(self) -> "Cursor":
        return self

    def __next__(self) -> int:
        raise AssertionError("not for the engine")


@pytest.mark.parametrize(
    "make", [lambda: {1}, lambda: frozenset([(1, 2)]), {"a": 1}.values, lambda: io.StringIO("a"), Cursor, object, range]
)
async def test_another_value_without_lazy_results_passes(recorded: RecordedEngine, make: Callable[..., Any]) -> None:
    value = make(3) if make is range else make()
    assert (await recorded.run(show(value))).value is value
    assert (await recorded.run(show([value, load(1)]))).value[0] is value


def sync(make: Callable[[], Any]) -> Any:
    return make()


async def in_loop(make: Callable[[], Any]) -> Any:
    return make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: load(1),
        lambda: load.map(x=[1]),
        lambda: cs.Router(load(1), {1: load(2)}),
        lambda: [load(1), 2],
        lambda: (1, [load(1)]),
        lambda: {"a": {"b": load(1)}},
        lambda: {load(1)},
        lambda: Pair(load(1)),
        lambda: collections.deque([load(1)]),
        lambda: {load(1): "a"},
        lambda: collections.defaultdict(None, a=load(1)),
        lambda: items(load(1)),
        lambda: point(load(1)),
        lambda: Data(load(1)),
        lambda: [types.SimpleNamespace(a=load(1))],
    ],
)
@pytest.mark.parametrize("function", [sync, in_loop])
@pytest.mark.parametrize("threaded", [True, False])
async def test_a_task_does_not_return_a_lazy_result(
    recorded: RecordedEngine, function: Callable[..., Any], make: Callable[[], Any], threaded: bool
) -> None:
    outer: Any = cs.task(function, name="outer", threaded=threaded)

    @cs.task
    async def nested() -> Any:
        return await run_nested(outer(make))

    for target in (outer(make), outer.map(make=[make]), outer(make).with_retry(1), nested()):
        with pytest.raises(
            TypeError, match=r"Task 'outer' returned a (lazy result of task 'load'|Router), which nothing"
        ):
            await recorded.run(target)


async def test_a_cache_does_not_return_a_lazy_result(recorded: RecordedEngine) -> None:
    class Cache:
        def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
            return [load(1)]

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...

    for target in (load(2).with_cache(Cache()), load.map(x=[2]).with_cache(Cache())):
        with pytest.raises(TypeError, match=r"The cache of task 'load' returned a lazy result of task 'load'"):
            await recorded.run(target)


HOSTILE_BASES: list[Any] = [list, tuple, dict, set, frozenset, collections.deque, collections.OrderedDict]


@pytest.mark.parametrize("base", HOSTILE_BASES)
async def test_no_method_of_a_subclass_of_a_container_is_called(recorded: RecordedEngine, base: Any) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("a method of the subclass was called")

    names = ("__iter__", "__len__", "__length_hint__", "__bool__", "__eq__", "__contains__", "__repr__", "__getitem__")
    kind = type("Hostile", (base,), dict.fromkeys((*names, "keys", "values", "items"), refuse) | {"__hash__": refuse})
    value = kind()
    give: Any = cs.task(lambda: value, name="give", threaded=False)
    assert (await recorded.run(show(value))).value is value
    assert (await recorded.run(show([value, load(1)]))).value[0] is value
    assert (await recorded.run(show(x={"k": value}))).value["k"] is value
    assert (await recorded.run(show(give()))).value is value
    assert (await recorded.run(show.map(x=[value])))[0].value is value
    assert (await recorded.run(show(cs.Param("p")), {"p": value})).value is value


async def test_no_descriptor_of_a_dataclass_is_read(recorded: RecordedEngine) -> None:
    """As in a class of an object-relational mapper, where reading an attribute may run a query."""

    class Query:
        def __get__(self, instance: object, owner: type) -> Any:
            if instance is None:
                return self
            raise AssertionError("the attribute was read")

    def refuse(*_: object) -> Any:
        raise AssertionError("an attribute was read")

    kind: Any = dataclasses.make_dataclass("Row", ["a", ("b", Any, dataclasses.field(init=False, repr=False))])
    kind.b, kind.c, kind.__getattr__ = Query(), property(refuse), refuse
    value = kind(1)
    kind.__getattribute__ = refuse
    give: Any = cs.task(lambda: value, name="give", threaded=False)
    assert (await recorded.run(show([value]))).value[0] is value
    assert (await recorded.run(show(give()))).value is value


async def test_a_long_result_is_not_searched_to_its_end(recorded: RecordedEngine) -> None:
    class Watched(list[int]):
        def __iter__(self) -> Iterator[int]:
            raise AssertionError("a value is not read")

    assert await recorded.run(load([0] * 200_000)) == [0] * 200_000
    assert type(await recorded.run(cs.task(lambda: Watched([1]), name="watched", threaded=False)())) is Watched


@pytest.mark.parametrize("value", [lambda: load(1), lambda: [load(1)]])
async def test_a_parameter_is_not_a_lazy_result(recorded: RecordedEngine, value: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="Parameter 'p' is a lazy result of task 'load'"):
        await recorded.run(show(cs.Param("p")), {"p": value()})
    with pytest.raises(TypeError, match="Parameter 'q' is a lazy result of task 'load'"):
        await recorded.run(show(cs.Param("q", default=value())))
    with pytest.raises(TypeError, match="Environment variable 'UNSET' is a lazy result of task 'load'"):
        await recorded.run(show(cs.Env("UNSET", default=value())))
    assert recorded.of(TaskExecutionStarted) == []


def plain_resource() -> Iterator[Any]:
    try:
        yield load(1)
    finally:
        closed.append("plain")


async def async_resource() -> Any:
    try:
        yield [load(1)]
    finally:
        closed.append("async")


closed: list[str] = []


@pytest.mark.parametrize(("function", "kind"), [(plain_resource, "plain"), (async_resource, "async")])
async def test_a_resource_is_not_a_lazy_result(
    recorded: RecordedEngine, function: Callable[..., Any], kind: str
) -> None:
    resource = cs.resource(name="db")(function)
    closed.clear()
    with pytest.raises(TypeError, match="Resource 'db' is a lazy result of task 'load'"):
        await recorded.run(show(cs.inject(resource)))
    assert closed == [kind]


async def test_a_lazy_result_in_an_object_of_another_class_is_not_replaced(recorded: RecordedEngine) -> None:
    class Box:
        def __init__(self, content: Any) -> None:
            self.content = content

    lazy = load(1)
    assert (await recorded.run(cs.task(lambda box: box.content is lazy, name="look")(Box(lazy)))) is True
