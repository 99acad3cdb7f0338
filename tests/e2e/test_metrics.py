"""Metrics of runs in Prometheus, and the queries of the dashboards."""

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
from tests.lab.dashboards import ALL, NAMES, Query, dashboards, data_sources, interpolated, of_panels
from tests.lab.waiting import HANG

SERVICE = "e2e-metrics"
VARIABLES = {"service": [SERVICE], "target": ALL, "__range": "1h", "__rate_interval": "10s"}


@pytest.fixture(scope="session")
def prometheus(processes: Processes) -> Iterator[Prometheus]:
    """Return a Prometheus after runs of each kind and during an active run.

    The scope is the session, because a worker of pytest may run tests of this module in several parts, and the servers
    count all runs.
    """
    found = Prometheus(processes.ports.url(processes.ports.prometheus))
    # Exemplars exist for one interval only, and the first scrape of Prometheus is some seconds after its start.
    found.wait_for('up{job="collector"} == 1')
    environment = {**processes.environment, "OTEL_SERVICE_NAME": SERVICE, "OTEL_METRIC_EXPORT_INTERVAL": "200"}
    for name in ("report", "report", "failure", "narrow"):
        run(environment, name)
    with Run(environment, "endless") as endless:
        endless.wait_for_line("running")
        yield found
        endless.process.send_signal(signal.SIGTERM)
        endless.result()


def test_prometheus_has_the_metrics_of_runs(prometheus: Prometheus) -> None:
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
from tests.lab.time_limits import raise_time_limits

@cs.task
def work(number: int) -> int:
    return 10 // (number % 5)

raise_time_limits()
for number in range(20):
    try:
        cs.run(work(number), log_level="OFF")
    except ZeroDivisionError:
        pass
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_all_runs_of_a_process_with_a_connector_per_run_are_counted(protocol: str, processes: Processes) -> None:
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
    """Each run had its own process, whose counters started with their last value."""
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
def test_exemplars_have_ids_of_traces(prometheus: Prometheus, processes: Processes, metric: str) -> None:
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
    """Each value is in the bucket of the longest span, in milliseconds."""
    service = "e2e-monitor"
    result = run({**processes.environment, "OTEL_SERVICE_NAME": service}, "narrow")
    spans = processes.wait_for(result["trace_id"], lambda spans: bool(spans.named("run count")))
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


@pytest.mark.parametrize("query", list(of_panels("prometheus")), ids=lambda query: query.place)
def test_each_query_of_the_dashboards_has_a_result(prometheus: Prometheus, query: Query) -> None:
    expr = interpolated(query.text, VARIABLES)
    assert prometheus.wait_for(expr)
    if query.target["exemplar"]:
        assert prometheus.wait_for_trace_ids(expr)


OF_ANY_NAME = """
import json, sys
import cascade as cs
from tests.lab.time_limits import raise_time_limits

raise_time_limits()
for name in json.loads(sys.argv[1]):
    target = cs.task(lambda: 1, name=name)()
    if name == "map(step)":
        target = cs.task(lambda x: x, name="step").map(x=[1, 2])
    cs.run(target, log_level="OFF")
"""
OTHER_SERVICE = "e2e/any.name (+1)"


@pytest.fixture(scope="session")
def of_any_name(prometheus: Prometheus, processes: Processes) -> Prometheus:
    """Return a Prometheus after a run of each name."""
    service = {"OTEL_SERVICE_NAME": OTHER_SERVICE, "CASCADE_CONNECTOR": "otel"}
    command = [sys.executable, "-c", OF_ANY_NAME, json.dumps(NAMES)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **processes.environment, **service}, check=True, timeout=HANG)
    prometheus.wait_for_value(f'count(cascade_run_duration_seconds_count{{job="{OTHER_SERVICE}"}})', len(NAMES))
    return prometheus


def _number_of_runs(target: str | list[str]) -> str:
    (runs,) = [query.text for query in of_panels("prometheus") if query.place == "cascade-runs: Ended runs A"]
    return interpolated(runs, {**VARIABLES, "service": [OTHER_SERVICE], "target": target})


@pytest.mark.parametrize("name", NAMES)
def test_queries_find_targets_with_any_characters(of_any_name: Prometheus, name: str) -> None:
    of_any_name.wait_for_value(_number_of_runs([name]), 1)


def test_queries_find_several_targets_with_any_characters(of_any_name: Prometheus) -> None:
    of_any_name.wait_for_value(_number_of_runs(NAMES[1:4]), 3)
    of_any_name.wait_for_value(_number_of_runs(ALL), len(NAMES))


@pytest.mark.parametrize("query", list(of_panels("prometheus")), ids=lambda query: query.place)
def test_each_query_is_valid_promql_for_all_chosen_values(prometheus: Prometheus, query: Query) -> None:
    for chosen in [NAMES, *([name] for name in NAMES)]:
        prometheus.values(interpolated(query.text, {**VARIABLES, "service": chosen, "target": chosen}))


def _values_of(variable: dict[str, Any], prometheus: Prometheus, service: str) -> set[str]:
    """Return the values of a variable with the query `label_values(metric, label)`, as Grafana requests them."""
    query = interpolated(variable["query"]["query"], {"service": [service]})
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found
    return prometheus.label_values(found[1], found[2])


def test_the_variables_of_the_dashboards_have_values(of_any_name: Prometheus) -> None:
    (runs,) = [dashboard for dashboard in dashboards() if dashboard["uid"] == "cascade-runs"]
    service, target = runs["templating"]["list"]
    assert {SERVICE, OTHER_SERVICE} <= _values_of(service, of_any_name, SERVICE)
    assert _values_of(target, of_any_name, OTHER_SERVICE) == set(NAMES)


def test_the_link_of_a_span_to_metrics_has_a_result(of_any_name: Prometheus) -> None:
    (tempo,) = [source for source in data_sources() if source["uid"] == "tempo"]
    for query in tempo["jsonData"]["tracesToMetrics"]["queries"]:
        expr = query["query"].replace("$$__tags", f'job="{OTHER_SERVICE}"')
        of_any_name.wait_for(f"({expr}) > 0")


@pytest.mark.parametrize("rules", sorted(Path(ROOT, "prometheus", "rules").glob("*.yml")), ids=lambda path: path.stem)
def test_the_rules_are_loaded_without_an_error(prometheus: Prometheus, rules: Path) -> None:
    groups = {group["file"]: group for group in prometheus.rules()}
    assert str(rules) in groups
    for group in prometheus.rules():
        assert [rule.get("lastError", "") for rule in group["rules"]] == [""] * len(group["rules"])
