"""The Compose file, read with the library of Docker Compose, because the tests run without Docker."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from stack import build
from stack.build import ROOT
from tests.lab.programs import go, program

Load = Callable[..., dict[str, Any]]

FILE = ROOT / "docker-compose.yml"
DEFAULT = {"collector", "collector-health", "jaeger", "mosquitto", "owners"}
GRAFANA = {"grafana", "prometheus", "tempo", "tempo-health"}
CHECKED_BY = {"collector": "collector-health", "tempo": "tempo-health"}
COMPOSE_GO = "github.com/compose-spec/compose-go/v2"


def test_the_file_follows_the_compose_specification() -> None:
    """Validated with the schema of the version in `stack/compose_config`."""
    version = re.search(rf"{COMPOSE_GO} (\S+)", (ROOT / "stack/compose_config/go.mod").read_text())
    assert version
    done = subprocess.run(
        [go(), "mod", "download", "-json", f"{COMPOSE_GO}@{version[1]}"], capture_output=True, check=True, cwd="/"
    )
    schema = json.loads((Path(json.loads(done.stdout)["Dir"]) / "schema" / "compose-spec.json").read_text())
    problems = Draft7Validator(schema).iter_errors(yaml.safe_load(FILE.read_text()))
    assert [f"{problem.json_path}: {problem.message}" for problem in problems] == []


def test_debians_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    """Version 1.29 does not support `name` of a project and `:+`."""
    text = re.sub(r"^name: .*$", "", FILE.read_text(), flags=re.MULTILINE)
    copy = tmp_path / "docker-compose.yml"
    copy.write_text(re.sub(r"\$\{\w+:\+[^}]*\}", "", text))
    done = subprocess.run(
        [program("docker-compose"), "-f", str(copy), "--profile", "grafana", "config", "--services"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == DEFAULT | GRAFANA


def test_the_profile_adds_grafana_and_the_collector_sends_to_tempo(compose_config: Load) -> None:
    plain, with_grafana = compose_config(), compose_config("grafana")
    assert set(plain["services"]) == DEFAULT
    assert set(with_grafana["services"]) == DEFAULT | GRAFANA
    assert exporters(plain) == "[otlp_grpc/jaeger, span_metrics]"
    assert exporters(with_grafana) == "[otlp_grpc/jaeger, span_metrics, otlp_grpc/tempo]"


def test_all_ports_are_published_on_this_machine_only(compose_config: Load) -> None:
    ports = [port for service in compose_config("grafana")["services"].values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert {port["published"] for port in ports} == {"1883", "3000", "4317", "4318", "9090", "16686"}


def test_the_override_in_production_md_publishes_ports_with_tls_only(compose_config: Load, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "production.md").read_text()
    (lines,) = re.findall(r"^```yaml\n(services:.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "override.yml").write_text(lines)
    before, after = compose_config()["services"], compose_config(files=[tmp_path / "override.yml"])["services"]
    assert opened(after) == {"collector": ["4318"], "mosquitto": ["8883"]}
    assert opened(before) == {}
    assert after["jaeger"] == before["jaeger"]
    assert [port["published"] for port in after["mosquitto"]["ports"]] == ["8883"]
    assert after["collector"]["command"][0] == before["collector"]["command"][0]
    for name in ("collector", "mosquitto"):
        (tls,) = [volume for volume in after[name]["volumes"] if volume not in before[name]["volumes"]]
        assert tls["source"] == str(ROOT / "tls")
        assert len(re.findall(rf"{tls['target']}/server.(?:pem|key)", page)) == 2
    assert after["collector"]["command"][1] == "--config=/etc/otelcol/tls/collector.yaml"


def opened(services: dict[str, Any]) -> dict[str, list[str]]:
    """Return the ports of each service that other machines can reach."""
    ports = {
        name: [port["published"] for port in service.get("ports", ()) if port.get("host_ip") != "127.0.0.1"]
        for name, service in services.items()
    }
    return {name: found for name, found in ports.items() if found}


def test_each_image_has_a_version(compose_config: Load) -> None:
    for name, service in compose_config("grafana")["services"].items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name


def test_the_images_have_the_versions_of_the_built_programs(compose_config: Load) -> None:
    services = compose_config()["services"]
    assert services["collector"]["image"] == f"otel/opentelemetry-collector-contrib:{build.collector_version()}"
    assert services["jaeger"]["image"] == f"jaegertracing/jaeger:{build.JAEGER}"


def test_each_service_has_a_health_check_and_restarts(compose_config: Load) -> None:
    services = compose_config("grafana")["services"]
    for name, service in services.items():
        if name == "owners":
            assert service["restart"] == "no"
            continue
        assert "healthcheck" in services[CHECKED_BY.get(name, name)], name
        assert service["restart"] == "unless-stopped", name


@pytest.mark.parametrize("profiles", [(), ("grafana",)])
def test_up_wait_accepts_services_that_end(compose_config: Load, profiles: tuple[str, ...]) -> None:
    """`docker compose up --wait` fails for such a service, unless another service depends on its success."""
    services = compose_config(*profiles)["services"]
    awaited = {
        name
        for service in services.values()
        for name, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    assert awaited == {name for name, service in services.items() if service["restart"] == "no"}


def test_mounted_files_exist_and_volumes_have_names(compose_config: Load) -> None:
    project = compose_config("grafana")
    for service in project["services"].values():
        for volume in service.get("volumes", ()):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists()
                assert volume["read_only"]
            else:
                assert volume["source"] in project["volumes"]


def test_the_example_environment_contains_all_defaults(compose_config: Load) -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    example = dict(line.removeprefix("# ").split("=", 1) for line in lines if re.match(r"(# )?[A-Z_]+=", line))
    used = set(re.findall(r"\$\{([A-Z_]+)", FILE.read_text()))
    assert set(example) == used
    chosen = {name: value for name, value in example.items() if name != "COMPOSE_PROFILES"}
    assert compose_config("grafana", **chosen) == compose_config("grafana")


@pytest.mark.parametrize("name", ["MQTT_RUNNER_PASSWORD", "MQTT_OPERATOR_PASSWORD"])
def test_passwords_come_from_the_environment(compose_config: Load, name: str) -> None:
    mosquitto = compose_config(**{name: "another"})["services"]["mosquitto"]
    assert mosquitto["environment"][name] == "another"


def exporters(project: dict[str, Any]) -> str:
    found: str = project["services"]["collector"]["environment"]["COLLECTOR_TRACE_EXPORTERS"]
    return found
