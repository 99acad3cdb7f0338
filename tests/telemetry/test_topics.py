import os
import re
import subprocess
import sys

import pytest
from hypothesis import given

from cascade.telemetry.topics import (
    checked_filter,
    checked_topic,
    control_topic,
    events_topic,
    identity_from_environment,
    source,
    topic_matches,
)
from tests.telemetry.strategies import texts


def test_the_defaults() -> None:
    assert identity_from_environment({}) == ("local", "default")
    assert events_topic("local", "default", "r") == "cascade/telemetry/local/default/r/events"


@pytest.mark.parametrize("value", ["", "a/b", "a+", "#", "\x00", "a\nb", "\x7f", "x" * 129, "$SYS", "\ud800", "é" * 65])
@pytest.mark.parametrize("variable", ["CASCADE_ORG_ID", "CASCADE_PROJECT_ID"])
def test_what_could_break_out_is_refused_by_the_variables_name(variable: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{variable}="):
        identity_from_environment({variable: value})


@given(texts)
def test_what_is_accepted_stays_one_level(value: str) -> None:
    try:
        org, _ = identity_from_environment({"CASCADE_ORG_ID": value})
    except ValueError:
        return
    assert events_topic(org, "p", "r").count("/") == 5
    events_topic(org, "p", "r").encode()


@given(texts)
def test_a_tasks_scope_is_one_level_whatever_its_name(name: str) -> None:
    if name.isprintable() and name:
        assert control_topic("o", "p", f"task/{name}", "pause").count("/") == 7


def test_the_source_is_this_process() -> None:
    assert re.fullmatch(rf".+-{os.getpid()}-[0-9a-f]{{4}}", source())
    assert source() == source()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_source_of_its_own() -> None:
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
        ("$SYS/x", "brokers keep for themselves"),
        ("a/+/b", "has a wildcard"),
        ("a/#", "has a wildcard"),
    ],
)
def test_a_topic_that_a_broker_would_not_take_is_refused(topic: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        checked_topic(topic)


@pytest.mark.parametrize("pattern", ["a/b", "#", "+", "a/+/c", "a/#", "+/+/#"])
def test_topic_filters_that_can_be_subscribed_to(pattern: str) -> None:
    assert checked_filter(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "a#", "#/a", "a/b+", "+a/b", "a/##", "a\x00/#"])
def test_topic_filters_that_cannot(pattern: str) -> None:
    with pytest.raises(ValueError, match="topic filter"):
        checked_filter(pattern)
