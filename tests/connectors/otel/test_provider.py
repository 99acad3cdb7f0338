"""Tracer providers of the caller, of the application and of Cascade. Each program is a separate process."""

import importlib.metadata
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from tests.lab.receiver import FaultyReceiver
from tests.lab.waiting import HANG

HEAD = """
import cascade as cs
from cascade.connectors.otel import OtelConnector
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

@cs.task
def one():
    with trace.get_tracer("users").start_as_current_span("inner"):
        return 1
"""


@cs.task
def one() -> int:
    return 1


def program(code: str, monkeypatch: pytest.MonkeyPatch | None = None, **environment: str) -> str:
    for name, value in environment.items():
        assert monkeypatch is not None
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", HEAD + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def provider_with(**options: Any) -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False, **options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def test_a_tracer_provider_of_the_caller_exports_spans_with_the_ids_of_the_run() -> None:
    provider, exporter = provider_with(resource=Resource({"service.name": "application"}))
    memory = MemoryConnector()
    for _ in range(2):  # it is flushed, not shut down
        cs.run(one(), connector=[OtelConnector(tracer_provider=provider), memory])
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans].count("run one") == 2
    assert {str(span.resource.attributes["service.name"]) for span in spans} == {"application"}
    scopes = [span.instrumentation_scope for span in spans]
    ours = "cascade", importlib.metadata.version("cascade-runs")
    assert {scope and (scope.name, scope.version) for scope in scopes} == {ours}
    ids = {f"{span.context.span_id:016x}" for span in spans if span.context and span.name != "run one started"}
    assert ids == {payload["span_id"] for payload in memory.payloads}
    with provider.get_tracer("others").start_as_current_span("still works"):
        pass
    assert exporter.get_finished_spans()[-1].name == "still works"


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(TraceIdRatioBased(0.0))])
def test_a_sampler_drops_whole_runs(sampler: Any) -> None:
    provider, exporter = provider_with(sampler=sampler)
    memory = MemoryConnector()
    seen: list[str] = []

    @cs.task
    def look() -> None:
        task = cs.current_task()
        assert task is not None
        seen.append(task.traceparent)

    cs.run(look(), connector=[OtelConnector(tracer_provider=provider), memory])
    assert exporter.get_finished_spans() == ()
    assert seen[0].endswith("-00")
    assert {payload["trace_flags"] for payload in memory.payloads} == {0}


def test_the_provider_of_the_application_is_used() -> None:
    program("""
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        assert cs.run(one(), connector=OtelConnector()) == 1
        names = [span.name for span in exporter.get_finished_spans()]
        assert sorted(names) == ["inner", "one", "run one", "run one started"], names
    """)


def test_the_own_provider_becomes_the_global_one_and_serves_runs_to_other_endpoints() -> None:
    with FaultyReceiver() as first, FaultyReceiver() as second:
        program(f"""
            cs.run(one(), connector=OtelConnector({first.http_endpoint!r}))
            cs.run(one(), connector=OtelConnector({second.http_endpoint!r}))
        """)
        for receiver in (first, second):
            assert sorted(span.name for span in receiver.spans) == ["inner", "one", "run one", "run one started"]
            assert receiver.spans.one("inner").parent_span_id == receiver.spans.one("one").span_id


def test_the_environment_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyReceiver() as receiver:
        program(
            "cs.run(one())",
            monkeypatch,
            CASCADE_CONNECTOR="otel",
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc_endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
            OTEL_EXPORTER_OTLP_HEADERS="x-team=a%20b",
        )
        assert {span.name for span in receiver.spans} == {"inner", "one", "run one", "run one started"}
        assert receiver.requests[0].headers["x-team"] == "a b"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_TRACES_SAMPLER", "always_off")],
)
def test_a_variable_that_disables_tracing_stops_all_exports(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        stderr = program("assert cs.run(one(), connector=OtelConnector()) == 1", monkeypatch, **{variable: value})
        assert "lost" not in stderr
        assert receiver.span_count == 0


@pytest.mark.parametrize(
    ("environment", "warnings"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, ["OTEL_EXPORTER_OTLP_PROTOCOL='http/json'"]),
        ({"OTEL_TRACES_EXPORTER": "otlp_proto_http", "OTEL_METRICS_EXPORTER": "otlp_proto_http"}, []),
        ({"OTEL_TRACES_EXPORTER": "", "OTEL_TRACES_SAMPLER": "", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": ""}, []),
        ({"OTEL_TRACES_EXPORTER": "nonsense"}, ["OTEL_TRACES_EXPORTER='nonsense'"]),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "abc"}, ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT='abc'"]),
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, ["OTEL_TRACES_SAMPLER='jaeger_remote'"]),
        ({"OTEL_CONFIG_FILE": "/nowhere.yaml"}, ["OTEL_CONFIG_FILE='/nowhere.yaml'"]),
        ({"OTEL_LOGS_EXPORTER": "console"}, ["OTEL_LOGS_EXPORTER='console'"]),
        (
            {"OTEL_EXPORTER_OTLP_TIMEOUT": "10s", "OTEL_METRIC_EXPORT_INTERVAL": "1m"},
            ["OTEL_EXPORTER_OTLP_TIMEOUT='10s'", "OTEL_METRIC_EXPORT_INTERVAL='1m'"],
        ),
    ],
)
def test_an_invalid_variable_causes_one_warning_per_process(
    environment: dict[str, str], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        stderr = program(
            "for _ in range(2): assert cs.run(one(), connector=OtelConnector(), log_level='OFF') == 1",
            monkeypatch,
            **environment,
        )
        assert sorted(span.name for span in receiver.spans) == sorted(
            ["inner", "one", "run one", "run one started"] * 2
        )
    lines = stderr.splitlines()
    assert [line.partition(" ")[2].startswith(warning) for line, warning in zip(lines, warnings, strict=True)] == [
        True for _ in warnings
    ], stderr


@pytest.mark.parametrize(
    "unused",
    [
        {"OTEL_SDK_DISABLED": " True "},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
    ],
)
def test_a_variable_that_is_not_used_is_not_validated(unused: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    unusable = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense",
        "OTEL_EXPORTER_OTLP_HEADERS": "nonsense",
        "OTEL_METRIC_EXPORT_INTERVAL": "nonsense",
    }
    code = "assert cs.run(one(), connector=OtelConnector(), log_level='OFF') == 1"
    assert program(code, monkeypatch, **unusable, **unused) == ""


def test_with_a_provider_of_the_application_the_export_variables_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = program(
        """
        trace.set_tracer_provider(TracerProvider())
        assert cs.run(one(), connector=OtelConnector(), log_level='OFF') == 1
        """,
        monkeypatch,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/json",
        OTEL_EXPORTER_OTLP_ENDPOINT="nonsense",
        OTEL_TRACES_EXPORTER="nonsense",
    )
    assert stderr == ""


def test_an_unknown_exporter_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        code = "assert cs.run(one(), connector=OtelConnector(), log_level='OFF') == 1"
        stderr = program(code, monkeypatch, OTEL_TRACES_EXPORTER="zipkin")
        assert receiver.span_count == 0
    assert "OTEL_TRACES_EXPORTER='zipkin'" in stderr


def test_a_provider_and_an_endpoint_raise_an_error() -> None:
    with pytest.raises(ValueError, match="tracer_provider"):
        OtelConnector("http://127.0.0.1:1", tracer_provider=TracerProvider(shutdown_on_exit=False))


def test_the_process_exports_before_it_exits() -> None:
    with FaultyReceiver() as receiver:
        program(f"""
            cs.run(one(), connector=OtelConnector({receiver.http_endpoint!r}))
            with trace.get_tracer("users").start_as_current_span("after all runs"):
                pass
        """)
        assert len(receiver.spans.named("after all runs")) == 1


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="an exit handler cannot start threads there")
def test_a_run_in_an_exit_handler_is_exported_after_the_flush_of_earlier_runs() -> None:
    """The handler runs after the handler of Cascade, which was registered later."""
    late = """
        import atexit
        atexit.register(lambda: run_late())
        """
    with FaultyReceiver() as receiver:
        code = f"""
            def run_late():
                cs.run(one(), connector=OtelConnector({receiver.http_endpoint!r}))
            cs.run(one(), connector=OtelConnector({receiver.http_endpoint!r}))
        """
        command = [sys.executable, "-c", textwrap.dedent(late) + HEAD + textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
        assert "lost" not in done.stderr
        assert len(receiver.spans.named("run one")) == 2


@pytest.mark.parametrize("value", ["nonsense", ""])
@pytest.mark.parametrize("signal", ["TRACER", "METER"])
def test_a_provider_that_cannot_be_loaded_does_not_stop_the_export(
    signal: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"OTEL_PYTHON_{signal}_PROVIDER"
    with FaultyReceiver() as receiver:
        code = f"""
            for _ in range(2):
                assert cs.run(one(), connector=OtelConnector({receiver.http_endpoint!r}), log_level="OFF") == 1
            for _ in range(2):
                assert cs.run(one(), connector=OtelConnector(), log_level="OFF") == 1
        """
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        stderr = program(code, monkeypatch, **{variable: value})
        names = ["inner", "one", "run one", "run one started"]
        assert sorted(span.name for span in receiver.spans) == sorted(names * 4)
        assert receiver.metrics
    assert stderr.count(f"OtelConnector: {variable}='{value}' cannot be loaded") == 1


def test_a_propagator_that_is_not_installed_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    inbound = {"TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01", "TRACESTATE": "acme=1", "BAGGAGE": "tenant=blue"}
    with FaultyReceiver() as receiver:
        code = f"""
            connector = OtelConnector({receiver.http_endpoint!r})
            assert cs.run(one(), connector=connector, log_level="OFF") == 1
            command = ["sh", "-c", "echo $TRACEPARENT+$TRACESTATE+$BAGGAGE"]
            seen = cs.run(cs.shell(command), connector=connector, log_level="OFF")
            assert seen.startswith("00-{"a" * 32}-") and seen.endswith("-01+acme=1+tenant=blue"), seen
        """
        stderr = program(code, monkeypatch, OTEL_PROPAGATORS="b3", **inbound)
        names = ["inner", "one", "run one", "run one started", "run shell", "run shell started", "shell"]
        assert sorted(span.name for span in receiver.spans) == sorted(names)
        assert {(span.trace_id, span.trace_state) for span in receiver.spans} == {("a" * 32, "acme=1")}
    assert stderr.count("BAGGAGE of the environment is ignored: Propagator b3 not found") == 1


def test_the_service_name_may_change_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of user code keep the resource of the global provider, which the first run has set."""
    with FaultyReceiver() as receiver:
        code = """
            import os
            for name in ("first", "second"):
                os.environ["OTEL_SERVICE_NAME"] = name
                cs.run(one(), connector=OtelConnector(), log_level="OFF")
        """
        program(code, monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.http_endpoint)
        services = [(span.name, span.resource["service.name"]) for span in receiver.spans]
    assert sorted(one for one in services if one[0] == "one") == [("one", "first"), ("one", "second")]
    assert [one for one in services if one[0] == "inner"] == [("inner", "first")] * 2


def test_a_fork_in_a_task_sends_nothing_twice() -> None:
    with FaultyReceiver() as receiver:
        program(f"""
            import os
            @cs.task
            def forks():
                child = os.fork()
                if child == 0:
                    os._exit(0)
                return os.waitpid(child, 0)[1]
            assert cs.run(forks(), connector=OtelConnector({receiver.http_endpoint!r})) == 0
        """)
        assert sorted(span.name for span in receiver.spans) == ["forks", "run forks", "run forks started"]
