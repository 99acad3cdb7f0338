"""Unmapped arguments of a map: one value for all items."""

import asyncio
import gc
import json
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.graph.build import build_graph
from cascade.runtime._map_items import zip_items
from cascade.runtime.events import TaskExecutionStarted
from cascade.spec.lazy_types import MappedLazyResult
from cascade.testing import MemoryConnector
from tests.lab.extras import needs
from tests.runtime.conftest import RecordedEngine


def pair(x: Any, mode: Any = None) -> tuple[Any, Any]:
    return x, mode


async def pair_in_loop(x: Any, mode: Any = None) -> tuple[Any, Any]:
    await asyncio.sleep(0)
    return x, mode


TASKS = {
    "threaded": cs.task(pair),
    "inline": cs.task(pair, threaded=False),
    "coroutine": cs.task(pair_in_loop, name="pair"),
}
KINDS = pytest.mark.parametrize("kind", TASKS)


class Plain:
    pass


CONSTANTS: list[Any] = ["r", b"r", bytearray(b"r"), {"a": 1}, [1, 2, 3], {1, 2}, None, 5, Plain(), Plain, range(3), ()]


@KINDS
@pytest.mark.parametrize("constant", CONSTANTS, ids=lambda value: type(value).__name__)
async def test_each_item_gets_the_same_object(recorded: RecordedEngine, kind: str, constant: Any) -> None:
    target = TASKS[kind].map(x=[1, 2, 3], mode=cs.unmapped(constant))
    for _ in range(2):
        values = await recorded.run(target)
        assert [x for x, _ in values] == [1, 2, 3]
        assert all(mode is constant for _, mode in values)


@KINDS
async def test_the_value_of_a_lazy_result_is_passed_as_a_whole(recorded: RecordedEngine, kind: str) -> None:
    values = [7, 8]
    make = cs.task(lambda: values, name="make")
    for lazy in (make(), TASKS[kind].map(x=[7, 8])):
        expected = values if lazy.task_name == "make" else [(7, None), (8, None)]
        found = await recorded.run(TASKS[kind].map(x=[1, 2, 3], mode=cs.unmapped(lazy)))
        assert found == [(x, expected) for x in (1, 2, 3)]
        assert found[0][1] is found[2][1]


async def test_lazy_results_in_a_constant_and_routers_have_their_values(recorded: RecordedEngine) -> None:
    one, two = cs.task(lambda: 1, name="one"), cs.task(lambda: 2, name="two")
    nested = TASKS["inline"].map(x=[0, 0], mode=cs.unmapped({"a": [one()], "b": "text"}))
    found = await recorded.run(nested)
    assert found == [(0, {"a": [1], "b": "text"})] * 2
    assert found[0][1] is found[1][1]
    router = cs.Router(cs.Param("way", default="b"), {"a": one(), "b": two()})
    assert await recorded.run(TASKS["inline"].map(x=[0], mode=cs.unmapped(router))) == [(0, 2)]
    variable = cs.Env("MODE_OF_A_MAP", default="r")
    assert await recorded.run(TASKS["inline"].map(x=[0], mode=cs.unmapped(variable))) == [(0, "r")]


def test_a_resource_is_passed_to_each_item() -> None:
    set_up: list[object] = []

    @cs.resource
    def db() -> Iterator[object]:
        set_up.append(object())
        yield set_up[-1]

    values = cs.run(TASKS["threaded"].map(x=[1, 2], mode=cs.unmapped(cs.inject("db"))), resources=[db], log_level="OFF")
    assert [x for x, _ in values] == [1, 2]
    assert all(mode is set_up[0] for _, mode in values)
    assert len(set_up) == 1


async def test_the_lists_and_not_the_constants_give_the_number_of_items(recorded: RecordedEngine) -> None:
    @cs.task(threaded=False)
    def three(a: Any, b: Any, c: Any) -> Any:
        return a, b, c

    assert await recorded.run(three.map(a=[1, 2], b=cs.unmapped([7, 8, 9]), c=[3, 4])) == [
        (1, [7, 8, 9], 3),
        (2, [7, 8, 9], 4),
    ]
    assert await recorded.run(three.map(a=[], b=cs.unmapped("r"), c=[])) == []
    assert await recorded.run(three.map(a={5}, b=cs.unmapped("r"), c=cs.unmapped(None))) == [(5, "r", None)]
    with pytest.raises(ValueError, match=r"mismatched lengths of its lists \(a: 2, c: 1\)"):
        await recorded.run(three.map(a=[1, 2], b=cs.unmapped([7]), c=[3]))


async def test_positional_only_and_variadic_parameters(recorded: RecordedEngine) -> None:
    @cs.task(threaded=False)
    def positional(a: Any, b: Any, /, c: Any) -> Any:
        return a, b, c

    @cs.task(threaded=False)
    def variadic(**options: Any) -> Any:
        return list(options.items())

    assert await recorded.run(positional.map(c=[1, 2], a=cs.unmapped("a"), b=[3, 4])) == [("a", 3, 1), ("a", 4, 2)]
    assert await recorded.run(variadic.map(b=cs.unmapped(0), a=[1], c=cs.unmapped(2))) == [
        [("b", 0), ("a", 1), ("c", 2)]
    ]

    class Store:
        @cs.task
        def read(self, key: int, mode: str) -> tuple[int, str]:
            return key, mode

    assert await recorded.run(Store().read.map(key=[1, 2], mode=cs.unmapped("r"))) == [(1, "r"), (2, "r")]


async def test_a_map_with_unmapped_arguments_only_is_refused(recorded: RecordedEngine) -> None:
    text = r"each argument is unmapped \('mode', 'x'\), so that no list gives the number of calls; give one argument as a list"
    with pytest.raises(TypeError, match=rf"^pair\.map\(\): {text}"):
        TASKS["inline"].map(x=cs.unmapped([1]), mode=cs.unmapped("r"))
    with pytest.raises(TypeError, match=rf"^map\(pair\): {text}"):
        await recorded.run(MappedLazyResult(TASKS["inline"], {"x": cs.unmapped([1]), "mode": cs.unmapped("r")}))
    assert recorded.of(TaskExecutionStarted) == []


@pytest.mark.parametrize(
    "use",
    [
        lambda task: task(cs.unmapped(1)),
        lambda task: task([cs.unmapped(1)]),
        lambda task: task.map(x=[cs.unmapped(1)]),
        lambda task: task.map(x=[1], mode=cs.unmapped(cs.unmapped(1))),
    ],
    ids=["call", "nested", "item", "twice"],
)
async def test_unmapped_is_for_the_arguments_of_a_map(recorded: RecordedEngine, use: Callable[[Any], Any]) -> None:
    with pytest.raises(
        TypeError, match=r"cs\.unmapped\(\.\.\.\) is an argument of \.map\(\.\.\.\) only; give the value"
    ):
        await recorded.run(use(TASKS["inline"]))


@pytest.mark.parametrize("value", ["r", b"r", bytearray(b"r"), {"a": 1}], ids=lambda value: type(value).__name__)
async def test_a_text_bytes_or_a_dict_without_the_mark_names_the_argument_its_type_and_the_fix(
    recorded: RecordedEngine, value: Any
) -> None:
    text = rf"'mode' must be a list, got {type(value).__name__}: .*, wrap it in cs\.unmapped\(\.\.\.\)"
    with pytest.raises(TypeError, match=rf"^pair\.map\(\): {text}"):
        TASKS["inline"].map(x=[1], mode=value)
    with pytest.raises(TypeError, match=rf"^map\(pair\): {text}"):
        await recorded.run(TASKS["inline"].map(x=[1], mode=cs.task(lambda: value, name="make")()))


def test_an_iterator_or_a_generator_cannot_be_a_constant() -> None:
    with pytest.raises(TypeError, match=r"pair\.map\(\).*argument 'mode': an iterator .* can be read once only"):
        TASKS["inline"].map(x=[1], mode=cs.unmapped(iter([1])))

    @cs.task
    def numbers() -> Iterator[int]:
        yield 1

    target = TASKS["inline"].map(x=[1, 2], mode=cs.unmapped(numbers()))
    with pytest.raises(
        TypeError, match=r"'numbers' is a generator function, .* each item of map\(pair\) gets it .* 'mode'"
    ):
        build_graph(target)
    assert cs.run(TASKS["inline"].map(x=numbers(), mode=cs.unmapped("r")), log_level="OFF") == [(1, "r")]


async def test_labels_caches_and_retries_see_the_constant(recorded: RecordedEngine) -> None:
    seen: list[dict[str, Any]] = []

    class Cache:
        def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
            seen.append(inputs)

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...

    target = TASKS["inline"].map(x=[1, 2], mode=cs.unmapped("r")).with_cache(Cache())
    await recorded.run(target.with_label(lambda x, mode: f"{x}{mode}").with_retry(1).with_tags("etl"))
    assert seen == [{"x": 1, "mode": "r"}, {"x": 2, "mode": "r"}]
    labels = [event.label for event in recorded.of(TaskExecutionStarted, "pair")]
    assert labels == ["1r", "2r"]


def test_captured_arguments_have_the_constant_and_mask_its_secret_name() -> None:
    connector = MemoryConnector()
    connector.capture = frozenset({"arguments"})  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    task = cs.task(lambda x, mode, password: x, name="pair")
    target = task.map(x=[1], mode=cs.unmapped("r"), password=cs.unmapped("hunter2"))
    cs.run(target, connector=connector, log_level="OFF")
    found = [p["body"]["metadata"] for p in connector.payloads if p["body"].get("task_name") == "pair"]
    assert found[-1]["arguments"] == {"x": 1, "mode": "r", "password": "***"}
    assert "hunter2" not in json.dumps(connector.payloads)


def test_a_stored_graph_keeps_the_constants() -> None:
    upstream = cs.task(sorted)
    for constant, expected in (([1, 2], [1, 2]), ("r", "r"), (upstream([2, 1]), [1, 2])):
        target = TASK.map(x=[5, 6], mode=cs.unmapped(constant))
        stored = cs.to_json(target)
        node = json.loads(stored)["nodes"][0]
        assert node["unmapped"] == ["mode"]
        assert cs.run(cs.from_json(stored), log_level="OFF") == [(5, expected), (6, expected)]
    assert "unmapped" not in json.loads(cs.to_json(TASK.map(x=[5])))["nodes"][0]


TASK = cs.task(pair)


def test_the_plan_and_the_diagram_show_the_constant(capsys: pytest.CaptureFixture[str]) -> None:
    target = TASK.map(x=[5, 6], mode=cs.unmapped([1, 2, 3]))
    cs.dry_run(target)
    plan = capsys.readouterr().out
    assert "2 items" in plan
    assert "unmapped: mode" in plan
    assert "unmapped: mode" in cs.visualize(target)


def test_providers_and_subflows_accept_constants(tmp_path: Path) -> None:
    commands = ["exit 3", "echo a"]
    assert cs.run(cs.shell.map(command=commands, check=cs.unmapped(False)), log_level="OFF") == ["", "a"]


def test_other_factories_accept_constants() -> None:
    class Factory:
        name = "factory"

        def __call__(self, x: int, mode: str) -> Any:
            return TASK(x, mode)

        def map(self, **lists: Any) -> Any:
            return MappedLazyResult(self, lists)

    assert cs.run(Factory().map(x=[1, 2], mode=cs.unmapped("r")), log_level="OFF") == [(1, "r"), (2, "r")]


def test_a_constant_is_stored_once_and_freed_after_the_run() -> None:
    size = 20_000
    node = build_graph(TASK.map(x=list(range(size)), mode=cs.unmapped("r"))).nodes[0]
    both = build_graph(TASK.map(x=list(range(size)), mode=["r"] * size)).nodes[0]
    tracemalloc.start()
    try:
        used = []
        for one in (node, both):
            before = tracemalloc.get_traced_memory()[0]
            items = zip_items(one, one.literal_inputs)
            used.append(tracemalloc.get_traced_memory()[0] - before)
            assert items.take(size - 1) == {"x": size - 1, "mode": "r"}
            del items
    finally:
        tracemalloc.stop()
    assert used[1] - used[0] > 8 * size - 1_000

    constant = Plain()
    alive = weakref.ref(constant)
    count = cs.task(lambda x, mode: None, name="count")
    cs.run(count.map(x=[1, 2], mode=cs.unmapped(constant)), log_level="OFF")
    del constant
    gc.collect()
    assert alive() is None


@given(
    st.dictionaries(st.sampled_from("abcdefg"), st.booleans(), min_size=1),
    st.integers(0, 5),
)
def test_items_are_those_of_repeated_lists(kinds: dict[str, bool], size: int) -> None:
    """`kinds` is True for the unmapped arguments."""
    if all(kinds.values()):
        kinds["z"] = False
    task = cs.task(lambda **values: values, name="values")
    lists: dict[str, list[Any]] = {name: [name] * size if kinds[name] else list(range(size)) for name in kinds}
    marked = {name: cs.unmapped(name) if is_constant else lists[name] for name, is_constant in kinds.items()}
    items = []
    for given_lists in (lists, marked):
        node = build_graph(task.map(**given_lists)).nodes[0]
        zipped = zip_items(node, node.literal_inputs)
        items.append([list(zipped.take(index).items()) for index in range(len(zipped))])
    assert items[0] == items[1]


@needs("otel")
def test_the_trace_of_a_map_with_constants_is_that_of_lists() -> None:
    from cascade.testing import record_run

    spans = [span.name for span in record_run(TASK.map(x=[1, 2], mode=cs.unmapped("r"))).spans]
    assert sorted(spans) == sorted(span.name for span in record_run(TASK.map(x=[1, 2], mode=["r"] * 2)).spans)
