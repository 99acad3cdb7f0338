"""The documentation has the same numbers, fields and names as the code."""

import contextlib
import io
import json
import logging
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import cascade as cs
from cascade import _forks
from cascade.adapters.executors import slots
from cascade.connectors.mqtt import backpressure, options, outbox, packets, subscriber
from cascade.connectors.mqtt import connector as mqtt
from cascade.connectors.mqtt import health as connection_health
from cascade.connectors.mqtt.oversize_messages import MIN_LIFETIME
from cascade.connectors.otel import (
    OtelConnector,
    buffer,
    export_queue,
    flush,
    grpc,
    health,
    routing,
    sdk_settings,
    sender,
)
from cascade.connectors.otel import options as _options_of_otel
from cascade.connectors.otel.logs import run_logs
from cascade.connectors.otel.metrics import aggregation, catalogue, export
from cascade.runtime import _map_execution, _run_context, exceptions, protocols, publish_queue, threads
from cascade.runtime.control import constraint, controller, notifier, wait_queue
from cascade.spec import retry, telemetry
from cascade.telemetry import limits, state_schedule, topics, trace_budget, trace_shards, wire
from cascade.telemetry.topics import control_topic
from cascade.testing import MemoryConnector, OtlpReceiver
from stack import build

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
KIB, MIB = 1 << 10, 1 << 20


def defaults_of(file: str, pattern: str) -> dict[str, str]:
    """Return the variables of a configuration file with their defaults."""
    return dict(re.findall(pattern, (ROOT / file).read_text(encoding="utf-8")))


PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LAYERS = [layer.replace("cascade.", "") for layer in PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]]
COMPOSE_DEFAULTS = defaults_of("docker-compose.yml", r"\$\{(\w+):-([^}]*)\}")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
COLLECTOR: dict[str, Any] = yaml.safe_load((ROOT / "collector-config/collector.yaml").read_text(encoding="utf-8"))
TO_JAEGER = COLLECTOR["exporters"]["otlp_grpc/jaeger"]
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "stack/prometheus/prometheus.yml").read_text(encoding="utf-8"))
MONITOR = (ROOT / "stack/prometheus/rules/monitor.yml").read_text(encoding="utf-8")
SIGNS = {"MIB": 1, "SPIKE_MIB": -1}
COLLECTOR_DEFAULTS = defaults_of("collector-config/collector.yaml", r"\$\{env:(\w+):-([^}]*)\}")

STATED = {
    "docs/architecture.md": [" > ".join(f"`{layer}`" for layer in LAYERS)],
    "README.md": [
        f"Python {PROJECT['project']['requires-python'].removeprefix('>=')} or newer",
        {0: "The core has no dependencies"}[len(PROJECT["project"]["dependencies"])],
    ],
    "docs/attributes.md": [
        f"cut at {limits.MAX_VALUE_BYTES:,} bytes",
        f"at most {limits.MAX_LINKS} of them have a link",
        f"the first {limits.MAX_CONTROL_EVENTS} are events",
    ],
    "docs/ci.md": [f"ref: v{PROJECT['project']['version']}"],
    "docs/connectors.md": [
        f"a queue of {publish_queue.MAX_QUEUED_BYTES // MIB} MiB",
        f"more than {publish_queue.FULL_BYTES // MIB} MiB wait",
        f"until only {publish_queue.FULL_BYTES // 2 // MIB} MiB wait",
        {1.0: "longer than a second"}[publish_queue.STALL_TIMEOUT],
        f"at most {controller.SUBSCRIBE_TIMEOUT:g} seconds for the next message",
        f"{controller.LONGEST_SUBSCRIBE:g} seconds in all",
    ],
    "docs/control.md": [
        f"more than {wire.MAX_RECEIVED_BYTES // KIB} KiB",
        f"names and patterns of up to {limits.MAX_NAME_BYTES} bytes",
        f"AWS IoT Core accepts topics of up to {topics.AWS_LIMITS.max_bytes} bytes",
        f"at most {controller.MAX_CONSTRAINTS:,} constraints for single task names",
        f"a further pattern when {controller.MAX_PATTERNS} constraints",
        f"publishes at most {controller.MAX_LISTED} of the constraints that apply",
        f"{notifier.REFUSALS_AT_ONCE:g} at once and {notifier.REFUSALS_PER_SECOND:g} per second; further ones",
        f"{notifier.AT_ONCE:g} at once and {notifier.PER_SECOND:g} per second; of those",
        f"the number of starts in {constraint.BURST_SECONDS} seconds",
        {0.5: "for half a second"}[wait_queue.RENOTIFY],
    ],
    "docs/environment.md": [
        f"seconds for a request, {_options_of_otel.DEFAULT_TIMEOUT:g} by default, at most {_options_of_otel.MAX_TIMEOUT:g}.",
        f"milliseconds, {sdk_settings.DEFAULT_METRIC_INTERVAL * 1000:g} by default",
        f"children of a run or map in one trace, from 1 to 999999999, {trace_budget.PART_SIZE} by default",
        f"from 1 to 999999999, {trace_budget.PART_BYTES} by default",
    ],
    "docs/grafana.md": [
        f"`GRAFANA_PASSWORD` (`{COMPOSE_DEFAULTS['GRAFANA_PASSWORD']}`)",
        {"true": "without a login"}[COMPOSE["services"]["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"]],
    ],
    "docs/jaeger.md": [
        f"{trace_budget.PART_SIZE:,} children of a run or map, {trace_budget.PART_SPANS:,} spans or {trace_budget.PART_BYTES / 1e6:g} MB",
        f"Collector {build.collector_version()}, Jaeger {build.JAEGER} and",
        f"up to {int(COLLECTOR_DEFAULTS['COLLECTOR_QUEUE_BYTES']) // MIB} MiB while Jaeger is unreachable",
        f"updates span metrics every {COLLECTOR_DEFAULTS['COLLECTOR_SPANMETRICS_INTERVAL'].removesuffix('s')} s, Prometheus",
        f"reads them every {PROMETHEUS['global']['scrape_interval'].removesuffix('s')} s",
        f"zero for {MONITOR.partition(' offset ')[2].partition('s)')[0]} s (`stack/prometheus/rules/monitor.yml`)",
        f"runner:{COMPOSE_DEFAULTS['MQTT_RUNNER_PASSWORD']}@localhost",
    ],
    "docs/logs.md": [f"{run_logs.CAPACITY // MIB} MiB at most"],
    "docs/metrics.md": [
        {(0.001, 3600.0): "bounds from 1 ms to 1 h"}[catalogue.BOUNDS[0], catalogue.BOUNDS[-1]],
        {60.0: "exports every minute"}[sdk_settings.DEFAULT_METRIC_INTERVAL],
        f"milliseconds, {sdk_settings.DEFAULT_METRIC_INTERVAL * 1000:g} by default",
        {3600.0: "again after an hour"}[export.UNSUPPORTED_PAUSE],
        f"The totals of the {routing.KEPT_DESTINATIONS} most recently used destinations",
        f"at most {aggregation.MAX_NAMES} names of tasks, {aggregation.MAX_TARGETS} names of targets, {aggregation.MAX_ERROR_TYPES} types",
        f"{aggregation.MAX_SETS:,} combinations of attributes per metric",
    ],
    "docs/mqtt.md": [
        f"by default {outbox.CAPACITY // MIB} MiB",
        f"{backpressure.FLOOR:,} messages may always be queued",
        f"at most {outbox.MAX_REPEATS} times",
        f"pauses of up to {connection_health.MAX_DELAY:g} s",
        f"the pause is {connection_health.REFUSED_DELAY:g} s",
        {1.0: "does not respond for a second"}[connection_health.ANSWER_TIMEOUT],
        f"`resend_window` seconds ({mqtt.RESEND_WINDOW:g}; 0 for none)",
        f"pauses for {backpressure.FIRST_DELAY:g} to {backpressure.MAX_DELAY:g} s",
        f"pauses of up to {MIN_LIFETIME:g} s",
        f"`flush_timeout` ({mqtt.FLUSH_TIMEOUT:g} s)",
        {86_400: "retained for a day"}[packets.WILL_EXPIRY],
        f"{subscriber.RETAINED_GAP * 1000:g} ms. Without constraints",
        f"fewer than {subscriber.LIVE_RATE} new topics per second",
        f"within {subscriber.PRESENCE_TIMEOUT:g} s and two round trips",
        f"on port {options.PLAIN_PORT}",
        f"the first {limits.MAX_LISTED_TASKS} running tasks, the first {limits.MAX_LISTED_TASKS} waiting tasks",
        {1.0: "at most once a second while the run is in progress"}[state_schedule.INTERVAL],
        {60: "removes the final state one minute after the end"}[state_schedule.FINAL_EXPIRY],
        {86_400: "was killed, the broker removes the state after a day"}[state_schedule.EXPIRY],
    ],
    "docs/production.md": [
        f"{int(COLLECTOR_DEFAULTS['COLLECTOR_QUEUE_BYTES']) // MIB} MiB, 1.2 million of these spans",
        f"{sum(int(COLLECTOR_DEFAULTS[f'COLLECTOR_MEMORY_{name}']) * sign for name, sign in SIGNS.items())} MiB |",
        f"{trace_budget.PART_BYTES / 1e6:g} MB of encoded spans",
        f"{trace_budget.PART_SIZE:,} children of a run or map",
        f"{trace_budget.PartLimits().max_bytes / 1e6:g} MB. Tempo's default limit",
        f"{COMPOSE_DEFAULTS['JAEGER_RETENTION'].removesuffix('h')} hours",
        f"Jaeger {build.JAEGER} with Badger",
        f"the {TO_JAEGER['sending_queue']['batch']['flush_timeout'].removesuffix('ms')} ms for which the Collector waits for further spans",
        f"at most {COLLECTOR['connectors']['span_metrics']['aggregation_cardinality_limit']:,} per service",
        {False: "has no tail sampling"}["tailsampling" in (ROOT / "collector-config/builder.yaml").read_text("utf-8")],
        {False: "without `fsync`"}[COLLECTOR["extensions"]["file_storage"]["fsync"]],
        f"has refused every request for {health.HOLD_TIMEOUT:g} s (`hold_timeout`)",
        {0.75: "three quarters full"}[buffer.HIGH_WATERMARK],
    ],
    "docs/servers.md": [
        f"a call in progress, at most {_forks.FORK_TIMEOUT:g} s",
        f"the latest {routing.KEPT_TRACES:,} traces",
        {True: '"gRPC was in use at a fork"'}["gRPC was in use at a fork" in grpc._AFTER_FORK],
    ],
    "docs/tracing.md": [
        f"by default {export_queue.CAPACITY // MIB} MiB, has room for 135,000 of them",
        f"up to {export_queue.BATCH_SIZE:,} spans. Up to {sender.MAX_SENDERS} requests",
        f"within {health.MAX_RESPONSE_TIME:g} s, or within three times",
        f"`hold_timeout` ({health.HOLD_TIMEOUT:g} s)",
        f"`flush_timeout` ({export_queue.FLUSH_TIMEOUT:g} s)",
        f"It waits {health.FIRST_RESPONSE_WAIT} s for",
        f"and {health.UNREACHABLE_WAIT} s for one that has failed",
        f"{trace_budget.PART_BYTES / 1e6:g} MB of encoded spans (`CASCADE_TRACE_PART_BYTES`), at {trace_budget.PART_SPANS:,} spans, or at",
        f"{trace_budget.PART_SIZE:,} children (`CASCADE_TRACE_PART_SIZE`)",
        f"{trace_budget.INITIAL_SPANS} spans and {trace_budget.INITIAL_BYTES:,} bytes",
        f"at least {trace_budget.MIN_SPANS} spans and {trace_budget.MIN_BYTES:,} bytes",
        f"{trace_budget.MAX_FACTOR} times the budget, which is {trace_budget.PartLimits().max_bytes / 1e6:g} MB",
        f"It lists {trace_shards.MAX_LISTED_PARTS} parts",
        {2_000: "100,000 quick items are in 50 traces"}[trace_budget.PART_SIZE],
        {0.03: "later runs wait for it at most 0.05 s"}[flush.SHORT_WAIT],
        {1.0: "after a flush of more than a second"}[flush.SLOW],
        {5.0: "takes at most five seconds"}[flush.EXIT_TIMEOUT],
    ],
    "docs/workflows.md": [
        f"At most {_map_execution.MAP_WINDOW:,} items of a map are in progress at once",
        f"may wait up to {sys.getswitchinterval() * 1000:g} ms for each thread",
        f"its first {exceptions.MAX_HISTORY // 2} and its last {exceptions.MAX_HISTORY // 2} attempts",
        {86_400.0: "`max_delay` is one day by default"}[retry.MAX_DELAY],
        {1.0: "no thread has become free for a second"}[slots.STALL_TIMEOUT],
        {5.0: "at most five seconds, and tears the resource down"}[threads.CANCEL_GRACE],
    ],
    "docs/failures.md": [
        {1.0: "a setup or teardown that takes more than a second"}[_run_context.REPORT_DELAY],
    ],
    "docs/wire.md": [
        f"the first {limits.MAX_CONTROL_EVENTS} decisions",
        f"the first {limits.MAX_LISTED_TASKS} running and the first {limits.MAX_LISTED_TASKS} waiting tasks",
    ],
}
"""Sentences of each page with the numbers of the code."""


def text_of(page: str) -> str:
    """Return a page with one space between words."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@pytest.mark.parametrize(("page", "sentence"), [(page, one) for page, found in STATED.items() for one in found])
def test_a_number_on_a_page_is_that_of_the_code(page: str, sentence: str) -> None:
    assert sentence in text_of(page)


@pytest.mark.parametrize("page", PAGES)
def test_the_names_that_a_page_mentions_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:`|^ *|\w=\S+ )make ([a-z][a-z0-9-]*)", text, re.MULTILINE)) <= set(targets)
    files = re.findall(r"`((?:src|tests|docs|examples|stack|collector-config|\.ci)/[\w./-]*)`", text)
    assert [file for file in files if not (ROOT / file).exists()] == []
    ports = re.findall(r"://(?:\w+:\w+@)?(?:localhost|127\.0\.0\.1):(\d+)", text)
    assert set(ports) <= set(COMPOSE_DEFAULTS.values())
    variables = set(re.findall(r"\b(?:CASCADE|MQTT|GRAFANA|COMPOSE|COLLECTOR|JAEGER|GF)_[A-Z0-9_]+\b", text))
    known = {name for file in _sources() for name in variables if name in file}
    assert known == variables


@cache
def _sources() -> list[str]:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "stack").glob("*.py"), ROOT / "docker-compose.yml"]
    files += [ROOT / "tests/e2e/conftest.py", ROOT / "collector-config/collector.yaml"]
    return [file.read_text(encoding="utf-8") for file in files]


def test_the_page_about_logs_lists_the_keys_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    lines = page.partition("| key |")[2].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    stream = io.StringIO()
    handler, app = logging.StreamHandler(stream), logging.Logger("app")  # noqa: LOG001 - a logger without a parent
    handler.setFormatter(cs.JsonFormatter())
    app.addHandler(handler)

    @cs.task
    def logs() -> None:
        try:
            int("none")
        except ValueError:
            app.exception("it failed", extra={"rows": 3}, stack_info=True)

    cs.run(logs(), log_format="json")
    messages = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    columns = [{key for message in messages for key in message}, {*json.loads(stream.getvalue())} - {"task_name"}]
    for number, keys in enumerate(columns, 1):
        stated = [re.findall(r"`(\w+)`", row[0]) for row in rows if row[number]]
        assert {key for names in stated for key in names} == keys


def test_the_page_about_the_environment_lists_all_variables_of_cascade() -> None:
    read = {
        name
        for file in (ROOT / "src").rglob("*.py")
        for name in re.findall(r'"(CASCADE_\w+)"', file.read_text("utf-8"))
    }
    rows = re.findall(r"^\| (`CASCADE_.*?) \|", (ROOT / "docs/environment.md").read_text("utf-8"), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == read


def test_the_readme_links_to_each_page() -> None:
    links = re.findall(r"\]\((docs/[\w-]+\.md)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(links) == {page for page in PAGES if page.startswith("docs/")}


def test_the_files_on_the_page_about_the_architecture_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    files = [file.removeprefix("src/cascade/") for file in re.findall(r"(?:\w+/)+\w+\.py", page)]
    assert "runtime/events.py" in files
    assert [file for file in files if not (ROOT / "src/cascade" / file).exists()] == []


def test_the_names_in_the_diagrams_of_the_architecture_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^ *(\w+) .*\w+/\w+\.py$", page, re.MULTILINE))
    assert {"TaskExecution", "parse_constraint", "Outbox"} <= names
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    assert {name for name in names if not re.search(rf"^(class|def) {name}\b", sources, re.MULTILINE)} == set()


def test_the_page_about_grafana_lists_the_rules_and_alerts() -> None:
    rules = [
        (ROOT / "stack" / "prometheus" / "rules" / name).read_text(encoding="utf-8")
        for name in ("cascade.yml", "alerts.yml")
    ]
    page = text_of("docs/grafana.md")
    assert set(re.findall(r"`(cascade:\w+:increase5m)`", page)) == set(re.findall(r"- record: (\S+)", rules[0]))
    assert set(re.findall(r"\| `(C[a-zA-Z]+)` \|", page)) == set(re.findall(r"- alert: (\S+)", rules[1]))


def test_the_page_about_connectors_lists_the_optional_protocols() -> None:
    rows = re.findall(r"^\| `([A-Z]\w+)` \| [a-z]", (ROOT / "docs/connectors.md").read_text("utf-8"), re.MULTILINE)
    of_executors_and_backends = {"Discarding", "SlotProvider"}
    optional = {name for name in protocols.__all__ if getattr(getattr(protocols, name), "_is_runtime_protocol", False)}
    assert {row for row in rows if not row.endswith("Connector")} == optional - of_executors_and_backends - {
        "Connector"
    }


@pytest.mark.parametrize("body", telemetry.Body.__args__, ids=lambda body: body.__name__)
def test_the_page_about_the_wire_names_each_field_of_a_message(body: type[Any]) -> None:
    page = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{body.__name__}` \|.*", page, re.MULTILINE)
    assert set(re.findall(r"`([a-z_]+)`", row)) == {field.name for field in fields(body)} - {"metadata"}


@pytest.mark.parametrize(
    ("table", "kind"), [("| header field |", telemetry.Header), ("| field |", telemetry.RetainedRunState)]
)
def test_the_page_about_the_wire_names_each_field(table: str, kind: type[Any]) -> None:
    page = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
    _, _, rest = page.partition(table)
    rows = re.findall(r"^\| (`.+?) \|", rest.partition("\n\n")[0], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {f.name for f in fields(kind)}


@cs.resource
def connection() -> Iterator[int]:
    yield 1


@cs.task
def add(x: int, y: int) -> int:
    return x + y


@cs.task
def fails() -> None:
    raise LookupError


@pytest.mark.parametrize("target", [add.map(x=[1], y=[add(1, cs.inject(connection))]), fails().with_retry(1)], ids=str)
async def test_each_key_of_metadata_is_documented(target: Any) -> None:
    connector, topic = MemoryConnector(), control_topic("local", "default", "task/other", "pause")
    await connector.deliver(topic, {"type": "pause"}, retain=True)
    with contextlib.suppress(LookupError):
        await cs.run_async(target, connector=connector, log_level="OFF")
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/wire.md").read_text("utf-8"), re.MULTILINE))
    found = {key for payload in connector.payloads for key in payload["body"]["metadata"]}
    assert found
    assert found <= documented


def test_the_stated_sizes_of_a_span_and_of_a_part() -> None:
    with OtlpReceiver() as receiver:
        items = cs.task(abs, name="measure_the_absolute").map(x=list(range(trace_budget.PART_SIZE)))
        cs.run(items, connector=OtelConnector(receiver.http_endpoint), log_level="OFF")
        size = sum(request.size for request in receiver.requests if request.signal == "traces")
        assert size < 1_000_000
        assert size / len(receiver.spans) == pytest.approx(435, rel=0.1)
    held = size / len(receiver.spans) + buffer.ITEM_OVERHEAD
    assert held == pytest.approx(500, rel=0.1)
    assert export_queue.CAPACITY / held == pytest.approx(135_000, rel=0.1)
    assert int(COLLECTOR_DEFAULTS["COLLECTOR_QUEUE_BYTES"]) / 435 == pytest.approx(1.2e6, rel=0.05)
