import pytest

import cascade as cs
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import Event
from cascade.tools.events import PlanAnalysisFinished, PlanAnalysisStarted, PlanNodeInspected
from cascade.tools.preview import _analyze_plan


@cs.task
def add(x: int, y: int = 0) -> int:
    raise AssertionError("a dry run runs nothing")


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
