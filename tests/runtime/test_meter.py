"""The rule for starved threads, with simulated clocks: no test depends on the speed of the machine."""

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.bus import bus as messaging_bus
from cascade.messaging.renderer import CliRenderer
from cascade.runtime import _run_context
from cascade.runtime._meter import MIN_DELAY_NS, Meter
from cascade.runtime.engine import run_nested
from cascade.runtime.events import RunFinished, StarvedThreads
from cascade.runtime.subscribers import HumanReadableLogSubscriber, TelemetrySubscriber
from cascade.runtime.task_context import current_usage
from cascade.telemetry.span_mapping import spans_of
from tests.lab.waiting import HANG


@dataclass
class Simulation:
    """A run with simulated clocks. Times are seconds."""

    of_tasks: bool = True
    now: float = 1.0
    process_cpu: float = 0.0
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = self.new_meter(None)

    def new_meter(self, outer: Meter | None) -> Meter:
        return Meter(
            outer,
            of_tasks=self.of_tasks,
            clock=lambda: round(self.now * 1e9),
            process_clock=lambda: round(self.process_cpu * 1e9),
        )

    def run(
        self,
        *cpu: float,
        wall: float,
        delay: float = 0.0,
        threads: int = 32,
        other_cpu: float = 0.0,
        times: int = 1,
        meters: Sequence[Meter] = (),
    ) -> None:
        """Run one call for each CPU time, all at once in threads, and repeat this. The calls belong to the meters in turn."""
        of_calls = [meter for meter, _ in zip(cycle(meters or [self.meter]), cpu, strict=False)]
        for _ in range(times):
            usages = [meter.begin() for meter in of_calls]
            self.now += wall
            self.process_cpu += sum(cpu) + other_cpu
            ended_ns = round(self.now * 1e9)
            self.now += delay
            for meter, usage, used in zip(of_calls, usages, cpu, strict=True):
                if usage is not None:
                    usage.wall_ns = round(wall * 1e9)
                    usage.threads, usage.ended_ns = threads, ended_ns
                    meter.end(usage, round(used * 1e9))

    def starved(self, meter: Meter | None = None) -> StarvedThreads | None:
        return (meter or self.meter).starved(round((self.now - 1.0) * 1e9))


def test_threads_that_compute_in_python_are_starved() -> None:
    simulation = Simulation()
    simulation.run(*[0.1] * 32, wall=3.2, delay=0.16, times=2)
    found = simulation.starved()
    assert found is not None
    assert round(found.slowdown) == 32
    assert (found.threads, round(found.cores, 1), found.max_workers) == (32, 1.0, 2)


@pytest.mark.parametrize(
    ("why", "calls", "run"),
    [
        ("they wait for a server", [0.001] * 32, {"wall": 0.3, "delay": 0.0002, "times": 9}),
        ("they wait, and use one processor by chance", [0.1] * 32, {"wall": 3.2, "delay": 0.0003}),
        ("each has a processor", [1.0] * 8, {"wall": 1.0, "delay": 0.0003, "threads": 8, "times": 3}),
        ("few compete", [0.5] * 2, {"wall": 1.0, "delay": 0.02, "threads": 2, "times": 3}),
        ("only one computes, and the others wait", [1.0, *[0.0001] * 31], {"wall": 1.0, "delay": 0.02, "times": 5}),
        ("other code of the process computes", [0.01] * 32, {"wall": 1, "delay": 0.5, "other_cpu": 0.7, "times": 5}),
        ("a call blocks the event loop", [0.001] * 32, {"wall": 0.3, "delay": 2.0, "times": 5}),
        ("the run is short", [0.025] * 32, {"wall": 0.8, "delay": 0.16}),
    ],
)
def test_threads_are_not_starved(why: str, calls: list[float], run: dict[str, Any]) -> None:
    simulation = Simulation()
    simulation.run(*calls, **run)
    assert simulation.starved() is None, why


def test_a_part_of_the_run_is_sufficient_if_it_is_long() -> None:
    simulation = Simulation()
    simulation.run(*[0.001] * 32, wall=0.5, times=40)
    simulation.run(*[0.1] * 32, wall=3.2, delay=0.16)
    simulation.now += 5.0  # a pause between two calls
    simulation.run(*[0.1] * 32, wall=3.2, delay=0.16)
    assert simulation.starved() is not None
    simulation.now += 100.0
    assert simulation.starved() is None, "a tenth of the run would be necessary"


def test_tasks_that_compute_are_starved_beside_tasks_that_wait() -> None:
    simulation = Simulation()
    simulation.run(*[0.1] * 16, *[0.0001] * 16, wall=1.6, delay=0.08, times=3)
    found = simulation.starved()
    assert found is not None
    assert round(found.slowdown) == 16


@pytest.mark.parametrize("of_tasks", [True, False])
def test_nested_runs_that_share_a_processor_are_starved_together(of_tasks: bool) -> None:
    simulation = Simulation(of_tasks)
    simulation.now += 5.0  # a pause before the nested runs
    meters = [simulation.new_meter(simulation.meter) for _ in range(4)]
    simulation.run(*[0.1] * 32, wall=3.2, delay=0.16, times=2, meters=meters)
    assert [simulation.starved(meter) for meter in meters] == [None] * 4
    found = simulation.starved()
    assert found is not None
    assert (round(found.slowdown), round(found.cores, 1)) == (32, 1.0)


def test_a_nested_run_with_a_report_causes_none_of_its_outer_run() -> None:
    simulation = Simulation()
    nested = simulation.new_meter(simulation.meter)
    simulation.run(*[0.1] * 32, wall=3.2, delay=0.16, times=2, meters=[nested])
    assert simulation.starved(nested) is not None
    assert simulation.starved() is None


def test_nested_runs_that_wait_are_not_starved() -> None:
    simulation = Simulation()
    meters = [simulation.new_meter(simulation.meter) for _ in range(4)]
    simulation.run(*[0.001] * 32, wall=0.3, delay=0.0002, times=9, meters=meters)
    assert [simulation.starved(meter) for meter in [*meters, simulation.meter]] == [None] * 5


def test_a_run_that_a_task_starts_has_the_meter_of_the_run_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[tuple[Meter, Meter | None]] = []

    class RecordedMeter(Meter):
        def __init__(self, outer: Meter | None, *, of_tasks: bool) -> None:
            super().__init__(outer, of_tasks=of_tasks)
            created.append((self, outer))

    @cs.task
    def in_thread() -> int:
        return cs.run(work(1), log_level="WARNING")

    @cs.task
    async def in_loop() -> int:
        return await run_nested(work(2))

    monkeypatch.setattr(_run_context, "Meter", RecordedMeter)
    assert cs.run([in_thread(), in_loop()], log_level="WARNING") == [1, 2]
    meters, outers = zip(*created, strict=True)
    assert outers == (None, meters[0], meters[0])


def test_a_sample_of_the_calls_gives_the_same_measures() -> None:
    found = []
    for of_tasks in (True, False):
        simulation = Simulation(of_tasks)
        simulation.run(*[0.01] * 32, wall=0.32, delay=0.16, times=100)
        found.append(simulation.starved())
    every, sample = found
    assert every is not None
    assert sample is not None
    assert sample.slowdown == pytest.approx(every.slowdown)
    assert sample.cores == pytest.approx(every.cores, rel=0.01)


CALLS = st.lists(st.floats(1e-6, 2.0), min_size=1, max_size=40)


@given(st.lists(st.tuples(CALLS, st.floats(0.001, 5.0)), min_size=1, max_size=10))
def test_threads_are_not_starved_while_the_event_loop_responds(rounds: list[tuple[list[float], float]]) -> None:
    simulation = Simulation()
    for calls, wall in rounds:
        simulation.run(*calls, wall=max(wall, *calls), delay=MIN_DELAY_NS / 2e9)
    assert simulation.starved() is None


@given(st.integers(4, 64), st.floats(0.02, 0.5), st.integers(2, 5))
def test_threads_that_share_one_processor_are_starved(threads: int, cpu: float, times: int) -> None:
    simulation = Simulation()
    times += int(1.2 / (threads * cpu))  # more than a second
    simulation.run(*[cpu] * threads, wall=threads * cpu, delay=threads * 0.005, threads=threads, times=times)
    found = simulation.starved()
    assert found is not None
    assert found.max_workers < threads


class SimulatedExecutor:
    """Executes 30 tasks at once, in simulated time: each one computes for 0.1 s, and takes 3 s."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.calls, self.ended = 30, asyncio.Event()

    async def execute(self, node: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        usage = current_usage()
        assert usage is not None
        self.calls -= 1
        if self.calls == 0:
            self.simulation.now += 3.0
            self.simulation.process_cpu += 3.0
            self.ended.set()
        await self.ended.wait()
        usage.cpu_ns, usage.wall_ns, usage.threads = 100_000_000, 3_000_000_000, 30
        usage.ended_ns = round(self.simulation.now * 1e9) - 150_000_000
        return node.callable_obj(*args, **kwargs)


@cs.task
def work(x: int) -> int:
    return x


async def test_the_end_of_a_run_reports_its_starved_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulation, bus, connector = Simulation(), cs.MessageBus(), MemoryConnector()
    monkeypatch.setattr(_run_context, "Meter", lambda _, *, of_tasks: simulation.meter)
    messages, finished = Messages(messaging_bus.store), list[RunFinished]()
    messages.set_renderer(CliRenderer(messages.store, min_level="WARNING"))
    HumanReadableLogSubscriber(bus, min_level="WARNING", messages=messages)
    TelemetrySubscriber(bus, connector)
    bus.subscribe(RunFinished, finished.append)
    engine = cs.Engine(
        cs.NativeSolver(),
        SimulatedExecutor(simulation),
        bus,
        connector=connector,
        clock=lambda: round(simulation.now * 1e9),
    )
    assert await engine.run(work.map(x=list(range(30)))) == list(range(30))

    starved = finished[0].starved
    assert starved is not None
    assert asdict(starved) == {
        "slowdown": pytest.approx(30.0),
        "threads": 30,
        "cores": pytest.approx(1.0),
        "max_workers": 2,
    }
    assert capsys.readouterr().err == (
        "⚠️  Tasks took 30 times their CPU time, because 30 threads shared 1.0 processors. "
        "Try a lower max_workers=, such as max_workers=2\n"
    )
    (run,) = spans_of(connector.payloads[-1])
    measures = {key.rpartition(".")[2]: value for key, value in run.attributes.items() if ".starved." in key}
    assert measures == asdict(starved)


def test_tasks_that_wait_cause_no_report(capsys: pytest.CaptureFixture[str]) -> None:
    barrier = threading.Barrier(8)

    @cs.task
    def waiting(x: int) -> int:
        barrier.wait(HANG)
        time.sleep(1.0)
        return x

    cs.run(waiting.map(x=list(range(8))), max_workers=8, log_level="WARNING")
    assert capsys.readouterr().err == ""
