"""MQTT topics: names, checks of levels, topics and filters, and the limits of brokers."""

import os
import re
import socket
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from urllib.parse import quote

from cascade.telemetry.limits import MAX_NAME_BYTES

ORG_VARIABLE, PROJECT_VARIABLE = "CASCADE_ORG_ID", "CASCADE_PROJECT_ID"
DEFAULT_ORG, DEFAULT_PROJECT = "local", "default"
MAX_LEVEL_BYTES = 128
"""A topic with three such levels and a UUID is far below the limit of MQTT."""
MAX_LEVELS = 100
"""Mosquitto closes the connection of a client that publishes to 200 levels or more."""


@dataclass(frozen=True, slots=True)
class TopicLimits:
    """Limits of a broker for a topic or topic filter, and for a client id. Sizes are in bytes of UTF-8."""

    broker: str
    max_bytes: int
    max_slashes: int
    max_client_id_bytes: int


MQTT_LIMITS = TopicLimits("MQTT", 65_535, MAX_LEVELS - 1, 65_535)
"""MQTT 5.0, 4.7.3 and 1.5.4. MQTT has no limit of slashes."""
AWS_LIMITS = TopicLimits("AWS IoT Core", 256, 7, 128)
"""AWS IoT Core endpoints and quotas, "Message broker and protocol limits" (docs.aws.amazon.com/general/latest/gr/iot-core.html).

AWS's own clients check the same limits: `ClientExtendedValidationAndFlowControl.AwsIotCoreDefaults`.
"""
_AWS_HOST = re.compile(
    r"(?:.+\.)?iot(?:-fips)?\.[a-z0-9-]+(?:\.vpce)?\.(?:amazonaws\.com(?:\.cn)?|api\.aws)\.?", re.IGNORECASE
)
_ANY_RUN = "00000000-0000-0000-0000-000000000000"


def topic_limits(hostname: str) -> TopicLimits:
    """Return the limits of the broker with that host name. A custom domain of AWS IoT Core is not recognized."""
    return AWS_LIMITS if _AWS_HOST.fullmatch(hostname) else MQTT_LIMITS


def check_topic_limits(org_id: str, project_id: str, limits: TopicLimits) -> None:
    """Check that a broker accepts all topics of a project: messages, state and control of its runs, and presence.

    Raises:
        ValueError: A topic exceeds a limit. The text has the topic, its size, and the settings to shorten.
    """
    events_topic(org_id, project_id, _ANY_RUN, limits)
    state_topic(org_id, project_id, _ANY_RUN, limits)
    status_topic(org_id, project_id, source(), limits)
    control_filter(org_id, project_id, limits)
    control_topic(org_id, project_id, f"run/{_ANY_RUN}", "concurrency", limits)


def identity_from_environment(environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return the organization and the project of this process.

    Raises:
        ValueError: A value cannot be a level of a topic.
    """
    org = environ.get(ORG_VARIABLE, DEFAULT_ORG)
    project = environ.get(PROJECT_VARIABLE, DEFAULT_PROJECT)
    return checked_level(org, ORG_VARIABLE), checked_level(project, PROJECT_VARIABLE)


def checked_level(value: str, name: str) -> str:
    """Return the value if it can be one level of a topic (MQTT 5.0, 4.7).

    Raises:
        ValueError: The value is empty or too long, starts with `$`, or has `/`, `+`, `#` or a control character.
    """
    problem = _invalid_text(value)
    if not problem and _bytes(value) > MAX_LEVEL_BYTES:
        problem = f"is longer than {MAX_LEVEL_BYTES:,} bytes"
    if not problem and (found := set("/+#").intersection(value)):
        problem = f"has {''.join(sorted(found))!r}, which a level of a topic cannot have"
    if problem:
        raise ValueError(f"{name}={value[:60]!r} {problem}: use letters, digits, '-', '_' and '.'")
    return value


def checked_topic(topic: str, limits: TopicLimits = MQTT_LIMITS) -> str:
    """Return the topic if a broker with these limits accepts a message to it (MQTT 5.0, 4.7).

    Raises:
        ValueError: A broker would refuse the topic or close the connection. The topic is empty or too long, has too many
            levels, a wildcard or a control character, or starts with `$`.
    """
    problem = (
        _invalid_text(topic) or _exceeded(topic, limits) or ("has a wildcard" if {"+", "#"}.intersection(topic) else "")
    )
    if problem:
        raise ValueError(f"topic {topic[:60]!r} {problem}")
    return topic


def checked_filter(pattern: str, limits: TopicLimits = MQTT_LIMITS) -> str:
    """Return the topic filter if a broker with these limits accepts a subscription to it (MQTT 5.0, 4.7.1).

    Raises:
        ValueError: As for a topic, but the wildcards `+` for a level and `#` for the last levels are allowed.
    """
    *levels, last = pattern.split("/")
    problem = _invalid_text(pattern) or _exceeded(pattern, limits)
    if any("#" in level or ("+" in level and level != "+") for level in levels) or (
        {"+", "#"}.intersection(last) and last not in {"+", "#"}
    ):
        problem = problem or "has a wildcard that is only a part of a level, or '#' before the last level"
    if problem:
        raise ValueError(f"topic filter {pattern[:60]!r} {problem}")
    return pattern


def topic_matches(pattern: str, topic: str) -> bool:
    """Return whether an MQTT topic filter, with `+` and `#`, matches a topic (MQTT 5.0, 4.7)."""
    wanted, levels = pattern.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in {"+", levels[index]}:
            return False
    return len(wanted) == len(levels)


def _exceeded(topic: str, limits: TopicLimits) -> str:
    """Return the limit that a topic or a topic filter exceeds, and its size; or an empty text."""
    size, slashes = _bytes(topic), topic.count("/")
    if size > limits.max_bytes:
        return f"has {size:,} bytes and is longer than {limits.max_bytes:,} bytes, the limit of {limits.broker}"
    if slashes > limits.max_slashes:
        return f"has {slashes} slashes and more than {limits.max_slashes + 1} levels, the limit for {limits.broker}"
    return ""


def _invalid_text(value: str) -> str:
    """Return the fault of a topic or of a level, or an empty text."""
    if not value:
        return "is empty"
    if any(unicodedata.category(character) in {"Cc", "Cs", "Cn"} for character in value):
        return "has a control or invalid character"
    if value.startswith("$"):
        return "starts with '$', which is reserved for brokers"
    return ""


def _bytes(value: str) -> int:
    return len(value.encode("utf-8", "replace"))


@cache
def source() -> str:
    """Return the name of this process, `{host}-{pid}-{4 hex random}`.

    It does not change during the life of the process. A forked child has another name. The random part differs between
    processes with the same process id, such as after a restart or in containers with one host name.
    """
    host = "".join(c if c.isalnum() or c in "-_." else "-" for c in socket.gethostname()) or "host"
    return f"{host[:64]}-{os.getpid()}-{os.urandom(2).hex()}"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=source.cache_clear)


def events_topic(org_id: str, project_id: str, run_id: str, limits: TopicLimits = MQTT_LIMITS) -> str:
    """Return the topic of a run's messages. Raises ValueError if it exceeds a limit."""
    topic = f"cascade/telemetry/{org_id}/{project_id}/{run_id}/events"
    return _within(limits, "a run's messages", topic, org_id, project_id)


def state_topic(org_id: str, project_id: str, run_id: str, limits: TopicLimits = MQTT_LIMITS) -> str:
    """Return the topic of a run's retained state. Raises ValueError if it exceeds a limit."""
    topic = f"cascade/telemetry/{org_id}/{project_id}/{run_id}/state"
    return _within(limits, "a run's state", topic, org_id, project_id)


def status_topic(org_id: str, project_id: str, source: str, limits: TopicLimits = MQTT_LIMITS) -> str:
    """Return the topic of a process's presence. Raises ValueError if it exceeds a limit."""
    return _within(limits, "presence", f"cascade/status/{org_id}/{project_id}/{source}", org_id, project_id)


def control_filter(org_id: str, project_id: str, limits: TopicLimits = MQTT_LIMITS) -> str:
    """Return the topic filter of a project's constraints. Raises ValueError if it exceeds a limit."""
    pattern = f"cascade/control/{org_id}/{project_id}/constraints/#"
    return _within(limits, "all constraints", pattern, org_id, project_id)


def control_topic(
    org_id: str, project_id: str, scope: str, constraint_type: str, limits: TopicLimits = MQTT_LIMITS
) -> str:
    """Return the topic of a constraint.

    Args:
        org_id: Organization of the runs.
        project_id: Project of the runs.
        scope: `global`, `run/{run_id}`, or `task/{name or pattern}`. The name is percent-encoded as one level.
        constraint_type: Type of the constraint.
        limits: Limits of the broker: `AWS_LIMITS` for AWS IoT Core.

    Raises:
        ValueError: The name has more than 256 bytes, or the topic exceeds a limit of the broker. A pattern such as
            `task/reports*` replaces a long task name.
    """
    kind, _, name = scope.partition("/")
    if _bytes(name) > MAX_NAME_BYTES:
        raise ValueError(
            f"the name in the scope {scope[:60]!r} has {_bytes(name):,} bytes, a run accepts {MAX_NAME_BYTES}: "
            "use a shorter pattern, such as 'task/reports*'"
        )
    encoded = quote(name, safe="")
    level = f"{kind}/{encoded}" if name else kind
    topic = f"cascade/control/{org_id}/{project_id}/constraints/{level}/{constraint_type}"
    return _within(limits, "a constraint", topic, org_id, project_id, encoded if kind == "task" else "")


def _within(limits: TopicLimits, kind: str, topic: str, org_id: str, project_id: str, task: str = "") -> str:
    """Return the topic.

    Raises:
        ValueError: The topic exceeds a limit. The text has the sizes of the parts that can be shortened.
    """
    if problem := _exceeded(topic, limits):
        parts = {ORG_VARIABLE: org_id, PROJECT_VARIABLE: project_id, "the task's name or pattern": task}
        longest_first = sorted((-_bytes(part), name) for name, part in parts.items() if part)
        sizes = [f"{name} ({-size:,} bytes)" for size, name in longest_first]
        raise ValueError(f"the topic of {kind} {problem}: shorten {' or '.join(sizes)}")
    return topic
