"""OtelConnector passes what all connectors pass, refuses bad settings, and takes any kind of collector."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.runtime.exceptions import TelemetryLostError
from cascade.testing import ConnectorConformance, Fault, OtlpReceiver
from tests.connectors.otel import peers
from tests.connectors.otel.tracing import Collector
from tests.waiting import NEVER


@cs.task
def one() -> int:
    return 1


@pytest.fixture
def refused() -> str:
    return peers.refused()


@pytest.fixture
def black_hole() -> Iterator[str]:
    with peers.black_hole() as endpoint:
        yield endpoint


class _Conformance(ConnectorConformance):
    protocol: str

    @pytest.fixture(autouse=True)
    def _receiver(self, refused: str) -> Iterator[None]:
        self.refused = refused
        with OtlpReceiver() as receiver:
            self.collector = Collector(receiver, self.protocol)
            yield

    def make_connector(self) -> OtelConnector:
        return self.collector.connector()

    def make_dead_connector(self) -> OtelConnector:
        return OtelConnector(self.refused, protocol=self.protocol)


class TestOverHttp(_Conformance):
    protocol = "http/protobuf"


class TestOverGrpc(_Conformance):
    protocol = "grpc"


@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("peer", ["refused", "black_hole"])
def test_a_dead_collector_costs_one_warning(
    peer: str, protocol: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = request.getfixturevalue(peer)
    assert cs.run(one(), connector=OtelConnector(endpoint, protocol=protocol, flush_timeout=NEVER)) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 spans were lost" in record.getMessage()
    assert endpoint in record.getMessage()
    assert record.getMessage().count("\n") <= 2


def test_a_collector_that_answers_503_costs_one_warning(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    collector.receiver.fault = Fault.unavailable()
    try:
        assert cs.run(one(), connector=collector.connector()) == 1
    finally:
        collector.receiver.fault = None
    assert ["3 spans were lost" in message for message in caplog.messages] == [True]


def test_a_collector_that_recovers_gets_everything(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    collector.receiver.fault = Fault.unavailable(times=1)
    spans = collector.trace_of(one())
    assert {span.name for span in spans} == {"run one", "run.started", "one"}
    assert caplog.messages == []


def test_a_partial_success_is_counted(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    collector.receiver.fault = Fault.partial_success(1, "too old", times=1)
    assert cs.run(one(), connector=collector.connector()) == 1
    assert ["1 spans were lost" in message and "too old" in message for message in caplog.messages] == [True]


def test_strict_makes_an_error_of_a_loss(refused: str) -> None:
    with pytest.raises(TelemetryLostError, match="3 spans were lost") as caught:
        cs.run(one(), connector=OtelConnector(refused, strict=True))
    assert caught.value.lost == 3


def test_the_runs_own_error_comes_before_a_loss(refused: str) -> None:
    with pytest.raises(ZeroDivisionError):
        cs.run(cs.task(lambda: 1 / 0, name="divide")(), connector=OtelConnector(refused, strict=True))


def test_a_dead_collector_does_not_disturb_a_live_one(collector: Collector, refused: str) -> None:
    spans = collector.trace_of(one(), connector=[OtelConnector(refused), collector.connector()])
    assert {span.name for span in spans} == {"run one", "run.started", "one"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detail": "everything"}, "detail='everything'"),
        ({"parent": "adopt"}, "parent='adopt'"),
        ({"semconv": "mine"}, "semconv='mine'"),
        ({"capture": ["secrets"]}, "'secrets' is unknown"),
        ({"flush_timeout": 0}, "flush_timeout=0"),
        ({"flush_timeout": float("nan")}, "flush_timeout=nan"),
        ({"endpoint": "nonsense://"}, "nonsense"),
        ({"protocol": "http/json"}, "http/json"),
        ({"tracer_provider": 5}, "tracer_provider=5"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        OtelConnector(**options)


def test_two_runs_at_once_share_a_connector(collector: Collector) -> None:
    import asyncio

    connector = collector.connector()
    collector.receiver.clear()

    async def both() -> list[Any]:
        return await asyncio.gather(*(cs.run_async(one(), connector=connector, log_level="ERROR") for _ in range(2)))

    assert asyncio.run(both()) == [1, 1]
    spans = collector.receiver.spans
    assert len(spans.traces()) == 2
    assert (len(spans), spans.orphans()) == (6, [])


def test_ten_thousand_tasks_give_ten_thousand_spans(collector: Collector) -> None:
    @cs.task
    async def item(x: int) -> int:
        return x

    spans = collector.trace_of(item.map(x=list(range(10_000))))
    assert len(spans.named("item")) == 10_000
