"""`run_id`, `name` and `tags` of a run, and the parameters of the functions that run a target."""

import asyncio
import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.engine import run_nested
from cascade.telemetry.identity import trace_id
from tests.lab.time_limits import subprocess_environment
from tests.lab.waiting import HANG


@cs.task(threaded=False)
def one() -> int:
    return 1


def first_and_last(connector: MemoryConnector) -> tuple[dict[str, Any], dict[str, Any]]:
    return connector.payloads[0]["body"]["metadata"], connector.payloads[-1]["body"]["metadata"]


@pytest.mark.parametrize("function", [cs.run, cs.run_async])
def test_the_parameters_are_visible(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:6] == ["target", "params", "system_resources", "log_level", "log_format", "connector"]
    keywords = {name: one.default for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    assert keywords.items() >= {"resources": (), "max_workers": None, "run_id": None, "name": None, "tags": ()}.items()
    assert parameters["log_level"].default == "INFO"
    documented = inspect.getdoc(cs.run) or ""
    assert [name for name in parameters if f"\n    {name}: " not in documented] == []


def test_an_unknown_argument_names_the_function() -> None:
    with pytest.raises(TypeError, match=r"^run\(\) got an unexpected keyword argument 'nmae'"):
        cs.run(one(), nmae="x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def test_the_target_is_accepted_by_name() -> None:
    run: Any = cs.run
    assert run(target=one(), log_level="OFF") == 1


@given(
    st.one_of(st.uuids().map(str), st.uuids(version=4).map(str), st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True))
)
def test_a_chosen_run_id_is_the_id_of_the_run(run_id: str) -> None:
    connector = MemoryConnector()
    cs.run(one(), connector=connector, log_level="OFF", run_id=run_id)
    assert {payload["run_id"] for payload in connector.payloads} == {run_id}
    assert {payload["trace_id"] for payload in connector.payloads} == {trace_id(run_id)}


def test_the_trace_id_has_the_bits_of_a_version_4_uuid() -> None:
    connector, chosen = MemoryConnector(), uuid4()
    cs.run(one(), connector=connector, log_level="OFF", run_id=str(chosen))
    assert connector.payloads[0]["trace_id"] == chosen.hex


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"run_id": ""}, ValueError, "run_id='' is empty"),
        ({"run_id": "a/b"}, ValueError, "run_id='a/b' has '/'"),
        ({"run_id": "x" * 129}, ValueError, "longer than 128 bytes"),
        ({"run_id": "a\n"}, ValueError, "control"),
        ({"run_id": UUID(int=5)}, TypeError, r"run_id must be a text, got a UUID; for a UUID, give str\(…\)"),
        ({"name": ""}, ValueError, "name must have at least one visible character, got ''"),
        ({"name": " \t"}, ValueError, "name must have at least one visible character"),
        ({"name": 5}, TypeError, "name must be a text, got a int"),
        ({"tags": "nightly"}, TypeError, "tags must be several texts, got 'nightly'"),
        ({"tags": [1]}, TypeError, "each tag must be a text, got a int"),
        ({"tags": None}, TypeError, "tags must be several texts, got a NoneType"),
        ({"timeout": -1}, ValueError, "run: timeout must be a finite number of seconds above 0, got -1"),
        ({"timeout": "5"}, TypeError, "run: timeout must be a finite number of seconds above 0, got '5'"),
        ({"fail_fast": "no"}, TypeError, "fail_fast must be True or False, got a str"),
        ({"fail_fast": None}, TypeError, "fail_fast must be True or False, got a NoneType"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_before_anything_runs(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    connector = MemoryConnector()
    with pytest.raises(kind, match=message):
        cs.run(one(), connector=connector, log_level="OFF", **options)
    assert connector.payloads == []


async def test_the_id_of_a_run_in_progress_is_refused() -> None:
    started, may_end = asyncio.Event(), asyncio.Event()

    @cs.task
    async def wait() -> str:
        started.set()
        await may_end.wait()
        return "ended"

    first = asyncio.create_task(cs.run_async(wait(), log_level="OFF", run_id="nightly"))
    await started.wait()
    with pytest.raises(ValueError, match="run_id='nightly' is the id of a run in progress"):
        await cs.run_async(one(), log_level="OFF", run_id="nightly")
    may_end.set()
    assert await first == "ended"
    assert await cs.run_async(one(), log_level="OFF", run_id="nightly") == 1


def test_a_nested_run_cannot_have_the_id_of_its_outer_run() -> None:
    @cs.task
    async def outer() -> int:
        task = cs.current_task()
        assert task is not None
        return await cs.run_async(one(), log_level="OFF", run_id=task.run_id)

    with pytest.raises(ValueError, match="is the id of a run in progress"):
        cs.run(outer(), log_level="OFF")


def test_the_id_is_free_after_a_failure() -> None:
    fail = cs.task(lambda: 1 / 0, name="fail")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cs.run(fail(), log_level="OFF", run_id="again")


def test_the_name_replaces_that_of_the_target(capsys: pytest.CaptureFixture[str]) -> None:
    connector = MemoryConnector()
    cs.run(one(), connector=connector, name="nightly")
    assert "Starting run nightly for target(s): ['one']" in capsys.readouterr().err
    assert [metadata["target"] for metadata in first_and_last(connector)] == ["nightly", "nightly"]


def test_a_long_name_is_cut_and_a_secret_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    connector = MemoryConnector()
    cs.run(one(), connector=connector, name="password=hunter2 " + "x" * 500, tags=["token=hunter2", "y" * 500])
    metadata, _ = first_and_last(connector)
    assert "hunter2" not in json.dumps(connector.payloads)
    assert "hunter2" not in capsys.readouterr().err
    assert [len(text.encode()) for text in (metadata["target"], metadata["tags"][1])] == [256, 256]


def test_the_tags_are_in_the_messages() -> None:
    connector = MemoryConnector()
    cs.run(one(), connector=connector, log_level="OFF", tags=(tag for tag in ["etl", "customer 7", "etl"]))
    assert [metadata["tags"] for metadata in first_and_last(connector)] == [["etl", "customer 7"]] * 2


def test_without_tags_there_is_no_key() -> None:
    connector = MemoryConnector()
    cs.run(one(), connector=connector, log_level="OFF")
    assert ["tags" in metadata for metadata in first_and_last(connector)] == [False, False]


def test_a_nested_run_has_its_own_name_and_tags() -> None:
    connector = MemoryConnector()

    @cs.task
    async def outer() -> int:
        return await run_nested(one())

    assert cs.run(outer(), connector=connector, log_level="OFF", name="outer run", tags=["outer"]) == 1
    runs = {
        p["body"]["metadata"]["target"]: p["body"]["metadata"].get("tags")
        for p in connector.payloads
        if "event" in p["body"]
    }
    assert runs == {"outer run": ["outer"], "one": None}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_may_use_the_id_of_a_run_of_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "fork.py"
    script.write_text(
        textwrap.dedent(
            """
            import os
            import threading
            import cascade as cs

            inner = cs.task(lambda: 1, name="inner", threaded=False)

            @cs.task(threaded=False)
            def outer():
                if (child := os.fork()) == 0:
                    values = []
                    run = lambda: values.append(cs.run(inner(), log_level="OFF", run_id="same"))
                    thread = threading.Thread(target=run)
                    thread.start()
                    thread.join()
                    os._exit(0 if values == [1] else 1)
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

            raise SystemExit(cs.run(outer(), log_level="OFF", run_id="same"))
            """
        )
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, timeout=HANG, check=False, env=subprocess_environment())
    assert done.returncode == 0
