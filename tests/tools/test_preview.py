from typing import Any, Literal

import pytest

import cascade as cs
from cascade.adapters.caching import FileExistenceCache
from cascade.graph.build import build_graph
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import Event
from cascade.tools.events import PlanAnalysisFinished, PlanAnalysisStarted, PlanNodeInspected
from cascade.tools.preview import _analyze_plan


@cs.task
def add(x: Any, y: Any = 0) -> int:
    raise AssertionError("a dry run runs nothing")


@cs.task
def identities(x: Any, y: Any = 0) -> Any:
    return [x]


def test_it_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    cs.dry_run(add(cs.task(lambda: 1, name="one")(), y=5))
    assert capsys.readouterr().out.splitlines() == [
        "--- Cascade Execution Plan (Dry Run) ---",
        "[1/2] one (Literals: {})",
        "[2/2] add (Literals: {'y': 5})",
        "-" * 40,
    ]


def test_control_characters_of_names_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    cs.dry_run(cs.task(lambda: 1, name="a\x1b[2J\nb")())
    assert capsys.readouterr().out.splitlines()[1] == "[1/1] a\\x1b[2J\\nb (Literals: {})"


def test_the_analysis_is_a_sequence_of_events() -> None:
    bus, seen, target = MessageBus(), list[Event](), add(1)
    bus.subscribe(Event, seen.append)
    _analyze_plan(target, bus)
    assert [type(event) for event in seen] == [PlanAnalysisStarted, PlanNodeInspected, PlanAnalysisFinished]
    inspected = seen[1]
    assert isinstance(inspected, PlanNodeInspected)
    assert (inspected.index, inspected.total_nodes, inspected.node_id) == (1, 1, target._uuid)


def test_a_cycle_is_found() -> None:
    first = add(1)
    first.args = (add(first),)
    with pytest.raises(ValueError, match="cycle"):
        cs.dry_run(first)


def test_secrets_of_names_and_literals_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    def login(user: object, password: str, api_key: str = "") -> None: ...

    name = "login postgres://u:hunter2X9@h"
    cs.dry_run(cs.task(login, name=name)({"pin": 1234}, "hunter2X9", api_key="hunter2X9"))
    shown = capsys.readouterr().out.splitlines()[1]
    assert shown == "[1/1] login postgres://***@h (Literals: {'0': {'pin': ***}, '1': '***', 'api_key': '***'})"


def plan(target: object, capsys: pytest.CaptureFixture[str]) -> list[str]:
    cs.dry_run(target)
    return capsys.readouterr().out.splitlines()[1:-1]


def test_inputs_have_their_names_types_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    kinds: list[Any] = [int, Literal["a", "b"], list[str], int | None]
    count, mode, names, limit = (cs.Param(name, type=kind) for name, kind in zip("abcd", kinds, strict=True))
    target = add(add(count, mode), add(names, [limit, cs.Env("HOME_TOWN", "x"), cs.Param("size", 3, int, "in m")]))
    shown = plan(target, capsys)
    inputs = {line.split()[1]: text.strip() for line, text in zip(shown[:12:2], shown[1:12:2], strict=True)}
    assert inputs == {
        "HOME_TOWN": "env: default 'x'",
        "a": "param: int, required",
        "b": "param: Literal['a', 'b'], required",
        "c": "param: list[str], required",
        "d": "param: int | None",
        "size": "param: int, default 3, in m",
    }
    assert "{'1': [<Param d>, <Env HOME_TOWN>, <Param size>]}" in "".join(shown)


def test_secret_defaults_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(add(cs.Param("api_token", "hunter2X9")), capsys)
    assert shown[1] == "      param: str, default ***"


def test_maps_have_the_number_of_their_items(capsys: pytest.CaptureFixture[str]) -> None:
    ones = cs.task(lambda: [1], name="ones")()
    assert plan(add.map(x=[1, 2]), capsys) == ["[1/1] map(add) (Literals: {'x': [1, 2]})", "      map of add: 2 items"]
    assert plan(add.map(x=ones), capsys)[1:] == ["[2/2] map(add) (Literals: {})", "      map of add: items of ones"]
    assert plan(add.map(x=ones, y=[1]), capsys)[2] == "      map of add: 1 item"
    assert plan(cs.task(lambda: 1, name="one").map(), capsys)[1] == "      map of one: 0 items"


def test_maps_have_their_constants(capsys: pytest.CaptureFixture[str]) -> None:
    ones = cs.task(lambda: [1], name="ones")()
    read = cs.task(lambda path, mode, columns, token: path, name="read")
    constants = {"mode": cs.unmapped("r"), "columns": cs.unmapped(ones), "token": cs.unmapped("hunter2X9")}
    target = read.map(path=["a", "b"], **constants)
    assert plan(target, capsys)[1:] == [
        "[2/2] map(read) (Literals: {'path': ['a', 'b'], 'mode': 'r', 'token': '***'})",
        "      map of read: 2 items",
        "      unmapped: columns=ones, mode='r', token=***",
    ]
    assert r"\n2 items\nunmapped: columns=ones, mode='r', token=***" in cs.visualize(target)
    restored = cs.from_json(cs.to_json(identities.map(x=identities(1), y=cs.unmapped([1, 2]))))
    assert plan(restored, capsys)[2:] == ["      map of identities: items of identities", "      unmapped: y=[1, 2]"]


def test_decisions_amounts_and_options_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third, fourth = (cs.task(lambda: 1, name=name)() for name in ("choose", "short", "long", "is_new"))
    router = cs.Router(first, {"s": second, 2: third})
    target = add(router).run_if(fourth).with_constraints(cpu=2, gpu=cs.Param("gpu", 1, int))
    target.with_retry(3, delay=1, backoff=2, max_delay=30, jitter=0.5).with_cache(FileExistenceCache(".")).with_label(
        "x"
    )
    assert plan(target, capsys)[-7:] == [
        "[6/6] add (Literals: {})",
        "      route via 0: choose selects 's' -> short, 2 -> long",
        "      run_if: is_new",
        "      constraints: cpu=2, gpu=gpu",
        "      retries: 3, delay 1 s, backoff 2, max_delay 30 s, jitter 0.5",
        "      cache: FileExistenceCache",
        "      label: x",
    ]


def test_options_of_a_task_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    options: Any = {"timeout": 30, "label": lambda x: x, "tags": ["etl", "token=hunter2X9"], "cache": False}
    task = cs.task(retries=2, retry_on=(OSError, lambda error: True), **options)(add.func)
    expected = [
        "      retries: 2, on OSError, a function",
        "      timeout: 30 s",
        "      allow_failure",
        "      cache: none",
        "      label: by a function",
        "      tags: etl, token=***",
    ]
    assert plan(task(1).allow_failure(), capsys)[1:] == expected
    assert plan(task.map(x=[1]).allow_failure(), capsys)[2:] == expected
    assert plan(task(1).with_label(repr).with_retry(0), capsys)[1:] == [
        *expected[1:2],
        expected[3],
        "      label: by repr",
        expected[5],
    ]


def test_several_targets_have_one_plan(capsys: pytest.CaptureFixture[str]) -> None:
    first = add(1)
    lines = ["[1/2] add (Literals: {'0': 1})", "[2/2] add (Literals: {'y': 2})"]
    assert plan({"a": first, "b": [add(first, y=2)]}, capsys) == lines
    assert plan([], capsys) == []


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


def test_long_and_broken_values_are_truncated(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = plan(add("x" * 10_000, y=Unprintable()), capsys)
    assert line == f"[1/1] add (Literals: {{'0': '{'x' * 199}…, 'y': <Unprintable>}})"


def test_a_graph_is_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    target = add(1)
    assert plan(build_graph(target), capsys) == plan(target, capsys)
