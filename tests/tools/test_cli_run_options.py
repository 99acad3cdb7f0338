"""The options of a command line that belong to the run, and its help."""

import asyncio
import functools
import json
from typing import Any

import pytest

import cascade as cs
from cascade.graph.build import build_graph
from cascade.testing import MemoryConnector
from tests.tools.test_cli import identity, invoke, show


@cs.task
def documented(x: int) -> int:
    """Return the argument.

    It is not changed.

    Args:
        x: An integer.

    Returns:
        The same integer.
    """
    return x


def build() -> Any:
    """Build the workflow."""
    return documented(cs.Param("x", 1, int))


class Builder:
    def build(self, x: int) -> Any:
        return documented(x)


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch) -> MemoryConnector:
    """Return the connector with the name "memory"."""
    created = MemoryConnector()
    monkeypatch.setitem(cs.connectors.by_name.FACTORIES, "memory", lambda: created)
    return created


def test_the_help_is_the_docstring_of_the_function() -> None:
    assert "Build the workflow." in invoke(build, "--help").stdout
    assert invoke(build, "--x", "3").stdout == "3\n"


@pytest.mark.parametrize("target", [documented(1), documented.map(x=[1]), build_graph(documented(1))], ids=repr)
def test_the_help_is_the_docstring_of_the_task_without_its_sections(target: Any) -> None:
    shown = invoke(target, "--help").stdout
    assert "Return the argument.\n\n  It is not changed.\n" in shown
    assert "An integer" not in shown
    assert "same integer" not in shown


@pytest.mark.parametrize(
    "target", [show(), cs.Param("p"), cs.task(functools.partial(print, 1), name="one")()], ids=repr
)
def test_a_target_without_a_docstring_of_the_user_has_no_text(target: Any) -> None:
    assert invoke(target, "--help").stdout.startswith("Usage: workflow [OPTIONS]\n\nOptions:\n")


def test_the_help_can_be_given() -> None:
    shown = invoke(functools.partial(documented, 1), "--help", help="Given\x1b[2J text.").stdout
    assert "Return the argument" not in shown
    assert "Given\\x1b[2J text." in shown


def test_the_help_has_the_exit_codes() -> None:
    shown = invoke(show(), "--help").stdout
    assert shown.endswith("Exit codes: 0 success, 1 failed run, 2 usage error, 130 Ctrl-C, 143 SIGTERM.\n")


def test_a_bound_method_without_parameters_returns_the_target() -> None:
    assert invoke(functools.partial(Builder().build, 5)).stdout == "5\n"


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (documented, "a task: call a task"),
        (lambda: None, "None: call a task"),
        (lambda: documented, "a task: call a task"),
        (5, "a int: call a task"),
    ],
)
def test_an_object_that_is_no_target_is_refused(target: Any, text: str) -> None:
    with pytest.raises(TypeError, match=f"Cannot build a workflow from {text}"):
        cs.cli(target)


def test_a_restored_graph_has_a_command_line() -> None:
    restored = cs.from_json(cs.to_json(build()))
    assert invoke(restored, "--x", "4").stdout == "4\n"


def test_several_targets_have_a_command_line_without_the_docstring_of_one() -> None:
    targets = {"one": documented(cs.Param("x", 1, int)), "two": [documented(2)]}
    assert invoke(targets, "--x", "4").stdout == "{'one': 4, 'two': [2]}\n"
    assert "Return the argument" not in invoke(targets, "--help").stdout
    assert invoke([], "--log-level", "OFF").stdout == "[]\n"


def test_the_connector_gets_the_name_and_the_tags_of_the_run(connector: MemoryConnector) -> None:
    options = [
        "--connector",
        " Memory ",
        "--run-name",
        "nightly",
        "--tag",
        "etl",
        "--tag",
        "night",
        "--max-workers",
        "2",
    ]
    result = invoke(show("x"), *options)
    assert (result.exit_code, result.stdout) == (0, "'x'\n")
    started = connector.messages[0].payload["body"]["metadata"]
    assert started["target"] == "nightly"
    assert started["tags"] == ["etl", "night"]


def test_no_connector_replaces_that_of_the_environment(
    connector: MemoryConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASCADE_CONNECTOR", "memory")
    assert invoke(show("x"), "--connector", "none").exit_code == 0
    assert connector.messages == []
    assert invoke(show("x")).exit_code == 0
    assert connector.messages != []


@pytest.mark.parametrize(
    ("arguments", "named", "text"),
    [
        (("--connector", "kafka"), "--connector", "no connector 'kafka'; choose from otel, mqtt"),
        (("--timeout", "0"), "--timeout", "timeout must be a finite number of seconds above 0, got 0.0"),
        (("--timeout", "soon"), "--timeout", "'soon' is not a number of seconds"),
        (("--timeout", "inf"), "--timeout", "timeout must be a finite number"),
        (("--max-workers", "0"), "--max-workers", "1"),
        (("--tag", " "), "--tag", "each tag must have at least one visible character"),
        (("--run-name", ""), "run", "name"),
    ],
)
def test_an_invalid_option_of_the_run_is_a_usage_error(arguments: tuple[str, ...], named: str, text: str) -> None:
    ran: list[object] = []
    result = invoke(cs.task(lambda: ran.append(1), name="t")(), *arguments)
    assert (result.exit_code, result.stdout, ran) == (2, "", [])
    assert named in result.stderr
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_extra_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError("pip install 'cascade-runs[mqtt]'")

    monkeypatch.setitem(cs.connectors.by_name.FACTORIES, "mqtt", missing)
    result = invoke(show(), "--connector", "mqtt")
    assert (result.exit_code, "pip install 'cascade-runs[mqtt]'" in result.stderr) == (2, True)
    monkeypatch.setenv("CASCADE_CONNECTOR", "mqtt")
    assert invoke(show()).exit_code == 2


def test_a_dry_run_prints_the_plan_and_runs_nothing() -> None:
    ran: list[object] = []
    target = cs.task(ran.append, name="t")(cs.Param("x", type=int))
    result = invoke(target, "--x", "5", "--dry-run")
    assert (result.exit_code, result.stderr, ran) == (0, "", [])
    assert result.stdout.splitlines()[1:4] == [
        "[1/2] x (Literals: {})",
        "      param: int, required",
        "[2/2] t (Literals: {})",
    ]
    assert invoke(target, "--dry-run").exit_code == 2


@pytest.mark.parametrize("log_level", ["INFO", "OFF"])
def test_a_run_that_exceeds_its_timeout_fails_without_a_traceback(log_level: str) -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    result = invoke(cs.task(wait)(), "--timeout", "0.05", "--log-level", log_level)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("TimeoutError: ") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["connector", "timeout", "max-workers", "run-name", "tag", "dry-run"])
def test_an_option_of_the_run_gives_way_to_a_param(name: str, connector: MemoryConnector) -> None:
    target = show(cs.Param(name, "mine"))
    assert invoke(target, f"--{name}", "yours").stdout == "'yours'\n"
    shown = invoke(target, "--help").stdout
    assert f"--{name} str" in shown
    assert f"--run-{name} " in shown


def test_an_option_with_the_prefix_sets_the_run(connector: MemoryConnector) -> None:
    target = show(cs.Param("connector", 1), cs.Param("tag", 2))
    result = invoke(target, "--connector", "3", "--tag", "4", "--run-connector", "memory", "--run-tag", "mine")
    assert result.stdout == "3 4\n"
    assert connector.messages[0].payload["body"]["metadata"]["tags"] == ["mine"]


def test_a_param_with_the_prefixed_name_is_refused_if_both_names_are_taken() -> None:
    with pytest.raises(
        ValueError, match="'run-timeout' has the name of the option --run-timeout; give it another name"
    ):
        cs.cli(show(cs.Param("timeout", 1), cs.Param("run-timeout", 1)))
    assert invoke(show(cs.Param("run-timeout", 1)), "--run-timeout", "2").stdout == "2\n"


def test_lists_may_be_repeated_and_defaults_are_shown_as_options_are_written() -> None:
    target = identity([cs.Param("n", [1, 2], list[int], "numbers"), cs.Param("f", True, bool)])
    shown = " ".join(invoke(target, "--help").stdout.split())
    assert "--n int numbers (may be repeated) [default: 1, 2]" in shown
    assert "--f / --no-f [default: True]" in shown


def test_a_log_in_json_has_the_name_of_the_run() -> None:
    result = invoke(show(), "--log-format", "json", "--run-name", "nightly")
    assert json.loads(result.stderr.splitlines()[0])["event_id"] == "run.started"
    assert "nightly" in result.stderr
