import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given

from cascade.telemetry.topics import (
    AWS_LIMITS,
    MQTT_LIMITS,
    TopicLimits,
    check_topic_limits,
    checked_filter,
    checked_topic,
    control_filter,
    control_topic,
    events_topic,
    identity_from_environment,
    source,
    state_topic,
    status_topic,
    topic_limits,
    topic_matches,
)
from tests.telemetry.strategies import texts


def test_the_default_organization_and_project() -> None:
    assert identity_from_environment({}) == ("local", "default")
    assert events_topic("local", "default", "r") == "cascade/telemetry/local/default/r/events"


@pytest.mark.parametrize("value", ["", "a/b", "a+", "#", "\x00", "a\nb", "\x7f", "x" * 129, "$SYS", "\ud800", "é" * 65])
@pytest.mark.parametrize("variable", ["CASCADE_ORG_ID", "CASCADE_PROJECT_ID"])
def test_an_invalid_level_is_refused_with_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{variable}="):
        identity_from_environment({variable: value})


@given(texts)
def test_an_accepted_value_is_one_level(value: str) -> None:
    try:
        org, _ = identity_from_environment({"CASCADE_ORG_ID": value})
    except ValueError:
        return
    assert events_topic(org, "p", "r").count("/") == 5
    events_topic(org, "p", "r").encode()


@given(texts)
def test_any_task_name_is_one_level(name: str) -> None:
    if name.isprintable() and name:
        assert control_topic("o", "p", f"task/{name}", "pause").count("/") == 7


def test_the_source_has_the_process_id() -> None:
    assert re.fullmatch(rf".+-{os.getpid()}-[0-9a-f]{{4}}", source())
    assert source() == source()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_another_source() -> None:
    program = """if 1:
        import os
        from cascade.telemetry.topics import source
        own, (readable, writable) = source(), os.pipe()
        child = os.fork()
        if not child:
            os.write(writable, source().encode())
            os._exit(0)
        os.waitpid(child, 0)
        print(own, os.getpid(), os.read(readable, 1000).decode(), child)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    own, parent_pid, childs, child_pid = done.stdout.split()
    assert f"-{parent_pid}-" in own
    assert f"-{child_pid}-" in childs


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("+/b", "a/c", False),
        ("a/b/c", "a/b", False),
    ],
)
def test_topic_filters(pattern: str, topic: str, matches: bool) -> None:
    assert topic_matches(pattern, topic) is matches


@pytest.mark.parametrize(
    ("topic", "why"),
    [
        ("", "is empty"),
        ("a/\x00", "control or invalid character"),
        ("a/\ud800", "control or invalid character"),
        ("x" * 65_536, "longer than 65,535 bytes"),
        ("/".join("a" * 101), "more than 100 levels"),
        ("$SYS/x", "reserved for brokers"),
        ("a/+/b", "has a wildcard"),
        ("a/#", "has a wildcard"),
    ],
)
def test_an_invalid_topic_is_refused(topic: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        checked_topic(topic)


@pytest.mark.parametrize("pattern", ["a/b", "#", "+", "a/+/c", "a/#", "+/+/#"])
def test_a_valid_topic_filter_is_accepted(pattern: str) -> None:
    assert checked_filter(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "a#", "#/a", "a/b+", "+a/b", "a/##", "a\x00/#"])
def test_an_invalid_topic_filter_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="topic filter"):
        checked_filter(pattern)


@pytest.mark.parametrize(
    "hostname",
    [
        "a3qj468EXAMPLE-ats.iot.eu-central-1.amazonaws.com",
        "A3QJ468EXAMPLE.IOT.us-gov-west-1.AMAZONAWS.COM.",
        "a1.iot.cn-north-1.amazonaws.com.cn",
        "a1.iot-fips.us-east-1.amazonaws.com",
        "vpce-1-2.data.iot.us-east-1.vpce.amazonaws.com",
    ],
)
def test_hosts_of_aws_iot_core_have_its_limits(hostname: str) -> None:
    assert topic_limits(hostname) is AWS_LIMITS
    assert (AWS_LIMITS.max_bytes, AWS_LIMITS.max_slashes, AWS_LIMITS.max_client_id_bytes) == (256, 7, 128)


@pytest.mark.parametrize(
    "hostname",
    [
        "localhost",
        "127.0.0.1",
        "",
        "iot.example.com",
        "b-1-2.mq.eu-west-1.amazonaws.com",
        "ec2-1.compute.amazonaws.com",
        "x.iot.eu-central-1.amazonaws.com.example.org",
        "riot.eu-central-1.amazonaws.com",
    ],
)
def test_other_brokers_have_the_limits_of_mqtt(hostname: str) -> None:
    assert topic_limits(hostname) is MQTT_LIMITS


RUN_ID = "0af76519-16cd-43dd-8448-eb211c80319c"
LONGEST_SOURCE = "h" * 64 + "-4194304-abcd"


def test_all_topics_of_a_project_with_usual_names_fit_aws() -> None:
    for org, project in (("local", "default"), ("o" * 64, "p" * 64)):
        check_topic_limits(org, project, AWS_LIMITS)
        for topic in (
            events_topic(org, project, RUN_ID, AWS_LIMITS),
            state_topic(org, project, RUN_ID, AWS_LIMITS),
            status_topic(org, project, LONGEST_SOURCE, AWS_LIMITS),
            control_topic(org, project, "global", "concurrency", AWS_LIMITS),
            control_topic(org, project, f"run/{RUN_ID}", "concurrency", AWS_LIMITS),
            control_topic(org, project, "task/reports/daily", "rate_limit", AWS_LIMITS),
        ):
            assert checked_topic(topic, AWS_LIMITS) == topic
        pattern = control_filter(org, project, AWS_LIMITS)
        assert checked_filter(pattern, AWS_LIMITS) == pattern


def test_a_project_whose_topics_exceed_the_limit_of_aws_is_refused_with_the_sizes() -> None:
    check_topic_limits("o" * 128, "p" * 128, MQTT_LIMITS)
    message = (
        r"^the topic of a run's messages has 319 bytes and is longer than 256 bytes, the limit of AWS IoT Core: "
        r"shorten CASCADE_ORG_ID \(128 bytes\) or CASCADE_PROJECT_ID \(128 bytes\)$"
    )
    with pytest.raises(ValueError, match=message):
        check_topic_limits("o" * 128, "p" * 128, AWS_LIMITS)
    with pytest.raises(ValueError, match="CASCADE_ORG_ID \\(128 bytes\\) or CASCADE_PROJECT_ID \\(120 bytes\\)"):
        check_topic_limits("\u00e9" * 64, "\u00e9" * 60, AWS_LIMITS)


@pytest.mark.parametrize("limits", [AWS_LIMITS, MQTT_LIMITS], ids=lambda limits: limits.broker)
def test_a_topic_may_have_as_many_bytes_as_the_limit(limits: TopicLimits) -> None:
    cases: list[tuple[Callable[[str], str], str]] = [
        (lambda project: events_topic("o", project, RUN_ID, limits), "a run's messages"),
        (lambda project: state_topic("o", project, RUN_ID, limits), "a run's state"),
        (lambda project: status_topic("o", project, "host-1", limits), "presence"),
        (lambda project: control_filter("o", project, limits), "all constraints"),
        (lambda project: control_topic("o", project, "task/x", "pause", limits), "a constraint"),
    ]
    for topic_of, kind in cases:
        most = limits.max_bytes - len(topic_of("p")) + 1
        assert len(topic_of("p" * most)) == limits.max_bytes
        with pytest.raises(ValueError, match=f"^the topic of {kind} has {limits.max_bytes + 1:,} bytes .*PROJECT_ID"):
            topic_of("p" * (most + 1))


def test_a_long_task_name_is_refused() -> None:
    name = "task/" + "reports/daily/\u00e4 " * 8
    assert len(control_topic("local", "default", name, "rate_limit")) > 256
    with pytest.raises(ValueError, match=r"of AWS IoT Core: shorten the task's name or pattern \(216 bytes\) or"):
        control_topic("local", "default", name, "rate_limit", AWS_LIMITS)
    longest = control_topic("o" * 128, "p" * 128, "task/" + "%" * 256, "rate_limit")
    assert longest.count("%25") == 256
    with pytest.raises(ValueError, match=r"has 258 bytes, a run accepts 256: use a shorter pattern, such as 'task/"):
        control_topic("local", "default", "task/" + "\u00e9" * 129, "pause")


def test_topics_and_filters_with_too_many_slashes_for_aws_are_refused() -> None:
    assert checked_topic("a/b/c/d/e/f/g/h", AWS_LIMITS) == "a/b/c/d/e/f/g/h"
    with pytest.raises(ValueError, match="has 8 slashes and more than 8 levels, the limit for AWS IoT Core"):
        checked_topic("a/b/c/d/e/f/g/h/i", AWS_LIMITS)
    with pytest.raises(ValueError, match="has 8 slashes and more than 8 levels, the limit for AWS IoT Core"):
        checked_filter("a/b/c/d/e/f/g/h/#", AWS_LIMITS)
    with pytest.raises(ValueError, match="has 257 bytes and is longer than 256 bytes, the limit of AWS IoT Core"):
        checked_topic("x" * 257, AWS_LIMITS)
    assert checked_topic("x" * 257) == "x" * 257
