"""Runs in the cells of a real Jupyter kernel, with the program of `docs/servers.md`."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cascade.testing import OtlpReceiver
from tests.e2e.hosts import check_counts, environment, example
from tests.lab.programs import is_missing

if TYPE_CHECKING:
    from tests.e2e.notebook import Kernel

WAITING = """
import asyncio
import time

@cs.task
async def wait():
    print("waiting", flush=True)
    await asyncio.Event().wait()

@cs.task
def sleep():
    print("sleeping", flush=True)
    time.sleep(0.5)
"""


@pytest.fixture
def kernel(receiver: OtlpReceiver, tmp_path: Path) -> "Iterator[Kernel]":
    if find_spec("ipykernel") is None:
        is_missing("ipykernel")
    from tests.e2e.notebook import Kernel

    with Kernel(tmp_path, environment(receiver)) as found:
        yield found


def test_the_example_of_the_documentation(kernel: "Kernel", receiver: OtlpReceiver) -> None:
    assert (kernel.run(example("Notebooks"))).value == "42"
    second = kernel.run("await cs.run_async(double(4), connector=connector, log_level='WARNING')")
    assert (second.value, second.stderr, second.error) == ("8", "", "")
    assert len(check_counts(receiver, "double", 2)) == 1


def test_cs_run_names_the_awaitable_form(kernel: "Kernel") -> None:
    kernel.run(example("Notebooks"))
    for call, fix in (("cs.run(double(1))", "cs.run_async"), ("record_run(double(1))", "record_run_async")):
        done = kernel.run(f"from cascade.testing import record_run\n{call}")
        assert done.error.startswith("RuntimeError: ")
        assert f"await {fix}(...)" in done.error


def test_a_run_is_shown_below_its_cell(kernel: "Kernel") -> None:
    kernel.run(example("Notebooks"))
    kernel.run("@cs.task\ndef shout(x):\n    print('from the task')\n    return x")
    for number in (1, 2):
        done = kernel.run(f"await cs.run_async(shout({number}))")
        assert (done.value, done.stdout) == (str(number), "from the task\n")
        assert done.stderr.count("Starting run") == done.stderr.count("Run finished") == 1


def test_a_cell_that_defines_a_task_runs_again(kernel: "Kernel", receiver: OtlpReceiver) -> None:
    kernel.run(example("Notebooks"))
    kernel.run("@cs.task\ndef double(x: int) -> int:\n    return 3 * x")
    done = kernel.run("await cs.run_async(double(2), connector=connector, log_level='WARNING')")
    assert done.value == "6"
    assert len(receiver.spans.named("double")) == 2


def test_a_param_that_a_cell_declares_again_has_the_new_default(kernel: "Kernel") -> None:
    kernel.run(example("Notebooks"))
    for default in (1, 2):
        cell = f"await cs.run_async(double(cs.Param('x', {default}, int)), log_level='WARNING')"
        done = kernel.run(cell)
        assert (done.value, done.error) == (str(2 * default), "")


def test_an_interrupt_cancels_the_run_and_the_kernel_lives(kernel: "Kernel", receiver: OtlpReceiver) -> None:
    kernel.run(example("Notebooks") + WAITING)
    done = kernel.run("await cs.run_async(wait(), connector=connector)", interrupt_at="waiting")
    assert done.error.partition(":")[0] in {"CancelledError", "KeyboardInterrupt"}
    assert "Run cancelled" in done.stderr
    assert receiver.spans.one("wait").attributes["cascade.task.result"] == "cancellation"
    assert receiver.spans.one("run wait").attributes["cascade.run.result"] == "cancellation"
    again = kernel.run("await cs.run_async(double(4), connector=connector, log_level='WARNING')")
    assert (again.value, again.stderr) == ("8", "")


def test_an_interrupt_during_a_plain_function(kernel: "Kernel", receiver: OtlpReceiver) -> None:
    kernel.run(example("Notebooks") + WAITING)
    done = kernel.run("await cs.run_async(sleep(), connector=connector)", interrupt_at="sleeping")
    assert "Run cancelled" in done.stderr
    assert (kernel.run("await cs.run_async(double(4), log_level='WARNING')")).value == "8"
    assert receiver.spans.one("run sleep").attributes["cascade.run.result"] == "cancellation"
