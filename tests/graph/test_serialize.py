import asyncio
import collections
import enum
import functools
import json
import typing
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cascade as cs
from cascade.graph.build import build_graph
from cascade.graph.model import Graph
from cascade.graph.serialize import graph_from_dict, graph_to_dict
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.spec.caching import NO_CACHE
from cascade.spec.lazy_types import LazyResult, MappedLazyResult


@cs.task
def add(x: Any, y: Any = 0) -> Any:
    return x + y


def plain(x: int) -> int:
    return x


@dataclass
class Box:
    content: Any


UserId = NewType("UserId", int)


def round_trip(target: Any) -> Any:
    return cs.from_json(cs.to_json(target))


def test_the_keys_are_the_contracts() -> None:
    target = add(1, y=add(2)).with_retry(2, delay=0.5).with_constraints(cpu=1)
    data = json.loads(cs.to_json(target))
    assert set(data) == {"nodes", "edges", "routers"}
    node, edge = data["nodes"][0], data["edges"][0]
    assert node["id"] == target._uuid
    assert (node["name"], node["node_type"], node["literal_inputs"]) == ("add", "task", {"0": 1})
    assert node["callable"] == {"module": __name__, "qualname": "add"}
    assert node["retry_policy"] == {"max_attempts": 2, "delay": 0.5, "backoff": 1.0}
    assert node["constraints"] == {"cpu": 1}
    assert (edge["target_id"], edge["arg_name"], edge["edge_type"]) == (target._uuid, "y", "DATA")


def test_everything_survives_the_round_trip() -> None:
    amount = add(1)
    router = cs.Router(cs.Param("mode", default="a"), {"a": add(1), "b": add(2)})
    target = add(router, y=add.map(x=[1, 2]).with_constraints(cpu=amount)).run_if(add(3))
    before = build_graph(target)
    after = cs.from_json(cs.to_json(before))
    assert graph_to_dict(after) == graph_to_dict(before)
    mapped = next(node for node in after.nodes if node.node_type == "map")
    assert mapped.mapping_factory is not None
    assert mapped.mapping_factory.name == "add"
    assert mapped.constraints is not None
    assert mapped.constraints.requirements["cpu"]._uuid == amount._uuid


def shout(x: int) -> str:
    return f"{x}!"


def test_timeouts_and_allowed_failures_survive_the_round_trip() -> None:
    target = cs.task(len)(labelled.map(x=[1]).with_timeout(2.5)).allow_failure()
    graph = graph_from_dict(graph_to_dict(build_graph(target)))
    assert [(node.timeout, node.allow_failure) for node in graph.nodes] == [(None, True), (2.5, False)]


@cs.task(label=lambda x: f"<{x}>")
def labelled(x: int) -> str | None:
    task = cs.current_task()
    return None if task is None else task.label


def test_labels_survive_the_round_trip() -> None:
    for target, label in (
        (labelled(1), "<1>"),
        (labelled(1).with_label("text"), "text"),
        (labelled(1).with_label(shout), "1!"),
    ):
        assert _label_of(round_trip(target), 1) == label
        given = build_graph(target).nodes[0].label
        assert given is not None
        assert _label_of(round_trip(labelled.map(x=[1]).with_label(given)), 1) == label
    with pytest.raises(ValueError, match="The label of task 'labelled'"):
        cs.to_json(labelled(1).with_label(lambda x: "local"))


def is_busy(error: Exception) -> bool:
    return "busy" in str(error)


def test_retry_policies_survive_the_round_trip() -> None:
    target = add(1).with_retry(2, max_delay=9, jitter=0.5, retry_on=(ConnectionError, is_busy))
    for lazy in (target, add.map(x=[1]).with_retry(1, retry_on=is_busy), add(1).with_retry(1)):
        assert round_trip(lazy).nodes[0].retry_policy == build_graph(lazy).nodes[0].retry_policy
    assert json.loads(cs.to_json(target))["nodes"][0]["retry_policy"] == {
        "max_attempts": 2,
        "delay": 0.0,
        "backoff": 1.0,
        "max_delay": 9,
        "jitter": 0.5,
        "retry_on": [
            {"module": "builtins", "qualname": "ConnectionError"},
            {"module": __name__, "qualname": "is_busy"},
        ],
    }
    with pytest.raises(ValueError, match=r"retry_on of task 'add': .*<lambda>"):
        cs.to_json(add(1).with_retry(1, retry_on=lambda error: True))


class Cache:
    """A cache without values."""

    def check(self, task_id: str, inputs: dict[str, Any]) -> Any: ...
    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...


@cs.task(
    retries=2,
    retry_on=lambda error: "busy" in str(error),
    timeout=30,
    cache=Cache(),
    constraints={"cpu": 1},
    label=lambda x: f"<{x}>",
    tags=["etl"],
)
def with_options(x: int) -> int:
    return x


def options_of(target: Any) -> list[Any]:
    node = (target if isinstance(target, Graph) else build_graph(target)).nodes[0]
    return [node.retry_policy, node.timeout, node.cache_policy, node.constraints, node.label, node.tags]


@pytest.mark.parametrize("make", [lambda: with_options(1), lambda: with_options.map(x=[1])], ids=["call", "map"])
def test_the_options_of_a_task_survive_the_round_trip(make: Callable[[], Any]) -> None:
    assert options_of(round_trip(make())) == options_of(make())
    assert None not in options_of(make())
    off = make().with_retry(0).with_timeout(None).with_cache(None).with_constraints().with_label(None).with_tags()
    assert options_of(round_trip(off)) == [None, None, NO_CACHE, None, "", ()]
    other = make().with_retry(1).with_timeout(5).with_cache(Cache()).with_constraints(gpu=1).with_tags("a", "b")
    expected = options_of(other)
    expected[2] = None  # a cache of a call is an object of the process
    assert options_of(round_trip(other.with_label("two"))) == [*expected[:4], "two", ("a", "b")]
    assert cs.run(round_trip(make()), log_level="OFF") in (1, [1])


def test_the_keys_of_the_options_in_json() -> None:
    data = json.loads(cs.to_json(with_options(1)))["nodes"][0]
    assert data["retry_policy"] == {"max_attempts": 2, "delay": 0.0, "backoff": 1.0, "retry_on": "task"}
    assert (data["timeout"], data["cache_policy"], data["constraints"], data["tags"]) == (
        30,
        "task",
        {"cpu": 1},
        ["etl"],
    )
    assert "label" not in data
    assert json.loads(cs.to_json(with_options(1).with_cache(None)))["nodes"][0]["cache_policy"] is False
    plain_keys = json.loads(cs.to_json(add(1)))["nodes"][0].keys()
    assert plain_keys.isdisjoint({"retry_policy", "timeout", "cache_policy", "constraints", "tags", "label"})


def _label_of(graph: Graph, x: int) -> Any:
    label = graph.nodes[0].label
    return label(x) if callable(label) else label


def test_a_task_is_unwrapped_to_its_function() -> None:
    assert round_trip(add(1)).nodes[0].callable_obj is add.func


def test_a_restored_graph_runs() -> None:
    router = cs.Router(cs.Param("mode", default="b"), {"a": add(1), "b": add(2)})
    target = cs.task(plain)(add(router, y=cs.task(sum_of)([add(3), 4])))
    assert run(round_trip(target)) == 9


def sum_of(parts: list[int]) -> int:
    return sum(parts)


class Color(enum.Enum):
    RED = ("r", 1)


class Level(enum.IntEnum):
    HIGH = 3


class Flags(enum.Flag):
    A = 1
    B = 2


class Pair(NamedTuple):
    left: Any
    right: Any


class Items(list[Any]):
    pass


@dataclass(frozen=True, slots=True)
class Frozen:
    content: Any


@dataclass
class Derived:
    content: Any
    size: int = field(init=False)
    given: InitVar[int] = 0

    def __post_init__(self, given: int) -> None:
        self.size = given


atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=5)
    | st.sampled_from(
        [Color.RED, Level.HIGH, Flags.A | Flags.B, Path("a/b"), PurePosixPath("/"), PureWindowsPath("c:")]
    )
    | st.dates()
    | st.times(timezones=st.sampled_from([None, UTC]))
    | st.datetimes(timezones=st.sampled_from([None, UTC]))
    | st.decimals(allow_nan=False)
    | st.uuids()
)


def containers(inner: Any) -> Any:
    keys = st.text() | st.integers() | st.sampled_from(["__tuple", "__lazy_ref", "__subclass", Color.RED])
    dicts = st.dictionaries(keys, inner, max_size=3)
    lists = st.lists(inner, max_size=3)
    return st.one_of(
        *(lists, st.tuples(inner, inner), dicts, st.builds(Box, inner), st.builds(Frozen, inner)),
        *(st.builds(Derived, inner, given=st.integers()), st.builds(Pair, inner, inner), st.builds(Items, lists)),
        *(lists.map(collections.deque), dicts.map(collections.OrderedDict)),
        *(st.frozensets(st.integers() | st.text(), max_size=3), st.sets(st.integers() | st.text(), max_size=3)),
        st.dictionaries(st.text(), st.integers(), max_size=3).map(collections.Counter),
    )


literals = st.recursive(atoms, containers, max_leaves=10)


@given(literals)
def test_literals_survive_the_round_trip(value: Any) -> None:
    restored = round_trip(add(value)).nodes[0].literal_inputs["0"]
    assert restored == value
    assert kinds(restored) == kinds(value)


def kinds(value: Any) -> Any:
    """The types in a value, which `==` does not compare."""
    if isinstance(value, dict):
        return type(value), [(kinds(key), kinds(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, collections.deque)):
        return type(value), [kinds(item) for item in value]
    if isinstance(value, (Box, Frozen, Derived)):
        return type(value), kinds(value.content)
    return type(value)


@cs.task(threaded=False)
def collect(*args: Any, **kwargs: Any) -> Any:
    return args, list(kwargs.items())


@cs.task(threaded=False)
def positional(a: Any, b: Any = 0, /, **kwargs: Any) -> Any:
    return a, b, kwargs


names = st.sampled_from(["0", "1", "2024", "**0", "x", "self", "_condition", "\u00b2"])


def calls(upstream: Any) -> Any:
    lists = st.lists(upstream, min_size=2, max_size=2)
    arguments = st.one_of(
        upstream,
        *(upstream.map(lambda x: [x]), upstream.map(pair_of), upstream.map(Frozen), upstream.map(lambda x: {"k": x})),
        upstream.map(lambda x: cs.Router(add("", "k"), {"k": as_lazy(x), "j": add(1)})),
        upstream.map(lambda x: [cs.Router(add("", "k"), {"k": as_lazy(x)})]),
    )
    return st.one_of(
        st.builds(
            lambda args, kwargs: collect(*args, **kwargs),
            st.lists(arguments, max_size=3),
            st.dictionaries(names, arguments, max_size=3),
        ),
        st.builds(lambda kwargs: collect.map(**kwargs), st.dictionaries(names, lists, min_size=1, max_size=3)),
        st.builds(lambda a, b: positional.map(a=a, b=b), lists, lists),
    )


def pair_of(value: Any) -> Pair:
    return Pair(1, value)


def as_lazy(value: Any) -> Any:
    return (
        value
        if isinstance(value, (cs.LazyResult, MappedLazyResult))
        else add(0, value)
        if value == 0
        else collect(value)
    )


workflows = st.recursive(st.integers(0, 9), calls, max_leaves=6).filter(lambda t: not isinstance(t, int))


@settings(max_examples=50)
@given(workflows)
def test_a_restored_workflow_has_the_same_value(target: Any) -> None:
    before = build_graph(target)
    after = cs.from_json(cs.to_json(before))
    assert graph_to_dict(after) == graph_to_dict(before)
    assert run(after) == run(target)


def run(target: Any) -> Any:
    return asyncio.run(Engine(cs.NativeSolver(), cs.LocalExecutor(), MessageBus()).run(target))


def test_a_literal_without_a_json_form_is_named() -> None:
    with pytest.raises(TypeError, match=r"'add'.*'y'.*object"):
        cs.to_json(add(1, y=object()))


class Method:
    def method(self) -> None: ...

    @classmethod
    def of_class(cls) -> None: ...

    @staticmethod
    def static() -> None: ...

    def __call__(self) -> None: ...

    @cs.task
    def task(self) -> None: ...


instance: Any = Method()


def shadowed() -> None: ...


def other() -> None: ...


other.__qualname__ = "shadowed"


def local() -> Any:
    def function() -> None: ...

    return function


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda: 1, r"lambda.*top of a module"),
        (local(), "local.*top of a module"),
        (functools.partial(plain, 1), "partial is another object"),
        (instance.method, r"Method\.method is another object"),
        (instance, "Method is another object"),
        (other, "shadowed is another object"),
        (Method().task.func, r"Method\.task is another object"),
    ],
)
def test_to_json_names_a_function_that_cannot_be_imported(function: Any, text: str) -> None:
    task: Any = cs.task(function, name="mine")
    with pytest.raises(ValueError, match=rf"^Task 'mine': .*{text}"):
        cs.to_json(task() if function != plain else task(1))


def test_to_json_names_the_map_of_a_function_that_cannot_be_imported() -> None:
    with pytest.raises(ValueError, match=r"^Map 'map\(mine\)': .*lambda"):
        cs.to_json(cs.task(lambda x: x, name="mine").map(x=[1]))


@pytest.mark.parametrize("function", [len, dict, Method.of_class, Method.static, Method, functools.partial, shadowed])
def test_an_importable_function_is_the_same_object(function: Any) -> None:
    node = round_trip(LazyResult(cs.task(function), (), {})).nodes[0]
    assert node.callable_obj == function


def test_a_task_of_a_class_is_stored_when_its_instance_is_an_argument() -> None:
    assert round_trip(Method.task(cs.Param("instance"))).nodes[0].callable_obj is Method.task.func


async def test_the_items_of_a_restored_map_have_the_name_of_its_task() -> None:
    node = round_trip(cs.task(plain, name="other").map(x=[1])).nodes[0]
    assert (node.name, node.mapping_factory.name) == ("map(other)", "other")


def test_to_json_names_a_local_class() -> None:
    @dataclass
    class Local:
        a: int

    with pytest.raises(ValueError, match=r"^Node 'add': argument '0': .*Local.*top of a module"):
        cs.to_json(add(Local(1)))


def test_a_literal_that_contains_itself_has_no_json_form() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="Node 'add': argument '0' contains itself"):
        cs.to_json(add(loop))


@pytest.mark.parametrize("value", [collections.defaultdict(list), collections.deque([1], maxlen=2)])
def test_a_container_with_attributes_has_no_json_form(value: Any) -> None:
    with pytest.raises(TypeError, match=r"argument '0' is a (deque|defaultdict) with attributes"):
        cs.to_json(add(value))


def test_a_time_of_a_named_zone_has_no_json_form() -> None:
    class Zone(tzinfo):
        def utcoffset(self, moment: datetime | None) -> timedelta:
            return timedelta(hours=1)

        dst = utcoffset

        def tzname(self, moment: datetime | None) -> str:
            return "mine"

    moment = datetime(2026, 1, 2, tzinfo=Zone())
    with pytest.raises(TypeError, match="argument '0' is a datetime, which has no JSON form"):
        cs.to_json(add(moment))


@pytest.mark.parametrize(
    "stored", [{"type": "nonsense", "text": "1"}, {"type": "Decimal", "text": "x"}, {"type": "UUID"}]
)
def test_a_stored_text_that_cannot_be_restored_is_refused(stored: Any) -> None:
    data = graph_to_dict(build_graph(add(1)))
    data["nodes"][0]["literal_inputs"]["0"] = {"__text": stored}
    with pytest.raises(ValueError, match="is not a stored text"):
        graph_from_dict(data)


def test_the_repr_of_the_content_of_a_set_is_not_called() -> None:
    assert round_trip(add({1, "a", (2, 3)})).nodes[0].literal_inputs == {"0": {1, "a", (2, 3)}}


def test_the_keys_of_a_router_survive_the_round_trip() -> None:
    routes: dict[Any, Any] = {"2": add("text"), 2: add("number"), True: add("flag"), None: add("none")}
    routes |= {(1, "a"): add("tuple"), Color.RED: add("enum"), 0.5: add("share"), "true": add("word")}
    graph = round_trip(add(cs.Router(cs.Param("key", type=Any), routes)))
    (router,) = {id(edge.router): edge.router for edge in graph.edges if edge.router is not None}.values()
    assert {key: route._uuid for key, route in router.routes.items()} == {k: r._uuid for k, r in routes.items()}
    assert list(map(type, router.routes)) == list(map(type, routes))
    data = json.loads(cs.to_json(add(cs.Router(add(1), {"a": add(1), 2: add(2)}))))
    assert list(data["routers"][0]["routes"]) == ["a", "2"]


@pytest.mark.parametrize(
    "text", ["[]", "{}", "1", "no JSON", '{"nodes": [{}], "edges": []}', '{"nodes": [], "edges": [{"source_id": "a"}]}']
)
def test_a_text_that_is_not_a_graph_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a graph that to_json has written|Expecting value|no such node"):
        cs.from_json(text)


def test_an_edge_needs_its_nodes() -> None:
    data = graph_to_dict(build_graph(add(add(1))))
    data["edges"][0]["source_id"] = "unknown"
    with pytest.raises(ValueError, match="source_id of an edge is 'unknown'"):
        graph_from_dict(data)


@pytest.mark.parametrize(
    ("kind", "restored"),
    [
        *((kind, kind) for kind in (str, int, bool, dict, Any, Path, date, Color, Box, UserId, Literal["a", 1])),
        *((kind, kind) for kind in (list[int], dict[str, list[Color]], tuple[int, ...], int | None, list[Path] | str)),
        (Optional[Path], Path | None),  # noqa: UP045
        (typing.Dict, dict),  # noqa: UP006
        (Annotated[int, "seconds"], int),
        (None, type(None)),
    ],
    ids=str,
)
def test_a_param_keeps_its_type(kind: Any, restored: Any) -> None:
    (node,) = round_trip(cs.Param("p", type=kind, description="what it is")).nodes
    assert node.param_spec == cs.ParamSpec("p", None, "what it is", restored)


def test_an_input_keeps_its_default() -> None:
    assert round_trip(cs.Param("p", 5, int)).nodes[0].param_spec == cs.ParamSpec("p", 5, "", int)
    assert round_trip(cs.Env("E", "x", "why")).nodes[0].param_spec == cs.EnvSpec("E", "x", "why")


def test_a_type_without_a_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="Param 'p': the type 5 has no JSON form"):
        cs.to_json(cs.Param("p", type=5))


@pytest.mark.parametrize("kind", ["Path", "print", {"module": "no.such", "qualname": "X"}, {"nonsense": 1}, None])
def test_a_stored_type_that_cannot_be_restored_is_refused(kind: Any) -> None:
    data = graph_to_dict(build_graph(cs.Param("p")))
    data["nodes"][0]["param_spec"]["type"] = kind
    with pytest.raises(ValueError, match=r"type|no\.such"):
        graph_from_dict(data)


def test_a_local_class_cannot_be_the_type_of_a_stored_param() -> None:
    class Local: ...

    with pytest.raises(ValueError, match=r"Param 'p': Cannot import .*Local"):
        cs.to_json(cs.Param("p", type=Local))
