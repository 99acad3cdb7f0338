"""Propagation of tracestate and baggage from the caller or the environment to spans, messages and requests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, TraceState

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from cascade.runtime.engine import run_nested
from cascade.telemetry.identity import parse_tracestate
from tests.connectors.otel.tracing import Collector, replay

STATE = "acme=t61rcWkgMzE,ot=th:c"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "tracestate": STATE, "baggage": "tenant=blue"}

Sent = dict[str, str]


def sent() -> Sent:
    """Return the headers that an HTTP client would send here."""
    carrier: Sent = {}
    propagate.inject(carrier)
    return carrier


async def sent_later() -> Sent:
    await asyncio.sleep(0)
    return sent()


def sent_below() -> Sent:
    with trace.get_tracer("users").start_as_current_span("own"):
        return sent()


def sent_at_last() -> Sent:
    task = cs.current_task()
    assert task is not None
    if task.attempt == 1:
        raise ConnectionError("not yet")
    return sent()


@cs.resource
def connection() -> Iterator[Sent]:
    yield sent()


@cs.resource
async def async_connection() -> AsyncIterator[Sent]:
    yield sent()


async def nested() -> Sent:
    return await run_nested(cs.task(sent, name="inner")())


def of_resource(definition: Any) -> Any:
    def given_by(made: Sent = cs.inject(definition)) -> Sent:
        return made

    return cs.task(given_by)()


def first(xs: list[Sent]) -> Sent:
    return xs[0]


SHAPES: dict[str, Callable[[], Any]] = {
    "sync": cs.task(sent),
    "in loop": cs.task(sent, threaded=False),
    "async": cs.task(sent_later),
    "own span": cs.task(sent_below),
    "retry": lambda: cs.task(sent_at_last)().with_retry(1),
    "map": lambda: cs.task(first)(cs.task(lambda _: sent(), name="item").map(_=[1])),
    "async map": lambda: cs.task(first)(cs.task(sent_item, name="item").map(_=[1])),
    "resource": lambda: of_resource(connection),
    "async resource": lambda: of_resource(async_connection),
    "nested": cs.task(nested),
    "skipped": lambda: cs.task(lambda a, b: a, name="both")(cs.task(sent)(), cs.task(recalled)().with_cache(Cached())),
    "wait": lambda: cs.task(sent_at_last)().with_retry(1, delay=0.002),
}


async def sent_item(_: int) -> Sent:
    return sent()


def recalled() -> None:
    raise AssertionError("the cache has it")


class Cached:
    def check(self, task_id: str, inputs: Any) -> Any:
        return 1

    def save(self, task_id: str, inputs: Any, output: Any) -> None:
        pass


@contextmanager
def received(headers: Sent = HEADERS) -> Iterator[None]:
    token = otel_context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        otel_context.detach(token)


@pytest.fixture(params=["current context", "environment"])
def inbound(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractContextManager[None]]:
    if request.param == "current context":
        return received

    def environment(headers: Sent = HEADERS) -> AbstractContextManager[None]:
        for name, value in headers.items():
            monkeypatch.setenv(name.upper(), value)
        return nullcontext()

    return environment


@pytest.mark.parametrize("shape", SHAPES)
def test_all_spans_and_requests_of_a_run_have_the_tracestate_and_baggage_of_the_caller(
    collector: Collector, inbound: Callable[..., AbstractContextManager[None]], shape: str
) -> None:
    collector.receiver.clear()
    with inbound():
        out = cs.run(SHAPES[shape](), connector=collector.connector(), log_level="OFF")
    spans = collector.receiver.spans
    assert {(span.trace_id, span.trace_state) for span in spans} == {(TRACE, STATE)}
    assert {link.trace_state for span in spans for link in span.links} <= {STATE}
    assert (out["tracestate"], out["baggage"]) == (STATE, "tenant=blue")
    assert out["traceparent"].split("-")[2] in {span.span_id for span in spans} or shape == "own span"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_provider_of_the_application_and_its_processors_get_the_tracestate_and_baggage(
    inbound: Callable[..., AbstractContextManager[None]], shape: str
) -> None:
    provider, exporter = provider_with()
    provider.add_span_processor(Tenants())
    with inbound():
        out = cs.run(SHAPES[shape](), connector=OtelConnector(tracer_provider=provider), log_level="OFF")
    spans = exporter.get_finished_spans()
    assert {state_of(span) for span in spans} == {STATE}
    assert {str((span.attributes or {}).get("tenant")) for span in spans} == {"blue"}
    assert (out["tracestate"], out["baggage"]) == (STATE, "tenant=blue")


def provider_with(**options: Any) -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False, **options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def state_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return str(span.context.trace_state.to_header())


class Tenants(SpanProcessor):
    """Copies baggage to the spans that start in its context, like opentelemetry-processor-baggage."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("tenant", str(baggage.get_baggage("tenant", parent_context)))


UNSAMPLED = HEADERS | {"traceparent": HEADERS["traceparent"][:-2] + "00"}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_that_is_not_sampled_propagates_tracestate_and_baggage(
    collector: Collector, inbound: Callable[..., AbstractContextManager[None]], shape: str
) -> None:
    collector.receiver.clear()
    with inbound(UNSAMPLED):
        out = cs.run(SHAPES[shape](), connector=collector.connector(), log_level="OFF")
        seen = seen_by_a_command(connector=collector.connector())
    assert (out["tracestate"], out["baggage"], out["traceparent"][-3:]) == (STATE, "tenant=blue", "-00")
    assert (seen["TRACESTATE"], seen["BAGGAGE"], seen["TRACEPARENT"][-3:]) == (STATE, "tenant=blue", "-00")
    assert list(collector.receiver.spans) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_a_provider_of_the_application_propagates_the_context_of_a_run_that_is_not_sampled(shape: str) -> None:
    provider, exporter = provider_with()
    with received(UNSAMPLED):
        out = cs.run(SHAPES[shape](), connector=OtelConnector(tracer_provider=provider), log_level="OFF")
    assert (out["tracestate"], out["baggage"], out["traceparent"][-3:]) == (STATE, "tenant=blue", "-00")
    assert exporter.get_finished_spans() == ()


def test_a_run_in_a_trace_of_its_own_has_the_tracestate_only_on_its_link(
    collector: Collector, inbound: Callable[..., AbstractContextManager[None]]
) -> None:
    for parent, linked in (("link", [(TRACE, STATE)]), ("none", [])):
        collector.receiver.clear()
        memory = MemoryConnector()
        with inbound():
            connector = collector.connector(parent=parent)
            out = cs.run(cs.task(sent)(), connector=[connector, memory], log_level="OFF")
        spans = collector.receiver.spans
        assert {span.trace_state for span in spans} == {""}
        assert [(link.trace_id, link.trace_state) for link in spans.one("run sent").links] == linked
        assert ("tracestate" in out, out["baggage"]) == (False, "tenant=blue")
        links = [link for payload in memory.payloads for link in payload["body"]["metadata"].get("links", ())]
        assert {(link["trace_id"], link.get("tracestate")) for link in links} == set(linked)
        assert not any("tracestate" in payload for payload in memory.payloads)


def test_a_part_is_a_trace_of_its_own(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    """It starts without a tracestate, as W3C requires for a restarted trace. Baggage does not depend on the trace."""
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", "2")
    collector.receiver.clear()
    memory = MemoryConnector()
    with received():
        made = cs.task(lambda: [1, 2, 3], name="numbers")()
        target = cs.task(lambda n, _: sent(), name="item").map(n=[1, 2, 3], _=[made, made, made])
        outs = cs.run(target, connector=[collector.connector(), memory], log_level="OFF")
    spans = collector.receiver.spans
    whole, (part,) = spans.one("map(item)"), spans.parts(spans.one("map(item)"))
    assert {span.trace_id == TRACE: span.trace_state for span in spans} == {True: STATE, False: ""}
    assert [(link.trace_id, link.trace_state) for link in part.links] == [(TRACE, STATE)]
    assert {link.trace_id: link.trace_state for link in whole.links} == {TRACE: STATE, part.trace_id: ""}
    assert [out.get("tracestate") for out in outs] == [STATE, STATE, None]
    assert {out["baggage"] for out in outs} == {"tenant=blue"}
    for payload in memory.payloads:
        assert payload.get("tracestate") == (STATE if payload["trace_id"] == TRACE else None)
    live = described(spans)
    collector.receiver.clear()
    replay(collector.connector(), memory.payloads)
    assert described(collector.receiver.spans) == live


def described(spans: Any) -> set[Any]:
    return {(s.name, s.span_id, s.trace_state, tuple((x.span_id, x.trace_state) for x in s.links)) for s in spans}


class Adding(Sampler):
    """Modifies the tracestate, like samplers that record their probability."""

    def should_sample(self, parent_context: Context | None, *_: Any, **__: Any) -> SamplingResult:
        state = trace.get_current_span(parent_context).get_span_context().trace_state or TraceState()
        return SamplingResult(Decision.RECORD_AND_SAMPLE, trace_state=state.update("ot", "th:8"))

    def get_description(self) -> str:
        return "Adding"


@pytest.mark.parametrize("shape", [name for name in SHAPES if "resource" not in name])
@pytest.mark.parametrize("sampler", [Adding(), ParentBased(Adding())])
def test_a_sampler_may_change_the_tracestate(shape: str, sampler: Sampler) -> None:
    provider, exporter = provider_with(sampler=sampler)
    memory = MemoryConnector()
    out = cs.run(SHAPES[shape](), connector=[OtelConnector(tracer_provider=provider), memory], log_level="OFF")
    assert {state_of(span) for span in exporter.get_finished_spans()} == {"ot=th:8"}
    assert {payload["tracestate"] for payload in memory.payloads} == {"ot=th:8"}
    assert out["tracestate"] == "ot=th:8"


@pytest.mark.parametrize("sampler", [Adding(), ParentBased(Adding())])
def test_a_replay_keeps_the_tracestate_that_a_sampler_has_made(sampler: Sampler) -> None:
    provider, exporter = provider_with(sampler=sampler)
    memory = MemoryConnector()
    connectors: list[Any] = [OtelConnector(tracer_provider=provider), memory]
    cs.run(cs.task(sent_at_last)().with_retry(1), connector=connectors, log_level="OFF")
    bridge, rebuilt = provider_with()
    replay(OtelConnector(tracer_provider=bridge), memory.payloads)
    live = {(span.name, state_of(span)) for span in exporter.get_finished_spans()}
    assert {(span.name, state_of(span)) for span in rebuilt.get_finished_spans()} == live


class Counting(Sampler):
    """Gives each span a tracestate of its own: the number of its ancestors."""

    def should_sample(self, parent_context: Context | None, *_: Any, **__: Any) -> SamplingResult:
        state = trace.get_current_span(parent_context).get_span_context().trace_state or TraceState()
        return SamplingResult(
            Decision.RECORD_AND_SAMPLE, trace_state=state.update("n", str(int(state.get("n", "-1")) + 1))
        )

    def get_description(self) -> str:
        return "Counting"


def test_requests_of_a_task_have_the_tracestate_of_its_span() -> None:
    provider, exporter = provider_with(sampler=Counting())
    connector = OtelConnector(tracer_provider=provider)
    assert cs.run(cs.task(sent)(), connector=connector, log_level="OFF")["tracestate"] == "n=1"
    assert seen_by_a_command(connector=connector)["TRACESTATE"] == "n=1"
    nested_run = cs.run(cs.task(nested)(), connector=connector, log_level="OFF")
    assert nested_run["tracestate"] == "n=3"
    found = {span.name: state_of(span) for span in exporter.get_finished_spans()}
    assert [found[name] for name in ("run nested", "nested", "run inner", "inner")] == ["n=0", "n=1", "n=2", "n=3"]


class DroppingSampler(Sampler):
    """Drops the spans of some names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def should_sample(
        self, parent_context: Context | None, trace_id: int, name: str, *_: Any, **__: Any
    ) -> SamplingResult:
        return SamplingResult(Decision.DROP if name in self.names else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "DroppingSampler"


def test_a_task_that_a_sampler_drops_is_not_sent_as_sampled() -> None:
    provider, exporter = provider_with(sampler=DroppingSampler("sent", "shell"))
    connector = OtelConnector(tracer_provider=provider)
    assert cs.run(cs.task(sent)(), connector=connector, log_level="OFF")["traceparent"].endswith("-00")
    assert seen_by_a_command(connector=connector)["TRACEPARENT"].endswith("-00")
    names = {"run sent", "run sent started", "run shell", "run shell started"}
    assert {span.name for span in exporter.get_finished_spans()} == names


@pytest.mark.parametrize("state", ["acme", "A=1", "a=1,a=2", "a=\N{LATIN SMALL LETTER E WITH ACUTE}", "a=1\x7f"])
def test_a_malformed_tracestate_is_ignored(monkeypatch: pytest.MonkeyPatch, collector: Collector, state: str) -> None:
    monkeypatch.setenv("TRACEPARENT", HEADERS["traceparent"])
    monkeypatch.setenv("TRACESTATE", state)
    out = collector_run(collector)
    assert {(span.trace_id, span.trace_state) for span in collector.receiver.spans} == {(TRACE, "")}
    assert "tracestate" not in out


def collector_run(collector: Collector) -> Sent:
    collector.receiver.clear()
    return cs.run(cs.task(sent)(), connector=collector.connector(), log_level="OFF")


def test_a_tracestate_without_a_valid_traceparent_is_not_used(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv("TRACEPARENT", "00-nonsense")
    monkeypatch.setenv("TRACESTATE", STATE)
    assert "tracestate" not in collector_run(collector)
    assert {span.trace_state for span in collector.receiver.spans} == {""}


def test_malformed_entries_of_baggage_are_ignored(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    monkeypatch.setenv("BAGGAGE", "a=1,,nonsense,b c=2,d=%20x;p=1,\N{SNOWMAN}=3")
    assert sorted(collector_run(collector)["baggage"].split(",")) == ["a=1", "d=x%3Bp%3D1"]
    monkeypatch.setenv("BAGGAGE", "nonsense")
    assert "baggage" not in collector_run(collector)


def test_the_current_context_takes_precedence_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    for name, value in HEADERS.items():
        monkeypatch.setenv(name.upper(), value)
    monkeypatch.setenv("BAGGAGE", "tenant=red")
    span = NonRecordingSpan(trace.SpanContext(7, 8, is_remote=True, trace_flags=trace.TraceFlags(1)))
    with attached(trace.set_span_in_context(span)):
        out = collector_run(collector)
    assert (out["traceparent"][:35], "tracestate" in out, "baggage" in out) == (f"00-{7:032x}", False, False)
    with attached(baggage.set_baggage("tenant", "green")):
        out = collector_run(collector)
    assert (out["traceparent"][3:35], out["tracestate"], out["baggage"]) == (TRACE, STATE, "tenant=green")


@contextmanager
def attached(context: Context) -> Iterator[None]:
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


@pytest.mark.parametrize("shape", SHAPES)
def test_baggage_needs_no_connector(shape: str) -> None:
    with received({"baggage": "tenant=blue"}):
        assert cs.run(SHAPES[shape](), log_level="OFF")["baggage"] == "tenant=blue"


MEMBERS = st.lists(st.from_regex(r"[ \t]*[a-z0-9@_*/-]{0,4}=?[a-z =A@\x7f]{0,4}[ \t]*", fullmatch=True), max_size=40)


@given(MEMBERS.map(",".join) | st.text(max_size=40))
def test_a_tracestate_is_read_as_the_sdk_reads_it(header: str) -> None:
    assert parse_tracestate(header) == TraceState.from_header([header]).to_header()


def resource_with_baggage(kind: str, seen: list[Any]) -> Any:
    def set_up() -> None:
        otel_context.attach(baggage.set_baggage("tenant", "blue"))
        seen.append(trace.get_current_span().get_span_context().span_id)

    def tear_down() -> None:
        seen.extend([baggage.get_baggage("tenant"), trace.get_current_span().get_span_context().span_id])

    def plain() -> Iterator[int]:
        set_up()
        yield 1
        tear_down()

    async def asynchronous() -> AsyncIterator[int]:
        set_up()
        yield 1
        tear_down()

    return cs.resource(name="db")(plain if kind == "sync" else asynchronous)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("traced", [1, 2])
@pytest.mark.parametrize("detail", ["full", "run"])
def test_context_attached_in_a_setup_is_current_in_the_teardown(
    collector: Collector, kind: str, traced: int, detail: Any
) -> None:
    seen: list[Any] = []

    def use(db: int = cs.inject(resource_with_baggage(kind, seen))) -> Sent:
        return sent()

    collector.receiver.clear()
    connectors = [collector.connector(detail=detail) for _ in range(traced)]
    assert "baggage" not in cs.run(cs.task(use)(), connector=connectors, log_level="OFF")
    spans = collector.receiver.spans
    steps = [spans.named(name)[0] for name in ("db setup", "db teardown") if spans.named(name)]
    expected = [int(step.span_id, 16) for step in steps] or [int(spans.named("run use")[0].span_id, 16)] * 2
    assert seen == [expected[0], "blue", expected[1]]
    assert not baggage.get_all()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_span_that_is_current_across_the_yield_of_a_resource_causes_no_warning(
    collector: Collector, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def plain() -> Iterator[int]:
        with trace.get_tracer("users").start_as_current_span("pool"):
            yield 1

    async def asynchronous() -> AsyncIterator[int]:
        with trace.get_tracer("users").start_as_current_span("pool"):
            yield 1

    definition = cs.resource(name="db")(plain if kind == "sync" else asynchronous)

    def use(db: int = cs.inject(definition)) -> int:
        return db

    collector.trace_of(cs.task(use)())
    assert "Failed to detach context" not in caplog.text


def test_current_task_has_the_tracestate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", HEADERS["traceparent"])
    monkeypatch.setenv("TRACESTATE", STATE)

    def own() -> Any:
        task = cs.current_task()
        return task and (task.traceparent[3:35], task.tracestate)

    assert cs.run(cs.task(own)(), log_level="OFF") == (TRACE, STATE)


VARIABLES = ("TRACEPARENT", "TRACESTATE", "BAGGAGE")
SHELL = ["sh", "-c", "; ".join(f"echo {name}:${{{name}-none}}" for name in VARIABLES)]


def seen_by_a_command(**options: Any) -> dict[str, str]:
    out = cs.run(cs.shell(SHELL), log_level="OFF", **options)
    return dict(line.split(":", 1) for line in out.splitlines())


def test_a_command_gets_the_context_in_its_environment(
    collector: Collector, inbound: Callable[..., AbstractContextManager[None]]
) -> None:
    collector.receiver.clear()
    with inbound():
        seen = seen_by_a_command(connector=collector.connector())
    span = collector.receiver.spans.one("shell")
    assert list(seen.values()) == [f"00-{TRACE}-{span.span_id}-01", STATE, "tenant=blue"]


def test_with_detail_run_a_command_is_a_child_of_the_run(collector: Collector) -> None:
    collector.receiver.clear()
    seen = seen_by_a_command(connector=collector.connector(detail="run"))
    span = collector.receiver.spans.one("run shell")
    assert seen["TRACEPARENT"] == f"00-{span.trace_id}-{span.span_id}-01"


def test_a_command_does_not_get_the_context_of_the_process(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    """The variables of the process belong to another parent."""
    for name, value in HEADERS.items():
        monkeypatch.setenv(name.upper(), value)
    collector.receiver.clear()
    span = NonRecordingSpan(trace.SpanContext(7, 8, is_remote=True, trace_flags=trace.TraceFlags(1)))
    with attached(trace.set_span_in_context(span)):
        seen = seen_by_a_command(connector=collector.connector())
    assert seen["TRACEPARENT"].startswith(f"00-{7:032x}-")
    assert (seen["TRACESTATE"], seen["BAGGAGE"]) == ("none", "none")
    seen = seen_by_a_command(connector=collector.connector(parent="none"))
    assert TRACE not in seen["TRACEPARENT"]
    assert (seen["TRACESTATE"], seen["BAGGAGE"]) == ("none", "tenant=blue")


@pytest.mark.parametrize("connected", [False, True])
def test_a_command_needs_no_otel_connector(connected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"connector": MemoryConnector()} if connected else {}
    for name, value in HEADERS.items():
        monkeypatch.setenv(name.upper(), value)
    seen = seen_by_a_command(**options)
    assert (seen["TRACEPARENT"][3:35], seen["TRACESTATE"], seen["BAGGAGE"]) == (TRACE, STATE, "tenant=blue")
    with attached(baggage.set_baggage("tenant", "green")):
        assert seen_by_a_command(**options)["BAGGAGE"] == "tenant=green"


def test_disabled_propagators_do_not_change_baggage_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", CompositePropagator([]))
    monkeypatch.setenv("BAGGAGE", "tenant=blue")
    assert seen_by_a_command(connector=collector.connector())["BAGGAGE"] == "tenant=blue"
    assert cs.run(cs.task(lambda: dict(baggage.get_all()))(), connector=collector.connector(), log_level="OFF") == {}
