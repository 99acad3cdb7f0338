"""Runs in a thread that outlives the main thread, without an asyncio event loop, and without garbage collections."""

import gc
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

import cascade as cs
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.threads import MANY_OBJECTS, SWITCH_INTERVAL, creating_objects, is_shutdown_error, start_thread
from stack.addresses import reserved_port
from tests.lab.extras import needs
from tests.lab.waiting import HANG

NO_THREADS_LATE = sys.version_info[:2] == (3, 12)
"""Python 3.12 starts no thread after the end of the main thread, although it waits for the other threads."""
REFUSAL = "Join the threads that call cs.run before the main thread ends"

PREAMBLE = """
import sqlite3, sys, threading
import cascade as cs
main, got = threading.main_thread(), []

@cs.task
def double(x): return 2 * x

@cs.task
def total(*xs): return sum(xs)

@cs.resource
def db():
    connection = sqlite3.connect(":memory:")
    yield connection
    connection.close()  # sqlite3 refuses that in another thread than the one of the setup
    print("closed", flush=True)

@cs.task
def version(db=cs.inject(db)): return db is not None

def ends_after_main():
    main.join()
    try:
        print("value", late(), flush=True)
    except RuntimeError as error:
        print("refused", error, flush=True)
        if "shutdown" not in str(error) and "shutting down" not in str(error): raise
"""


def _late(body: str) -> str:
    """Output of a program whose function `late` runs after the end of the main thread, in another thread."""
    start = "threading.Thread(target=ends_after_main).start()"
    code = "\n".join([PREAMBLE, textwrap.dedent(body), start])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("late = lambda: cs.run(double.map(x=[1, 2, 3]), log_level='ERROR')", "value [2, 4, 6]\n"),
        ("late = lambda: cs.run(total(*[double(i) for i in range(2500)]), log_level='ERROR')", "value 6247500\n"),
        ("late = lambda: cs.run(version(), log_level='ERROR')", "closed\nvalue True\n"),
        (
            """
            @cs.task
            def nested(n): return n and 1 + cs.run(nested(n - 1), log_level="ERROR", max_workers=1)
            late = lambda: cs.run(nested.map(n=[3] * 20), log_level="ERROR")
            """,
            f"value {[3] * 20}\n",
        ),
        (
            """
            cs.run(version(), log_level="ERROR")
            late = lambda: cs.run(version(), log_level="ERROR")
            """,
            "closed\nclosed\nvalue True\n",
        ),
    ],
    ids=["map", "large graph", "resource", "nested", "not the first run"],
)
def test_a_run_works_in_a_thread_that_outlives_the_main_thread(body: str, expected: str) -> None:
    got = _late(body)
    assert got == expected or (NO_THREADS_LATE and REFUSAL in got)


def test_a_run_ends_although_the_main_thread_has_ended_meanwhile() -> None:
    got = _late(
        """
        @cs.task
        def wait(x, db=cs.inject(db)):
            main.join()
            return x

        def ends_after_main():
            try:
                print("value", cs.run(double(wait(1)), log_level="ERROR"), flush=True)
            except RuntimeError as error:
                print("refused", error, flush=True)
        """
    )
    assert got == "closed\nvalue 2\n" or (NO_THREADS_LATE and REFUSAL in got)


def test_coroutines_and_functions_in_the_loop_need_no_thread() -> None:
    got = _late(
        """
        @cs.task
        async def one(): return 1
        add = cs.task(lambda a, b: a + b, threaded=False, name="add")
        late = lambda: cs.run(add(one(), one()), log_level="ERROR")
        """
    )
    assert got == "value 2\n"


@needs("otel")
@pytest.mark.parametrize("early", [True, False])
def test_a_late_run_may_have_a_connector(early: bool) -> None:
    make = f"OtelConnector('http://127.0.0.1:{reserved_port()}', flush_timeout=0.1)"
    got = _late(
        f"""
        from cascade.connectors.otel import OtelConnector
        made = {make if early else None}
        late = lambda: cs.run(double.map(x=[1, 2]), connector=made or {make}, log_level="ERROR")
        """
    )
    assert got == "value [2, 4]\n" or (NO_THREADS_LATE and REFUSAL in got)


@needs("otel")
def test_a_late_connector_has_the_resource_attributes_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    got = _late(
        """
        from cascade.connectors.otel.sdk_settings import resource
        def late():
            import os
            found = resource(os.environ).attributes
            return [found[name] for name in ("deployment.environment.name", "service.name", "telemetry.sdk.name")]
        """
    )
    assert got == "value ['test', 'cascade', 'opentelemetry']\n"


def test_a_daemon_thread_with_a_run_does_not_delay_the_exit() -> None:
    """The run does not end, so that its resource is not torn down."""
    got = _late(
        """
        running = threading.Event()
        @cs.task
        async def for_ever(db=cs.inject(db)):
            import asyncio
            running.set()
            await asyncio.Event().wait()
        threading.Thread(target=lambda: cs.run(for_ever(), log_level="ERROR"), daemon=True).start()
        running.wait()
        late = lambda: "others end"
        """
    )
    assert got == "value others end\n"


def test_a_thread_that_cannot_start_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: Any) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr("threading.Thread.start", start)
    with pytest.raises(RuntimeError, match=REFUSAL) as caught:
        start_thread(print, name="never")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert is_shutdown_error(caught.value.__cause__)


@pytest.mark.parametrize("caller", ["cs.run_async", "Engine.run"])
def test_without_an_asyncio_event_loop_the_error_names_cs_run_in_a_thread(caller: str) -> None:
    target = cs.task(lambda: 1, name="one")()
    engine = Engine(NativeSolver(), LocalExecutor(), MessageBus())
    run: Any = cs.run_async(target) if caller == "cs.run_async" else engine.run(target)
    with pytest.raises(RuntimeError, match=r"needs a running asyncio event loop") as caught:
        run.send(None)  # as trio does, or IPython with `%autoawait off`
    assert caller in str(caught.value)
    assert "call cs.run in a thread" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_is_forked_during_the_plan_of_a_large_graph_has_the_settings_of_the_program() -> None:
    program = """
import gc, os, sys
import cascade as cs
from cascade.runtime.engine import LARGE_GRAPH, Engine

class Forking(cs.NativeSolver):
    def resolve(self, graph):
        if not (child := os.fork()):
            os._exit(gc.isenabled() and sys.getswitchinterval() == 0.004)
        print(gc.isenabled(), sys.getswitchinterval() < 0.004, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return super().resolve(graph)

async def main():
    engine = Engine(Forking(), cs.LocalExecutor(threads=False), cs.MessageBus())
    number = cs.task(lambda x: x, name="number")
    await engine.run(cs.task(len, name="count")([number(i) for i in range(LARGE_GRAPH)]))

import asyncio
sys.setswitchinterval(0.004)
asyncio.run(main())
print(gc.isenabled(), sys.getswitchinterval())
"""
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.stdout, done.stderr) == ("False True 1\nTrue 0.004\n", "")


def is_young(made: object) -> bool:
    return any(made is one for one in gc.get_objects(generation=0))


def test_many_new_objects_are_old_at_the_end_of_the_block_that_creates_them() -> None:
    with creating_objects():
        few = [object() for _ in range(10)]
    with creating_objects():
        many = [[number] for number in range(MANY_OBJECTS + 1)]
        assert is_young(many)
    assert not is_young(many)
    assert few


def test_a_block_that_creates_many_objects_keeps_the_frozen_objects_of_a_program() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with creating_objects():
            many = [[number] for number in range(MANY_OBJECTS + 1)]
        assert gc.get_freeze_count() == pytest.approx(frozen, abs=100)
        assert gc.isenabled()
        del many
    finally:
        gc.unfreeze()


def test_a_block_that_creates_objects_keeps_the_settings_of_a_program_and_of_a_block_around_it() -> None:
    gc.disable()
    try:
        with creating_objects():
            assert sys.getswitchinterval() == SWITCH_INTERVAL
        assert not gc.isenabled()
    finally:
        gc.enable()
    with creating_objects():
        with creating_objects():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    assert sys.getswitchinterval() > SWITCH_INTERVAL
