import sys
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import cascade as cs


@cs.task
def show(*values: Any) -> str:
    return " ".join(f"{value!r}" for value in values)


def invoke(target: Any, *args: str) -> Result:
    return CliRunner().invoke(cs.cli(target), list(args))


def test_params_are_options() -> None:
    target = show(
        cs.Param("name", description="whom to greet"), cs.Param("count", 2, int), cs.Param("rate", 0.5, float)
    )
    result = invoke(target, "--name", "you", "--count", "3")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "'you' 3 0.5")
    shown = invoke(target, "--help").stdout
    assert "--count" in shown
    assert "whom to greet" in shown
    assert "--log-level" in shown


def test_a_param_without_default_is_required() -> None:
    assert invoke(show(cs.Param("name"))).exit_code == 2


def test_bools_are_flags() -> None:
    assert "True" in invoke(show(cs.Param("fast", False, bool)), "--fast").stdout


def test_envs_are_no_options() -> None:
    assert "HOME_TOWN" not in invoke(show(cs.Env("HOME_TOWN", default="x")), "--help").stdout


def test_none_is_not_printed() -> None:
    result = invoke(cs.task(lambda: None, name="quiet")(), "--log-level", "ERROR")
    assert (result.exit_code, result.stdout) == (0, "")


def test_without_typer_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(ImportError, match=r"pip install 'cascade-runs\[cli\]'"):
        cs.cli(show())
