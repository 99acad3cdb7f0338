import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cascade as cs
from cascade.runtime.events import RunFinished, TaskExecutionStarted
from cascade.runtime.exceptions import MissingEnvError, MissingParamError, UnknownParamError
from tests.runtime.conftest import RecordedEngine


@cs.task
def ident(x: Any) -> Any:
    return x


@cs.task
def one() -> int:
    return 1


PARAM_PLACES: dict[str, Callable[[Any], Any]] = {
    "argument": ident,
    "upstream": lambda param: ident(ident(param)),
    "nested": lambda param: ident({"a": [param]}),
    "map": lambda param: ident.map(x=param),
    "condition": lambda param: ident(1).run_if(param),
    "constraint": lambda param: ident(1).with_constraints(cpu=param),
    "route": lambda param: ident(cs.Router(ident("a"), {"a": one(), "b": param})),
}


@pytest.mark.parametrize("place", PARAM_PLACES)
async def test_an_unknown_name_in_params_is_rejected_before_the_run(recorded: RecordedEngine, place: str) -> None:
    target = ident([one(), PARAM_PLACES[place](cs.Param("name", default=1))])
    with pytest.raises(UnknownParamError, match=r"'nmae' is not a .*did you mean 'name'\? Its Params: name$") as caught:
        await recorded.run(target, {"nmae": 1})
    assert (caught.value.name, caught.value.known) == ("nmae", ("name",))
    assert isinstance(caught.value, ValueError)
    assert recorded.of(TaskExecutionStarted) == []
    assert recorded.of(RunFinished)[0].status == "Failed"


def test_a_name_that_resembles_no_param_is_rejected() -> None:
    target = ident([cs.Param("first", 1), cs.Param("second", 2), cs.Env("HOME")])
    with pytest.raises(UnknownParamError, match=r"'xyz' is not a Param of this workflow\. Its Params: first, second$"):
        cs.run(target, params={"first": 1, "xyz": 2})


def test_params_of_a_nested_run_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "inner.py"
    file.write_text("import cascade as cs\ntarget = cs.task(lambda n: n, name='t')(cs.Param('n', 1, int))\n")
    assert cs.run(cs.subflow(str(file), "target", params={"n": 4})) == 4
    with pytest.raises(UnknownParamError, match="'m' is not a Param"):
        cs.run(cs.subflow(str(file), "target", params={"m": 4}))


def test_params_of_a_workflow_without_a_param_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert cs.run(one(), params={"a": 1}) == 1
    assert [record.getMessage() for record in caplog.records if "params" in record.getMessage()] == [
        "params: the workflow has no Param; the run ignores 'a'"
    ]


def test_a_value_in_params_is_used_as_it_is() -> None:
    value = ["5"]
    assert cs.run(ident(cs.Param("n", type=int)), params={"n": value}) is value


def test_two_workflows_with_a_param_of_one_name_have_their_own_defaults() -> None:
    first, second = ident(cs.Param("same", default=1)), ident(cs.Param("same", default=2))
    assert (cs.run(first), cs.run(second), cs.run(ident([first, second]))) == (1, 2, [1, 2])


def test_none_is_a_default_if_the_type_includes_it() -> None:
    assert cs.run(ident(cs.Param("maybe", type=int | None))) is None
    with pytest.raises(MissingParamError, match="'surely'"):
        cs.run(ident(cs.Param("surely", type=int)))


async def test_a_missing_environment_variable_is_named_before_anything_runs(
    recorded: RecordedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(MissingEnvError, match=r"'NOT_SET' is not set.*default=") as caught:
        await recorded.run(ident([one(), cs.Env("NOT_SET")]))
    assert (caught.value.name, isinstance(caught.value, ValueError)) == ("NOT_SET", True)
    assert recorded.of(TaskExecutionStarted) == []


def test_an_environment_variable_is_missing_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    assert cs.run(ident(cs.Router(ident("a"), {"a": one(), "b": ident(cs.Env("NOT_SET"))}))) == 1
    with pytest.raises(MissingEnvError, match="'NOT_SET'"):
        cs.run(ident(cs.Router(ident("b"), {"a": one(), "b": ident(cs.Env("NOT_SET"))})))
    assert cs.run(ident(cs.Env("NOT_SET", default=""))) == ""
    monkeypatch.setenv("NOT_SET", "")
    assert cs.run(ident(cs.Env("NOT_SET"))) == ""


@pytest.mark.parametrize(
    ("name", "capacity"),
    [("gpuu", "gpu"), ("cpus", "cpu"), ("memroy_gb", "memory_gb"), ("memory", "memory_gb"), ("database", "databse")],
)
@pytest.mark.parametrize("mapped", [False, True])
async def test_a_misspelt_constraint_is_rejected_before_the_run(name: str, capacity: str, mapped: bool) -> None:
    recorded = RecordedEngine(system_resources={capacity: 2})
    lazy: Any = ident.map(x=[1]) if mapped else ident(1)
    with pytest.raises(ValueError, match=f"'{name}' is not in system_resources; did you mean '{capacity}'"):
        await recorded.run(ident([one(), lazy.with_constraints(**{name: 1})]))
    assert recorded.of(TaskExecutionStarted) == []


@pytest.mark.parametrize(("name", "capacity"), [("gpu", {"cpu": 1}), ("a", {"b": 1}), ("gpuu", {}), ("gpuu", None)])
def test_a_name_without_a_capacity_is_unlimited(name: str, capacity: dict[str, float] | None) -> None:
    lazy = ident(1).with_constraints(**{name: math.pi})
    assert cs.run(lazy, system_resources=capacity) == 1
    assert cs.run(ident(1).with_constraints(gpuu=1), system_resources={"gpu": 1, "gpuu": 1}) == 1
