"""What Prometheus knows of the runs, and that each of the dashboards' questions has an answer."""

import json
import os
import re
import signal
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stack.build import ROOT
from stack.process import until
from tests.e2e.prometheus import Prometheus
from tests.e2e.runs import Run, run
from tests.e2e.stacks import Processes
from tests.waiting import HANG

SERVICE = "e2e-metrics"
VARIABLES = {
    "$service": SERVICE,
    "$target": ".*",
    "$__range": "1h",
    "$__rate_interval": "10s",
}


@pytest.fixture(scope="session")
def prometheus(processes: Processes) -> Iterator[Prometheus]:
    """After runs of each kind, while one is still going.

    Once for a worker: it may come back to this module after tests of others, and its servers count all runs.
    """
    found = Prometheus(processes.ports.url(processes.ports.prometheus))
    # Exemplars are there for a moment only, and Prometheus takes some seconds before it looks for the first time.
    found.wait_for('up{job="collector"} == 1')
    environment = {**processes.environment, "OTEL_SERVICE_NAME": SERVICE, "OTEL_METRIC_EXPORT_INTERVAL": "200"}
    for name in ("report", "report", "failure", "narrow"):
        run(environment, name)
    with Run(environment, "endless") as endless:
        endless.wait_for_line("running")
        yield found
        endless.process.send_signal(signal.SIGTERM)
        endless.result()


def test_our_metrics_arrive(prometheus: Prometheus) -> None:
    of = f'job="{SERVICE}"'
    prometheus.wait_for_value(f'sum(cascade_run_duration_seconds_count{{{of}, cascade_run_result="success"}})', 3)
    prometheus.wait_for_value(f'sum(cascade_run_duration_seconds_count{{{of}, cascade_run_result="failure"}})', 1)
    prometheus.wait_for_value(f'sum(cascade_task_duration_seconds_count{{{of}, cascade_task_name="double"}})', 6)
    prometheus.wait_for_value(f"sum(cascade_task_retries_total{{{of}}})", 2)
    prometheus.wait_for_value(f'sum(cascade_task_skips_total{{{of}, cascade_task_skip_reason="Pruned"}})', 2)
    prometheus.wait_for_value(
        f'sum(cascade_task_wait_duration_seconds_count{{{of}, cascade_wait_reason="resource"}})', 2
    )
    prometheus.wait_for_value(f"sum(cascade_run_active{{{of}}})", 1)
    prometheus.wait_for_value(f"sum(cascade_task_active{{{of}}})", 1)
    prometheus.wait_for_value(f"sum(cascade_telemetry_lost_total{{{of}}})", 0)


IN_ONE_PROCESS = """
import cascade as cs
from tests.limits import out_of_reach

@cs.task
def work(number: int) -> int:
    return 10 // (number % 5)

out_of_reach()
for number in range(20):
    try:
        cs.run(work(number), log_level="OFF")
    except ZeroDivisionError:
        pass
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_runs_of_one_process_are_all_counted_though_each_has_a_connector_of_its_own(
    protocol: str, processes: Processes
) -> None:
    prometheus = Prometheus(processes.ports.url(processes.ports.prometheus))
    service = f"e2e-one-process-{protocol.partition('/')[0]}"
    port = processes.ports.otlp_grpc if protocol == "grpc" else processes.ports.otlp_http
    environment = {
        **processes.environment,
        "CASCADE_CONNECTOR": "otel",
        "OTEL_SERVICE_NAME": service,
        "OTEL_EXPORTER_OTLP_ENDPOINT": processes.ports.url(port),
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    command = [sys.executable, "-c", IN_ONE_PROCESS]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True, timeout=HANG)
    of = f'job="{service}"'
    prometheus.wait_for_value(f'sum(cascade_run_duration_seconds_count{{{of}, cascade_run_result="success"}})', 16)
    prometheus.wait_for_value(f'sum(cascade_run_duration_seconds_count{{{of}, cascade_run_result="failure"}})', 4)
    prometheus.wait_for_value(f"sum(cascade_task_duration_seconds_count{{{of}}})", 20)
    prometheus.wait_for_value(f"sum(cascade_run_active{{{of}}})", 0)
    spans = f'traces_span_metrics_calls_total{{service_name="{service}", span_name="run work"}}'
    prometheus.wait_for_value(f"sum({spans})", 20)


def test_the_rules_count_each_run_once(prometheus: Prometheus) -> None:
    """Each of them was a process of its own, whose counters appeared with their last value."""
    prometheus.wait_for_value(f'sum(cascade:runs:increase5m{{job="{SERVICE}"}})', 4)
    prometheus.wait_for_value(f'sum(cascade:tasks:increase5m{{job="{SERVICE}", cascade_task_name="double"}})', 6)
    inside = f'cascade:run_duration_seconds_bucket:increase5m{{job="{SERVICE}", le="+Inf"}}'
    prometheus.wait_for_value(f"sum({inside})", 4)


def test_span_metrics_count_the_spans_of_all_processes(prometheus: Prometheus) -> None:
    of = f'service_name="{SERVICE}"'
    prometheus.wait_for_value(f'sum(traces_span_metrics_calls_total{{{of}, span_name="double"}})', 6)
    prometheus.wait_for_value(f'traces_span_metrics_calls_total{{{of}, span_name="run summary"}}', 2)
    ((labels, _),) = prometheus.wait_for(f'traces_span_metrics_calls_total{{{of}, span_name="break_down"}}')
    assert labels["status_code"] == "STATUS_CODE_ERROR"
    assert labels["error_type"] == "ValueError"
    assert "instance" not in labels
    assert labels["collector_instance_id"]


@pytest.mark.parametrize(
    "metric",
    [
        "cascade_run_duration_seconds_bucket",
        "cascade_task_duration_seconds_bucket",
        "traces_span_metrics_duration_milliseconds_bucket",
    ],
)
def test_exemplars_lead_to_traces(prometheus: Prometheus, processes: Processes, metric: str) -> None:
    prometheus.wait_for(f'{metric}{{job="{SERVICE}"}}')
    found = prometheus.wait_for_trace_ids(f'{metric}{{job="{SERVICE}"}}')
    assert all(len(processes.jaeger.trace(trace_id)) for trace_id in found)


def test_the_monitor_tab_has_the_rates_of_runs(prometheus: Prometheus, processes: Processes) -> None:
    del prometheus  # its runs are those of the service

    def latest(kind: str) -> float:
        return next(reversed(processes.jaeger.monitor(kind, SERVICE, operation="run total")), 0.0)

    until(lambda: latest("calls") > 0 and latest("errors") > 0, "Jaeger has the rates of the failed run")
    assert latest("errors") == 1


def test_the_monitor_tab_has_the_durations_of_a_single_run_in_milliseconds(processes: Processes) -> None:
    """Each value is in the bucket of the longest span, in the unit that Jaeger's page gives to all numbers."""
    service = "e2e-monitor"
    said = run({**processes.environment, "OTEL_SERVICE_NAME": service}, "narrow")
    spans = processes.wait_for(said["trace_id"], lambda spans: bool(spans.named("run count")))
    bounds = [0.0, *_milliseconds_of_the_buckets()]
    for operation, span_kind in (("run count", "server"), ("brief", "internal")):
        shown = _durations_on_the_page(processes, service, operation, span_kind)[-1]
        longest = max(span.duration_ms for span in spans.named(operation))
        at = bisect_left(bounds, longest)
        assert bounds[at - 1] < shown <= bounds[at], operation


def _durations_on_the_page(processes: Processes, service: str, operation: str, span_kind: str) -> list[float]:
    found = list[float]()

    def is_there() -> bool:
        found[:] = processes.jaeger.monitor(
            "latencies", service, operation=operation, span_kind=span_kind, quantile=1.0
        )
        return bool(found)

    until(is_there, f"Jaeger has the duration of {operation}")
    return found


def _milliseconds_of_the_buckets() -> list[float]:
    collector = yaml.safe_load((ROOT / "collector-config" / "collector.yaml").read_text())
    buckets = collector["connectors"]["span_metrics"]["histogram"]["explicit"]["buckets"]
    found = [re.fullmatch(r"([\d.]+)([a-z]+)", bucket) for bucket in buckets]
    units = {"us": 0.001, "ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
    return [float(one[1]) * units[one[2]] for one in found if one]


def queries() -> Iterator[Any]:
    for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                if "expr" in target:
                    yield pytest.param(target, id=f"{path.stem}: {panel['title']} {target['refId']}")


def filled(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


@pytest.mark.parametrize("target", list(queries()))
def test_each_question_of_the_dashboards_has_an_answer(prometheus: Prometheus, target: dict[str, Any]) -> None:
    expr = filled(target["expr"])
    assert prometheus.wait_for(expr)
    if target["exemplar"]:
        assert prometheus.wait_for_trace_ids(expr)


def test_the_variables_of_the_dashboards_have_values(prometheus: Prometheus) -> None:
    targets = {"summary", "total", "count"}
    for target in targets:  # runs of different processes reach Prometheus at different times
        prometheus.wait_for(f'cascade_run_duration_seconds_count{{job="{SERVICE}", cascade_run_target="{target}"}}')
    assert SERVICE in prometheus.label_values("cascade_run_duration_seconds_count", "job")
    assert targets <= prometheus.label_values(
        f'cascade_run_duration_seconds_count{{job=~"{SERVICE}"}}', "cascade_run_target"
    )


@pytest.mark.parametrize("rules", sorted(Path(ROOT, "prometheus", "rules").glob("*.yml")), ids=lambda path: path.stem)
def test_the_rules_are_loaded_without_an_error(prometheus: Prometheus, rules: Path) -> None:
    groups = {group["file"]: group for group in prometheus.rules()}
    assert str(rules) in groups
    for group in prometheus.rules():
        assert [rule.get("lastError", "") for rule in group["rules"]] == [""] * len(group["rules"])
