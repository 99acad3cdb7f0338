"""The configuration files of the servers, checked by the installed servers, else by their structure."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from cascade.telemetry import limits
from stack import build
from stack.build import ROOT
from stack.grafana.generate import files
from tests.lab.programs import is_missing, program


def promtool(*arguments: str) -> None:
    done = subprocess.run([program("promtool"), *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_tests_of_alerts_and_rules_pass() -> None:
    promtool("test", "rules", "stack/prometheus/rules_test.yml")


def test_prometheus_accepts_its_configuration() -> None:
    promtool("check", "config", "stack/prometheus/prometheus.yml")


@pytest.mark.parametrize(
    "exporters",
    ["[otlp_grpc/jaeger, span_metrics]", "[otlp_grpc/jaeger, span_metrics, otlp_grpc/tempo]"],
)
def test_the_collector_accepts_its_configuration(tmp_path: Path, exporters: str) -> None:
    if not build.collector_path().exists():
        is_missing("the Collector (`make stack-build`)")
    done = subprocess.run(
        [str(build.collector_path()), "validate", "--config", "collector-config/collector.yaml"],
        cwd=ROOT,
        env={"COLLECTOR_QUEUE": str(tmp_path), "COLLECTOR_TRACE_EXPORTERS": exporters},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_collectors_manifest_has_exactly_the_components_of_the_configuration() -> None:
    """All components are used and have the same version."""
    manifest = yaml.safe_load((ROOT / "collector-config" / "builder.yaml").read_text())
    configuration = yaml.safe_load((ROOT / "collector-config" / "collector.yaml").read_text())
    version = manifest["dist"]["version"]
    for kind in ("extensions", "receivers", "processors", "exporters", "connectors"):
        modules = [part["gomod"].split() for part in manifest[kind]]
        assert {module[1] for module in modules} == {f"v{version}"}, kind
        built = {_short(module[0]) for module in modules}
        used = {name.partition("/")[0].replace("_", "").replace("otlpgrpc", "otlp") for name in configuration[kind]}
        assert built == used, kind


def _short(module: str) -> str:
    """Return `healthcheck` for `…/extension/healthcheckextension`."""
    name = module.rpartition("/")[2]
    for kind in ("extension", "receiver", "processor", "exporter", "connector"):
        name = name.removesuffix(kind)
    return name


def test_the_dashboards_are_current() -> None:
    for path, text in files().items():
        assert path.read_text() == text, "make docs"


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(text) for text in files().values()]


NEWER_THAN_THE_MODELS = {"definition", "spss", "tableType"}
"""Properties of Grafana that the models of its schema do not have yet."""


def lost(sent: Any, read: Any, path: str = "") -> Iterator[str]:
    """Yield the paths at which the two values differ."""
    match sent, read:
        case dict(), dict():
            for key in sent.keys() - NEWER_THAN_THE_MODELS:
                yield from lost(sent[key], read.get(key), f"{path}/{key}")
        case list(), list() if len(sent) == len(read):
            for number, (one, other) in enumerate(zip(sent, read, strict=True)):
                yield from lost(one, other, f"{path}/{number}")
        case _ if sent != read:
            yield path


def test_dashboards_follow_grafanas_schema() -> None:
    """The models that Grafana generates from its schema read them without loss."""
    register_default_plugins()
    for dashboard in dashboards():
        read = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
        assert list(lost(dashboard, read)) == []


class WithTagsOfCompose(yaml.SafeLoader):
    """YAML loader that supports `!override` of Compose files."""


def sequence(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node)


WithTagsOfCompose.add_constructor("!override", sequence)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_yaml_of_the_documentation_is_yaml(page: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        assert isinstance(yaml.load(block, WithTagsOfCompose), dict)  # noqa: S506 - a SafeLoader


def test_dashboards_fit_their_grid() -> None:
    for dashboard in dashboards():
        panels = dashboard["panels"]
        taken = [
            (x, y)
            for panel in panels
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(taken) == len(set(taken))
        assert max(x for x, _ in taken) < 24
        assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))


def test_the_data_sources_of_dashboards_are_provisioned() -> None:
    provisioned = yaml.safe_load((ROOT / "stack/grafana/provisioning/datasources/datasources.yaml").read_text())
    known = {(source["type"], source["uid"]) for source in provisioned["datasources"]}
    for dashboard in dashboards():
        used = [*dashboard["panels"], *(target for panel in dashboard["panels"] for target in panel["targets"])]
        used += [variable for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
        assert {(one["datasource"]["type"], one["datasource"]["uid"]) for one in used} <= known


def test_the_links_of_grafana_resolve() -> None:
    provisioned = yaml.safe_load((ROOT / "stack/grafana/provisioning/datasources/datasources.yaml").read_text())
    uids = {source["uid"] for source in provisioned["datasources"]}
    prometheus = next(source for source in provisioned["datasources"] if source["uid"] == "prometheus")
    targets = {to["datasourceUid"] for to in prometheus["jsonData"]["exemplarTraceIdDestinations"]}
    assert targets <= uids


TEMPO: dict[str, Any] = yaml.safe_load((ROOT / "stack" / "tempo" / "tempo.yaml").read_text())


def test_the_addresses_of_tempo_are_consistent() -> None:
    assert TEMPO["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"] == "0.0.0.0:4317"
    assert TEMPO["server"]["http_listen_port"] == 3200
    sources = (ROOT / "stack/grafana/provisioning/datasources/datasources.yaml").read_text()
    assert "url: http://tempo:3200" in sources
    assert "COLLECTOR_TO_TEMPO:-tempo:4317" in (ROOT / "collector-config/collector.yaml").read_text()


def test_tempo_writes_to_its_volume() -> None:
    written = re.findall(r"^ +path: (.+)$", (ROOT / "stack" / "tempo" / "tempo.yaml").read_text(), re.MULTILINE)
    assert len(set(written)) == 4
    assert all(path.startswith("/var/tempo/") for path in written)


def test_tempo_stores_whole_stack_traces_and_readable_traces() -> None:
    assert TEMPO["distributor"]["max_attribute_bytes"] > limits.MAX_STACK_BYTES
    default, largest_message = 5_000_000, 16 * 1024 * 1024
    assert default < TEMPO["overrides"]["defaults"]["global"]["max_bytes_per_trace"] < largest_message


def test_tempo_supports_the_metrics_of_the_dashboards() -> None:
    assert any("_over_time(" in target["query"] for panel in panels("tempo") for target in panel["targets"])
    assert TEMPO["overrides"]["defaults"]["metrics_generator"]["processors"] == ["local-blocks"]
    assert TEMPO["metrics_generator"]["processor"]["local_blocks"]["filter_server_spans"] is False


def test_the_page_about_grafana_has_the_settings_of_tempo() -> None:
    rows = re.findall(r"^\| `([\w.]+): (.+?)`", (ROOT / "docs" / "grafana.md").read_text(), re.MULTILINE)
    assert len(rows) == 3
    for path, value in rows:
        setting: Any = TEMPO
        for key in path.split("."):
            setting = setting[key]
        assert setting == yaml.safe_load(value), path


def panels(kind: str) -> list[dict[str, Any]]:
    return [panel for dashboard in dashboards() for panel in dashboard["panels"] if panel["datasource"]["type"] == kind]


def test_a_panel_has_one_query_for_tempo() -> None:
    """Grafana sends only the first query."""
    assert [len(panel["targets"]) for panel in panels("tempo")] == [1] * len(panels("tempo"))


def test_the_title_of_a_panel_has_its_limit() -> None:
    most = {panel["title"]: re.findall(r"topk\((\d+)", str(panel["targets"])) for panel in panels("prometheus")}
    assert {title: re.findall(r"the (\d+) ", title) for title in most} == most


def test_the_title_of_a_list_has_its_limit() -> None:
    titles = {panel["title"]: panel["targets"][0]["limit"] for panel in panels("tempo") if panel["type"] == "table"}
    found = {title: int(of[1]) for title in titles if (of := re.search(r"at most (\d+)", title))}
    assert found == titles


def test_links_and_queries_use_variables_that_their_dashboard_has() -> None:
    names = {
        dashboard["uid"]: {variable["name"] for variable in dashboard["templating"]["list"]}
        for dashboard in dashboards()
    }
    for dashboard in dashboards():
        text = json.dumps(dashboard)
        own = {plain or braced for plain, braced in re.findall(r"\$(?:(\w+)|\{(\w+))", text)}
        assert {name for name in own if not name.startswith("__")} == names[dashboard["uid"]]
        links = re.findall(r"/d/([\w-]+)\?([^ ]*?)\"}", text)
        assert links
        for uid, query in links:
            assert set(re.findall(r"var-(\w+)=", query)) <= names[uid]
