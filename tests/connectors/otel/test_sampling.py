"""Samplers, which get run ids as trace ids."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID, uuid4

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased, Sampler, TraceIdRatioBased

import cascade as cs
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.fanout import FanoutConnector
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.protocols import Connector
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.testing import OtlpReceiver
from tests.connectors.otel.tracing import Collector, provider_for, replay

RUNS = 40
HALF = 1 << 64
"""Ratio samplers compare the low half of a trace id with a bound."""


@cs.task(threaded=False)
def one() -> int:
    return 1


@cs.task
def touched(x: int) -> int:
    trace.get_current_span().set_attribute("x", x)
    with trace.get_tracer("users").start_as_current_span("own"):
        return x


async def run_with_ids(make_target: Callable[[], Any], connector: Connector, run_ids: Iterable[str]) -> None:
    ids = list(run_ids)
    source = iter(ids)
    executor, bus = LocalExecutor(), MessageBus()
    TelemetrySubscriber(bus, connector)
    engine = Engine(NativeSolver(), executor, bus, connector=connector, run_ids=lambda: next(source))
    for _ in ids:
        await engine.run(make_target())
    executor.close()


def run_id(low: int) -> str:
    return str(UUID(int=0xFEED << 64 | low))


def spread() -> list[str]:
    """Return run ids with equidistant low halves. An exact share of them is below a bound."""
    return [run_id((2 * n + 1) * HALF // (2 * RUNS)) for n in range(RUNS)]


def provider_with(sampler: Sampler) -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


@pytest.mark.parametrize("ratio", [0.1, 0.6, 0.9])
@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
@pytest.mark.parametrize("parent", ["join", "link", "none"])
async def test_the_kept_share_of_runs_equals_the_ratio(
    monkeypatch: pytest.MonkeyPatch, collector: Collector, sampler: str, ratio: float, parent: Any
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", str(ratio))
    if parent != "join":  # an unsampled caller, which a run in a trace of its own does not follow
        monkeypatch.setenv("TRACEPARENT", f"00-{'a' * 32}-{'b' * 16}-00")
    collector.receiver.clear()
    await run_with_ids(one, collector.connector(parent=parent), spread())
    kept = Counter(span.name for span in collector.receiver.spans)
    assert kept == dict.fromkeys(("run one", "run one started", "one"), round(ratio * RUNS))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
@pytest.mark.parametrize("kind", [TraceIdRatioBased, lambda ratio: ParentBased(TraceIdRatioBased(ratio))])
async def test_the_kept_share_equals_the_ratio_with_an_applications_provider(
    kind: Callable[[float], Sampler], ratio: float
) -> None:
    provider, exporter = provider_with(kind(ratio))
    await run_with_ids(one, OtelConnector(tracer_provider=provider), spread())
    kept = Counter(span.name for span in exporter.get_finished_spans())
    assert kept == dict.fromkeys(("run one", "run one started", "one"), round(ratio * RUNS))


TINY = 1e-9
WHOLE = {"run map(touched)": 1, "run map(touched) started": 1, "map(touched)": 1, "map(touched) part": 2, "touched": 25}


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
async def test_the_parts_of_a_run_are_kept_or_dropped_with_the_run(
    monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """The ids of parts are hashes, and nearly all of them are between the two bounds."""
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", "10")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    for ratio, low, kept in ((TINY, 1, {**WHOLE, "own": 25}), (1 - TINY, HALF - 1, {})):
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", str(ratio))
        with OtlpReceiver() as receiver:
            # A tracer of the connector's own provider, as instrumentation gets it where that provider is the global one.
            connector = OtelConnector(receiver.http_endpoint)
            monkeypatch.setattr(trace, "get_tracer", provider_for(receiver.http_endpoint).get_tracer)
            await run_with_ids(lambda: touched.map(x=list(range(25))), connector, [run_id(low)])
            assert Counter(span.name for span in receiver.spans) == kept


@pytest.mark.parametrize("kind", [TraceIdRatioBased, lambda ratio: ParentBased(TraceIdRatioBased(ratio))])
async def test_an_applications_sampler_keeps_or_drops_parts_with_their_run(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[[float], Sampler]
) -> None:
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", "10")
    for ratio, low, kept in ((TINY, 1, WHOLE), (1 - TINY, HALF - 1, {})):
        provider, exporter = provider_with(kind(ratio))
        connector = OtelConnector(tracer_provider=provider)
        await run_with_ids(lambda: touched.map(x=list(range(25))), connector, [run_id(low)])
        assert Counter(span.name for span in exporter.get_finished_spans()) == kept


@pytest.mark.parametrize("low", [1, HALF - 1])
@pytest.mark.parametrize("sampler", [ParentBased(TraceIdRatioBased(TINY)), ParentBased(TraceIdRatioBased(1 - TINY))])
async def test_a_replay_keeps_the_runs_that_were_sampled_and_only_those(
    monkeypatch: pytest.MonkeyPatch, low: int, sampler: Sampler
) -> None:
    """The sampler of the bridge follows the decision in the messages and ignores its own ratio."""
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", "10")
    provider, exporter = provider_with(sampler)
    memory = MemoryConnector()
    connector = FanoutConnector([OtelConnector(tracer_provider=provider), memory])
    await run_with_ids(lambda: touched.map(x=list(range(25))), connector, [run_id(low)])
    live = Counter(span.name for span in exporter.get_finished_spans())
    for ratio in (TINY, 1 - TINY):
        bridge, rebuilt = provider_with(ParentBased(TraceIdRatioBased(ratio)))
        replaying = OtelConnector(tracer_provider=bridge)
        await replaying.connect()
        for payload in memory.payloads:
            await replaying.publish("topic", payload)
        await replaying.disconnect()
        assert Counter(span.name for span in rebuilt.get_finished_spans()) == live


@pytest.mark.parametrize("ratio", [TINY, 1 - TINY])
@pytest.mark.parametrize("low", [0, HALF - 1])
async def test_a_sampler_that_ignores_parents_keeps_or_drops_a_replay_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, low: int, ratio: float
) -> None:
    """The run id decides, because the ids of its parts are hashes."""
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", "10")
    memory = MemoryConnector()
    await run_with_ids(lambda: touched.map(x=list(range(25))), memory, [run_id(low)])
    bridge, rebuilt = provider_with(TraceIdRatioBased(ratio))
    await asyncio.to_thread(replay, OtelConnector(tracer_provider=bridge), memory.payloads)
    kept = Counter(span.name for span in rebuilt.get_finished_spans())
    assert kept == (WHOLE if low == 0 else {})


@pytest.mark.parametrize("limit", ["", "100"])
async def test_a_replay_of_a_run_that_was_not_sampled_exports_nothing(
    limit: str, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", limit)  # with a limit, spans are the SDK's
    memory = MemoryConnector()
    connector = FanoutConnector([OtelConnector(tracer_provider=provider_with(ALWAYS_OFF)[0]), memory])
    await run_with_ids(one, connector, [run_id(1)])
    bridge, rebuilt = provider_with(ALWAYS_ON)
    collector.receiver.clear()
    for replaying in (OtelConnector(tracer_provider=bridge), collector.connector()):
        await asyncio.to_thread(replay, replaying, memory.payloads)
    assert (rebuilt.get_finished_spans(), list(collector.receiver.spans)) == ((), [])


SAMPLERS = ["always_on", "always_off", "traceidratio", "parentbased_traceidratio"]


@pytest.mark.parametrize("first", SAMPLERS)
@pytest.mark.parametrize("later", SAMPLERS)
async def test_spans_below_a_task_are_kept_or_dropped_with_the_task(
    monkeypatch: pytest.MonkeyPatch, collector: Collector, first: str, later: str
) -> None:
    """The global provider creates them. The first run has set it with other variables."""

    @cs.task
    def work() -> None:
        tracer = trace.get_tracer("users")
        with tracer.start_as_current_span("child"), tracer.start_as_current_span("grandchild"):
            pass

    monkeypatch.setenv("OTEL_TRACES_SAMPLER", first)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", str(TINY))
    monkeypatch.setattr(trace, "get_tracer", provider_for(collector.endpoint, collector.protocol).get_tracer)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", later)
    for low, is_kept in ((HALF - 1, later == "always_on"), (0, later != "always_off")):
        collector.receiver.clear()
        await run_with_ids(work, collector.connector(), [run_id(low)])
        names = sorted(span.name for span in collector.receiver.spans)
        assert names == (["child", "grandchild", "run work", "run work started", "work"] if is_kept else [])


async def test_root_spans_and_spans_with_remote_parents_in_a_task_use_the_sampler(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    @cs.task
    def work() -> None:
        tracer = trace.get_tracer("users")
        tracer.start_span("root", trace.set_span_in_context(trace.INVALID_SPAN)).end()
        remote = trace.SpanContext(7, 8, is_remote=True, trace_flags=trace.TraceFlags(1))
        tracer.start_span("consumer", trace.set_span_in_context(trace.NonRecordingSpan(remote))).end()

    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    connector = collector.connector()
    monkeypatch.setattr(trace, "get_tracer", provider_for(collector.endpoint, collector.protocol).get_tracer)
    collector.receiver.clear()
    await run_with_ids(work, connector, [run_id(1)])
    assert list(collector.receiver.spans) == []


async def test_a_version_4_uuid_is_accepted_and_biases_ratio_samplers(collector: Collector) -> None:
    """Two fixed bits keep its low half between a half and three quarters of the range, as documented."""
    given = str(uuid4())
    collector.receiver.clear()
    await run_with_ids(one, collector.connector(), [given])
    span = collector.receiver.spans.one("run one")
    assert (span.trace_id, span.attributes["cascade.run.id"]) == (given.replace("-", ""), given)
    for ratio, kept in ((0.5, False), (0.75, True)):
        assert (UUID(given).int % HALF < TraceIdRatioBased.get_bound_for_rate(ratio)) is kept


@pytest.mark.parametrize(("ratio", "share"), [(0.1, 0.0), (0.5, 0.0), (0.6, 0.4), (0.7, 0.8), (0.75, 1.0), (1.0, 1.0)])
def test_the_share_of_version_4_uuids_that_a_ratio_keeps(ratio: float, share: float) -> None:
    """Two fixed bits keep their low halves between a half and three quarters of the range."""
    ids = [UUID(int=(2 << 62) + (2 * n + 1) * (HALF // 4) // 2000, version=4).int for n in range(1000)]
    decisions = [TraceIdRatioBased(ratio).should_sample(None, one_id, "run").decision for one_id in ids]
    assert decisions.count(Decision.RECORD_AND_SAMPLE) == pytest.approx(1000 * share, abs=1)
