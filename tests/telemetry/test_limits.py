from typing import Any

from cascade.telemetry.limits import shrink, size_of


def payload(**metadata: Any) -> dict[str, Any]:
    return {"run_id": "r", "body": {"type": "TaskStateEvent", "task_id": "t", "metadata": metadata}}


def test_what_fits_is_left_alone() -> None:
    small = payload(start_ns=1, links=[])
    assert shrink(small) is small


def test_what_is_least_missed_goes_first_and_is_named() -> None:
    big = payload(start_ns=1, output="x" * 900, links=[{"span_id": "a" * 16}] * 3)
    small = shrink(big, limit=400)
    assert small["body"]["metadata"].keys() == {"start_ns", "links", "truncated"}
    assert small["body"]["metadata"]["truncated"] == ["output"]
    assert size_of(small) <= 400
    assert "output" in big["body"]["metadata"]


def test_ids_and_times_stay_even_when_it_is_hopeless() -> None:
    small = shrink(payload(start_ns=1, end_ns=2, exception="x" * 999, links=["x" * 999]), limit=50)
    assert small["body"]["task_id"] == "t"
    assert (small["body"]["metadata"]["start_ns"], small["body"]["metadata"]["end_ns"]) == (1, 2)
