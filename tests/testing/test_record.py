import cascade as cs
from cascade.testing import FixedClock, record_run
from tests.lab.extras import needs


@cs.task
def one() -> int:
    return 1


@needs("otel")
def test_a_run_is_recorded_with_its_messages_and_spans() -> None:
    run = record_run(cs.task(lambda x: x + 1, name="plus")(one()))
    assert (run.value, run.error) == (2, None)
    assert run.states("one") == ["RUNNING", "COMPLETED"]
    assert {span.name for span in run.spans} == {"run plus", "run plus started", "one", "plus"}
    assert run.events


@needs("otel")
def test_an_error_is_recorded_not_raised() -> None:
    assert isinstance(record_run(cs.task(lambda: 1 / 0, name="divide")()).error, ZeroDivisionError)


def test_a_fixed_clock_makes_times_predictable() -> None:
    clock = FixedClock(1_700_000_000_000_000_000, step=1.0)
    run = record_run(one(), clock=clock, spans=False)
    (completed,) = (p for p in run.payloads if p["body"].get("state") == "COMPLETED")
    assert completed["body"]["duration_ms"] % 1000 == 0
    assert all(p["ts"].endswith(".000000Z") for p in run.payloads)


@needs("otel")
def test_the_times_of_a_run_increase_when_the_clock_is_set_back() -> None:
    clock = FixedClock()

    @cs.task
    def set_back() -> None:
        clock.advance(-3600)

    run = record_run(set_back(), clock=clock)
    assert [p["ts"] for p in run.payloads] == sorted(p["ts"] for p in run.payloads)
    assert all(span.end_ns >= span.start_ns for span in run.spans)
