import os

import pytest
from hypothesis import given

from cascade.telemetry.topics import control_topic, events_topic, identity_from_environment, source
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
    assert source().endswith(f"-{os.getpid()}")
