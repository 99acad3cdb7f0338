"""The topics of the wire, and whose they are."""

import os
import socket
import unicodedata
from collections.abc import Mapping
from functools import cache
from urllib.parse import quote

ORG_VARIABLE, PROJECT_VARIABLE = "CASCADE_ORG_ID", "CASCADE_PROJECT_ID"
DEFAULT_ORG, DEFAULT_PROJECT = "local", "default"
MAX_LEVEL_BYTES = 128
"""Three of them and a UUID stay far below what brokers allow of a topic (MQTT: 65,535 bytes)."""

MAX_TOPIC_BYTES = 65_535
"""MQTT 5.0, 4.7.3."""
MAX_LEVELS = 100
"""Mosquitto cuts the connection of a client that publishes to 200 levels or more."""


def identity_from_environment(environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Org and project of this process.

    Raises:
        ValueError: A value cannot be a level of a topic.
    """
    org = environ.get(ORG_VARIABLE, DEFAULT_ORG)
    project = environ.get(PROJECT_VARIABLE, DEFAULT_PROJECT)
    return checked_level(org, ORG_VARIABLE), checked_level(project, PROJECT_VARIABLE)


def checked_level(value: str, name: str) -> str:
    """The value, if it can stand as one level of a topic (MQTT 5.0, 4.7).

    Raises:
        ValueError: It is empty or over-long, starts with `$`, or has `/`, `+`, `#` or a control character.
    """
    problem = _problem(value)
    if problem:
        raise ValueError(f"{name}={value[:60]!r} {problem}: use letters, digits, '-', '_' and '.'")
    return value


def _problem(value: str) -> str:
    if problem := _unfit(value, MAX_LEVEL_BYTES):
        return problem
    if found := set("/+#").intersection(value):
        return f"has {''.join(sorted(found))!r}, which would break out of its level of the topic"
    return ""


def checked_topic(topic: str) -> str:
    """The topic, if a message can be published to it anywhere (MQTT 5.0, 4.7).

    Raises:
        ValueError: A broker would refuse it, or cut the connection: it is empty or over-long, has too many levels, a
            wildcard or a control character, or starts with `$`.
    """
    problem = _problem_of(topic) or ("has a wildcard" if {"+", "#"}.intersection(topic) else "")
    if problem:
        raise ValueError(f"topic {topic[:60]!r} {problem}")
    return topic


def checked_filter(pattern: str) -> str:
    """The topic filter, if it can be subscribed to anywhere (MQTT 5.0, 4.7.1).

    Raises:
        ValueError: As for a topic, but that `+` may stand for a level and `#` for the last ones.
    """
    *levels, last = pattern.split("/")
    problem = _problem_of(pattern)
    if any("#" in level or ("+" in level and level != "+") for level in levels) or (
        {"+", "#"}.intersection(last) and last not in {"+", "#"}
    ):
        problem = problem or "has a wildcard that is no level by itself, or '#' before its end"
    if problem:
        raise ValueError(f"topic filter {pattern[:60]!r} {problem}")
    return pattern


def topic_matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT topic filter, with `+` and `#`, covers a topic (MQTT 5.0, 4.7)."""
    wanted, levels = pattern.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in {"+", levels[index]}:
            return False
    return len(wanted) == len(levels)


def _problem_of(topic: str) -> str:
    if problem := _unfit(topic, MAX_TOPIC_BYTES):
        return problem
    if topic.count("/") >= MAX_LEVELS:
        return f"has more than {MAX_LEVELS} levels"
    return ""


def _unfit(value: str, limit: int) -> str:
    """What neither a topic nor a level that one may begin with can be; `limit` is in bytes."""
    if not value:
        return "is empty"
    if any(unicodedata.category(character) in {"Cc", "Cs", "Cn"} for character in value):
        return "has a control or invalid character"
    if len(value.encode()) > limit:
        return f"is longer than {limit:,} bytes"
    if value.startswith("$"):
        return "starts with '$', which brokers keep for themselves"
    return ""


@cache
def source() -> str:
    """Return the name of this process, `{host}-{pid}-{4 hex random}`.

    It is the same for the life of the process. A forked child has a name of its own. The random part tells processes
    with the same process id apart, in containers with one host name, and after a restart.
    """
    host = "".join(c if c.isalnum() or c in "-_." else "-" for c in socket.gethostname()) or "host"
    return f"{host[:64]}-{os.getpid()}-{os.urandom(2).hex()}"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=source.cache_clear)


def events_topic(org_id: str, project_id: str, run_id: str) -> str:
    """Where a run's messages go."""
    return f"cascade/telemetry/{org_id}/{project_id}/{run_id}/events"


def state_topic(org_id: str, project_id: str, run_id: str) -> str:
    """The topic of a run's retained state."""
    return f"cascade/telemetry/{org_id}/{project_id}/{run_id}/state"


def status_topic(org_id: str, project_id: str, source: str) -> str:
    """Where a process says whether it is there."""
    return f"cascade/status/{org_id}/{project_id}/{source}"


def control_filter(org_id: str, project_id: str) -> str:
    """The topic filter of all control that concerns a project."""
    return f"cascade/control/{org_id}/{project_id}/constraints/#"


def control_topic(org_id: str, project_id: str, scope: str, constraint_type: str) -> str:
    """Where a constraint is retained; `scope` is `global`, `run/{run_id}`, or `task/{name or pattern}`."""
    kind, _, name = scope.partition("/")
    level = f"{kind}/{quote(name, safe='')}" if name else kind
    return f"cascade/control/{org_id}/{project_id}/constraints/{level}/{constraint_type}"
