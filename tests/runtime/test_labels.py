"""Labels of calls and items: label functions, and where labels appear."""

import asyncio
import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cascade as cs
from cascade.messaging.bus import MessageStore
from cascade.testing import MemoryConnector
from tests.lab.waiting import until_blocking


def labels(target: Any, **options: Any) -> list[str | None]:
    """Run, and return the labels of the terminal messages of tasks and items, in the order of their ends."""
    connector = MemoryConnector()
    cs.run(target, connector=connector, log_level="OFF", **options)
    bodies = [payload["body"] for payload in connector.payloads]
    ended = [body for body in bodies if body.get("state") in {"COMPLETED", "FAILED", "SKIPPED"}]
    return [body["metadata"].get("label") for body in ended if body["metadata"]["kind"] == "task"]


def own() -> str | None:
    task = cs.current_task()
    assert task is not None
    return task.label


@cs.task(label=lambda path: path.name)
def threaded(path: Path, mode: str = "r") -> str | None:
    return own()


@cs.task(label=lambda path: path.name, threaded=False)
def inline(path: Path, mode: str = "r") -> str | None:
    return own()


@cs.task(label=lambda path: path.name)
async def coroutine(path: Path, mode: str = "r") -> str | None:
    await asyncio.sleep(0)
    return own()


KINDS = pytest.mark.parametrize("kind", [threaded, inline, coroutine])


@KINDS
def test_a_function_names_a_call_by_its_arguments(kind: Any) -> None:
    connector = MemoryConnector()
    path = cs.task(lambda: Path("data/a.csv"), name="find")()
    assert cs.run(kind(path, mode="w"), connector=connector, log_level="OFF") == "a.csv"
    bodies = [p["body"] for p in connector.payloads if p["body"].get("task_name") == kind.name]
    assert [(body["state"], body["metadata"]["label"]) for body in bodies] == [
        ("RUNNING", "a.csv"),
        ("COMPLETED", "a.csv"),
    ]


@KINDS
def test_a_function_names_each_item_of_a_map(kind: Any) -> None:
    paths = [Path("a.csv"), Path("sub/b.csv")]
    assert cs.run(kind.map(path=paths), log_level="OFF") == ["a.csv", "b.csv"]
    found = cs.task(lambda: paths, name="find")()
    assert sorted(map(str, labels(kind.map(path=found)))) == ["None", "a.csv", "b.csv"]


@KINDS
def test_the_chain_method_replaces_the_label_of_the_task(kind: Any) -> None:
    assert cs.run(kind(Path("a.csv")).with_label("by hand"), log_level="OFF") == "by hand"
    parts = kind.map(path=[Path("a.csv"), Path("b.txt")]).with_label(lambda path: path.suffix)
    assert cs.run(parts, log_level="OFF") == [".csv", ".txt"]
    assert cs.run(kind.map(path=[Path("a.csv")] * 2).with_label("text"), log_level="OFF") == ["text", "text"]


def test_a_task_without_a_label_has_none() -> None:
    connector = MemoryConnector()
    assert cs.run(cs.task(own)(), connector=connector, log_level="OFF") is None
    assert all("label" not in payload["body"]["metadata"] for payload in connector.payloads)


def two(a: str, b: str = "second", *, c: str = "third") -> str | None:
    return own()


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (lambda a, b: f"{a}-{b}", "x-second"),
        (lambda c, a: f"{a}-{c}", "x-third"),
        (lambda other: other, "x"),
        (lambda a, /: a, "x"),
        (lambda *args, **kwargs: f"{args} {kwargs}", "('x',) {}"),
        (lambda b, **rest: f"{b} {rest}", "second {'a': 'x'}"),
        (lambda **named: str(named), "{'a': 'x'}"),
        (lambda a, *rest, c="own": f"{a}{rest}{c}", "x()own"),
        (lambda: "none", "none"),
        (lambda a, more="default": a + more, "xdefault"),
        (str.upper, "X"),
        ("<{}>".format, "<x>"),
    ],
)
def test_a_function_gets_the_arguments_that_its_parameters_name(label: Any, expected: str) -> None:
    assert cs.run(cs.task(two, label=label)("x"), log_level="OFF") == expected


@pytest.mark.parametrize("label", [str, "<{}>".format, lambda a: f"{a}"])
def test_a_label_of_an_item_needs_no_signature(label: Any) -> None:
    assert cs.run(cs.task(two, label=label).map(a=["7"]), log_level="OFF") == [label("7")]


def test_labels_of_methods_maps_by_position_and_nested_runs(tmp_path: Path) -> None:
    class Store:
        @cs.task(label=lambda key: f"key {key}")
        def read(self, key: int) -> str | None:
            return own()

        @cs.task(label=lambda self, key: f"{self.name} {key}")
        def write(self, key: int) -> str | None:
            return own()

        name = "store"

    @cs.task(label=lambda x: x)
    def positional(x: str, /) -> str | None:
        return own()

    assert cs.run(Store().read(7), log_level="OFF") == "key 7"
    assert cs.run(Store().write(7), log_level="OFF") == "store 7"
    assert cs.run(Store().write.map(key=[7]), log_level="OFF") == ["store 7"]
    assert cs.run(positional.map(x=["a", "b"]), log_level="OFF") == ["a", "b"]
    file = tmp_path / "inner.py"
    file.write_text(
        "import cascade as cs\n"
        "inner = cs.task(lambda n: cs.current_task().label, name='inner', label=lambda n: f'in {n}')(cs.Param('n'))\n"
    )
    assert cs.run(cs.subflow(str(file), "inner", params={"n": "x"}).with_label("out"), log_level="OFF") == "in x"


def test_a_function_gets_no_resources() -> None:
    @cs.resource
    def db() -> Iterator[str]:
        yield "connection"

    @cs.task(label=lambda **given: ",".join(given))
    def query(sql: str, db: Any = cs.inject(db), more: Any = None) -> str | None:
        return own()

    assert cs.run(query(sql="select", more=cs.inject(db)), log_level="OFF") == "sql"
    assert cs.run(query(sql="select").with_label(lambda db: f"{db}"), log_level="OFF") == "select", "the first argument"


@pytest.mark.parametrize("label", [lambda sql: sql, lambda first: first, lambda *args: args[0], str])
def test_a_positional_resource_is_not_an_argument_of_the_label(label: Any) -> None:
    @cs.resource
    def db() -> Iterator[str]:
        yield "connection"

    query = cs.task(lambda connection, sql: own(), name="query", label=label)
    assert cs.run(query(cs.inject(db), "select"), log_level="OFF") == "select"


def test_an_argument_is_not_passed_to_a_parameter_with_another_name(caplog: pytest.LogCaptureFixture) -> None:
    query = cs.task(two, label=lambda missing, a: f"{missing} {a}")
    assert cs.run(query("x", "y"), log_level="OFF") is None
    assert "missing 1 required positional argument: 'missing'" in caplog.text


def test_a_function_gets_further_positional_arguments_as_a_tuple() -> None:
    many = cs.task(lambda first, *rest: own(), name="many", label=lambda rest: f"{rest}")
    assert cs.run(many(1, 2, 3), log_level="OFF") == "(2, 3)"
    assert cs.run(many(1), log_level="OFF") == "()"


def test_one_label_for_all_attempts_and_for_the_wait_before_the_start() -> None:
    connector, seen = MemoryConnector(), list[str]()

    def label(x: int) -> str:
        seen.append(f"number {x}")
        return seen[-1]

    @cs.task(label=label)
    def flaky(x: int) -> str | None:
        task = cs.current_task()
        assert task is not None
        if task.attempt == 1:
            raise ConnectionError
        return task.label

    target = flaky.map(x=[1, 2]).with_retry(1, delay=0.002).with_constraints(slot=1)
    assert cs.run(target, connector=connector, system_resources={"slot": 1}, log_level="OFF") == [
        "number 1",
        "number 2",
    ]
    assert sorted(seen) == ["number 1", "number 2"], "made once for each item"
    metadata = [p["body"]["metadata"] for p in connector.payloads if p["body"].get("task_name") == "flaky"]
    assert {one["map_index"]: one["label"] for one in metadata} == {0: "number 1", 1: "number 2"}
    assert {one.get("reason") for one in metadata} >= {"resource", "retry"}
    assert all("label" in one for one in metadata)


def test_a_blocked_call_has_its_label_before_the_start() -> None:
    connector = MemoryConnector()

    def held() -> list[dict[str, Any]]:
        return [p["body"]["metadata"] for p in connector.payloads if p["body"].get("state") == "PENDING"]

    blocker = cs.task(lambda x: until_blocking(held), name="blocker", label=lambda x: f"blocker {x}")
    both = [blocker(cs.task(lambda n=n: n, name="make")()).with_constraints(slot=1) for n in (1, 2)]
    cs.run(cs.task(lambda *_: None)(*both), connector=connector, system_resources={"slot": 1}, log_level="OFF")
    (label,) = {one["label"] for one in held()}
    assert label in {"blocker 1", "blocker 2"}


def test_a_skipped_or_cached_call_keeps_its_label() -> None:
    class Hit:
        def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
            return 1

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
            raise NotImplementedError

    assert labels(cs.task(lambda x: x, name="c", label=lambda x: f"c{x}")(5).with_cache(Hit())) == ["c5"]
    assert skipped_labels(cs.task(own)().with_label("fixed")) == ["fixed"]
    assert skipped_labels(cs.task(own)().with_label(lambda: "needs the arguments")) == [None]


def skipped_labels(lazy: Any) -> list[str | None]:
    connector = MemoryConnector()
    with pytest.raises(cs.DependencyMissingError):
        cs.run(lazy.run_if(cs.task(lambda: False, name="no")()), connector=connector, log_level="OFF")
    skipped = [payload["body"] for payload in connector.payloads if payload["body"].get("state") == "SKIPPED"]
    return [body["metadata"].get("label") for body in skipped]


def not_a_text(x: int) -> Any:
    return {0: None, 1: 5, 2: b"bytes", 3: ["a"]}[x]


async def forgotten(x: int) -> str:
    return "never"


def stop(x: int) -> str:
    sys.exit("a label cannot end the program")


class Stop(BaseException):
    """A BaseException, as pytest and other event loops raise."""


def stop_otherwise(x: int) -> str:
    raise Stop


def boom(x: int) -> str:
    raise LookupError("password=hunter2X9 is wrong")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (boom, "LookupError: password=*** is wrong"),
        (not_a_text, "it returned a NoneType; it must return a text"),
        (forgotten, "it returned a coroutine"),
        (stop, "SystemExit"),
        (stop_otherwise, "Stop"),
        (lambda x, y: f"{y}", "missing 1 required positional argument: 'y'"),
    ],
)
def test_a_label_that_fails_is_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture, label: Any, reason: str
) -> None:
    work = cs.task(lambda x: own(), name="work", label=label)
    many = cs.task(lambda *results: results, name="collect")(work.map(x=[0, 1, 2, 3]), work(0))
    assert cs.run(many, log_level="OFF") == ([None] * 4, None)
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert warning.startswith("The label of task 'work' could not be made, and is left out: ")
    assert reason in warning
    cs.run(work(0), log_level="OFF")
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 2, "one for each run"


def test_the_warning_has_the_name_of_the_task_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    assert cs.run(cs.task(own, name="token=abcdefgh12345678", label=lambda: str(1 // 0))(), log_level="OFF") is None
    assert "The label of task 'token=***' could not be made" in caplog.text


def test_an_empty_label_is_none_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert cs.run(cs.task(own, label="")(), log_level="OFF") is None
    assert cs.run(cs.task(lambda x: own(), label=lambda x: "")(1), log_level="OFF") is None
    assert skipped_labels(cs.task(own)().with_label("")) == [None]
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_secrets_are_masked_in_a_label() -> None:
    login = cs.task(lambda user, password: own(), name="login", label=lambda user, password: f"{user}/{password[:3]}")
    assert cs.run(login("me", "hunter2"), log_level="OFF") == "me/***"
    assert cs.run(login.map(user=["a"], password=["hunter2"]), log_level="OFF") == ["a/***"]
    with_default = cs.task(lambda user, password="hunter2": own(), name="w", label=lambda user, password: f"{password}")
    assert cs.run(with_default("me"), log_level="OFF") == "***"
    shown = cs.task(lambda x: own(), name="shown", label=lambda x: f"x {x}")
    assert cs.run(shown(cs.Param("api_key", type=str)), params={"api_key": "k1"}, log_level="OFF") == "x ***"
    assert cs.run(shown("token=abcdefgh12345678"), log_level="OFF") == "x token=***"
    assert cs.run(shown(1).with_label("password=hunter2"), log_level="OFF") == "password=***"


@pytest.mark.parametrize("text", ["x" * 10_000, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 200])
def test_a_label_is_short(text: str) -> None:
    for label in (text, lambda: text):
        found = cs.run(cs.task(own, label=label)(), log_level="OFF")
        assert found is not None
        assert 200 < len(found.encode()) <= 256
        assert found.endswith("\N{HORIZONTAL ELLIPSIS}")


def printed(target: Any, log_format: str) -> list[str]:
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream), contextlib.suppress(ZeroDivisionError):
        cs.run(target, log_format=log_format, log_level="DEBUG")
    return stream.getvalue().splitlines()


def test_the_terminal_shows_the_label_in_place_of_the_index() -> None:
    invert = cs.task(lambda x: 1 / x, name="invert", label=lambda x: f"x = {x}", threaded=False)
    lines = printed(invert.map(x=[0]).with_retry(1), "human")
    assert "\N{HOURGLASS WITH FLOWING SAND} Running invert[x = 0]" in lines
    assert any("Retrying invert[x = 0] (attempt 2 of 2, retry 1 of 1)" in line for line in lines)
    assert any("Failed invert[x = 0] after" in line for line in lines)
    assert any("Finished invert[x = 1] in" in line for line in printed(invert(1), "human"))
    records = [json.loads(line) for line in printed(invert.map(x=[1]), "json")]
    (data,) = [one["data"] for one in records if one["event_id"] == "task.started" and "map_index" in one["data"]]
    assert data == {"task_name": "invert", "label": "x = 1", "map_index": 0}


def test_control_characters_in_a_label_are_escaped_on_the_terminal() -> None:
    lines = printed(cs.task(lambda: None, name="t", label="a\x1b[31m\nb")(), "human")
    assert any(line.endswith("Running t[a\\x1b[31m\\nb]") for line in lines)


def test_every_message_about_a_task_has_a_text_with_the_label() -> None:
    store = MessageStore()
    values: dict[str, Any] = {
        "task_name": "t",
        "label": "L",
        "map_index": 3,
        "duration": 1.0,
        "error": "e",
        "reason": "r",
    }
    values |= {"attempt": 1, "max_attempts": 2, "delay": 0.1}
    for name in ("started", "finished_success", "finished_failure", "skipped", "retrying"):
        assert "t[L]" in store.get(f"task.{name}", **values)


def test_the_note_on_an_error_has_index_and_label() -> None:
    invert = cs.task(lambda x: 1 / x, name="invert", label=lambda x: f"x = {x}")
    with pytest.raises(ZeroDivisionError) as failed:
        cs.run(invert.map(x=[1, 0]), log_level="OFF")
    assert failed.value.__notes__ == ["task 'invert', item 1 ('x = 0')"]
    with pytest.raises(ZeroDivisionError) as failed:
        cs.run(invert(0), log_level="OFF")
    assert failed.value.__notes__ == ["task 'invert' ('x = 0')"]


def test_a_label_may_be_a_text_of_any_kind() -> None:
    class Unhashable(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise TypeError("unhashable")

    assert cs.run(cs.task(own, label=Unhashable("text"))(), log_level="OFF") == "text"
    assert cs.run(cs.task(own, label=lambda: Unhashable("made"))(), log_level="OFF") == "made"


@pytest.mark.parametrize("wrong", [5, ["a"]])
def test_a_label_that_is_neither_a_text_nor_a_function_is_refused(wrong: Any) -> None:
    text = r"label must be a text or a function that returns one, got (int|list)"
    with pytest.raises(TypeError, match=text):
        cs.task(own)().with_label(wrong)
    with pytest.raises(TypeError, match=text):
        cs.task(label=wrong)
