from typing import Any

from cascade.spec.value_types import MAX_TRACESTATE
from cascade.telemetry.limits import (
    MAX_ERROR_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_NAME_BYTES,
    SMALL_LIST,
    message_size,
    shrink,
    shrink_spans,
    spans_size,
)


def payload(**metadata: Any) -> dict[str, Any]:
    return {"run_id": "r", "body": {"type": "TaskStateEvent", "task_id": "t", "metadata": metadata}}


def test_a_small_message_is_not_changed() -> None:
    small = payload(start_ns=1, links=[])
    assert shrink(small) is small


def test_the_first_removed_key_is_listed_as_truncated() -> None:
    big = payload(start_ns=1, output="x" * 900, links=[{"span_id": "a" * 16}] * 3)
    small = shrink(big, limit=400)
    assert small["body"]["metadata"].keys() == {"start_ns", "links", "truncated"}
    assert small["body"]["metadata"]["truncated"] == ["output"]
    assert message_size(small) <= 400
    assert "output" in big["body"]["metadata"]


def test_ids_and_times_are_never_removed() -> None:
    small = shrink(payload(start_ns=1, end_ns=2, exception="x" * 999, links=["x" * 999]), limit=50)
    assert small["body"]["task_id"] == "t"
    assert (small["body"]["metadata"]["start_ns"], small["body"]["metadata"]["end_ns"]) == (1, 2)


def test_short_lists_always_fit_and_are_not_measured() -> None:
    link = {"trace_id": "a" * 32, "span_id": "b" * 16, "tracestate": "c" * MAX_TRACESTATE}
    name, time_ns = "\x00" * MAX_NAME_BYTES, 2**63
    constraint = {"scope": name, "type": "concurrency", "id": name}
    wait: dict[str, Any] = {"span_id": "b" * 16, "start_ns": time_ns, "end_ns": time_ns, "constraint": constraint}
    message = payload(links=[link] * SMALL_LIST, waits=[wait | {"reason": "concurrency"}] * SMALL_LIST)
    message["tracestate"] = "c" * MAX_TRACESTATE
    message["body"].update({"task_id": name, "task_name": name, "error": "\x00" * MAX_ERROR_BYTES})
    assert message_size(message) < MAX_MESSAGE_BYTES

    class Unmeasured:
        def __str__(self) -> str:
            raise AssertionError("the message was encoded to measure it")

    message["body"]["metadata"]["waits"][0] = Unmeasured()
    assert shrink(message) is message


def test_long_lists_are_measured() -> None:
    link = {"trace_id": "a" * 32, "span_id": "b" * 16, "tracestate": "c" * MAX_TRACESTATE}
    small = shrink(payload(start_ns=1, links=[link] * 2 * SMALL_LIST))
    assert small["body"]["metadata"] == {"start_ns": 1, "truncated": ["links"]}


def exception(name: str) -> dict[str, Any]:
    stack = "Traceback (most recent call last):\n" + "  a line\n" * 1_000 + f"{name}: the message"
    return {"type": name, "message": "the message", "stacktrace": stack}


def test_spans_lose_the_middle_of_stack_traces_before_whole_values() -> None:
    metadata: dict[str, Any] = {"exception": exception("KeyError"), "output": "x" * 500, "start_ns": 1}
    shrink_spans(metadata, 400, 4_000)
    assert "truncated" not in metadata
    assert metadata["exception"]["stacktrace"].endswith("KeyError: the message")
    assert spans_size(metadata, 400)[1] <= 4_000
    shrink_spans(metadata, 400, 1_000)
    assert metadata["truncated"] == ["output"]
    assert (metadata["start_ns"], metadata["exception"]["message"]) == (1, "the message")


def test_counted_attempts_are_not_shortened() -> None:
    attempts: list[dict[str, Any]] = [{"attempt": number, "exception": exception("KeyError")} for number in (1, 2)]
    shrink_spans({"attempts": attempts}, 400, 1_000, counted=1)
    first, second = (len(attempt["exception"]["stacktrace"]) for attempt in attempts)
    assert first > 9_000
    assert second < 500
