"""Connectors of one destination share their export state: threads, sockets, queue, health of the peer."""

import threading

import pytest

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.testing import OtlpReceiver
from tests.connectors.otel import peers

RUNS = 10


@cs.task
def one() -> int:
    return 1


def threads(name: str, before: frozenset[threading.Thread] = frozenset()) -> int:
    return sum(thread.name == name and thread not in before for thread in threading.enumerate())


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_runs_with_a_connector_each_share_one_thread(protocol: str) -> None:
    before = frozenset(threading.enumerate())
    with OtlpReceiver() as receiver:
        for _ in range(RUNS):
            connector = OtelConnector(receiver.endpoint(protocol), protocol=protocol, logs=True)
            cs.run(one(), connector=connector, log_level="ERROR")
        assert len(receiver.spans.named("run one")) == RUNS
        assert threads("cascade-otlp", before) == 1


@pytest.mark.usefixtures("real_limits")
def test_runs_with_a_connector_each_share_one_thread_with_a_dead_collector() -> None:
    before, endpoint = frozenset(threading.enumerate()), peers.refused()
    for _ in range(RUNS):
        cs.run(one(), connector=OtelConnector(endpoint), log_level="OFF")
    assert threads("cascade-otlp", before) == 1


@pytest.mark.parametrize(
    "other",
    [{"headers": {"x-team": "other"}}, {"protocol": "grpc"}],
    ids=["headers", "protocol"],
)
def test_another_destination_has_a_queue_of_its_own(other: dict[str, object]) -> None:
    before, endpoint = frozenset(threading.enumerate()), peers.refused()
    cs.run(one(), connector=OtelConnector(endpoint, metrics=False, flush_timeout=0.01), log_level="OFF")
    assert threads("cascade-otlp", before) == 1
    options = {"metrics": False, "flush_timeout": 0.01, **other}
    cs.run(one(), connector=OtelConnector(endpoint, **options), log_level="OFF")  # type: ignore[arg-type]
    assert threads("cascade-otlp", before) == 2
