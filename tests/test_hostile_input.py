"""For any input, a run returns its result, and each message is valid JSON that fits the schema."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.telemetry.wire import decode, dumps
from tests.telemetry.strategies import Hostile, HostileDict, HostileText, cycle, deep, texts, values

# Fixtures that hold for all examples alike are fine here.
relaxed = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Capturing(MemoryConnector):
    capture = frozenset({"params", "arguments", "results"})


def ran(target: Any, **options: Any) -> tuple[Any, Capturing]:
    connector = Capturing()
    value = cs.run(target, connector=connector, **options)
    states = [payload["body"].get("event") or payload["body"]["state"] for payload in connector.payloads]
    assert (states[0], states[-1]) == ("ENGINE_STARTED", "ENGINE_STOPPED")
    for payload in connector.payloads:
        decode(payload)
        dumps(payload)
    return value, connector


@given(values)
@relaxed
def test_any_argument_and_result(value: Any) -> None:
    passed = cs.task(lambda *_: value, name="give")
    assert ran(passed())[0] is value
    ran(cs.task(lambda x: None, name="take")(passed()))


@given(texts, values)
@relaxed
def test_any_param(name: str, value: Any) -> None:
    ran(cs.task(lambda: 1, name="t")(), params={name: value}, log_level="ERROR")


@given(texts.filter(bool))
@relaxed
def test_any_name(name: str) -> None:
    assert ran(cs.task(lambda: 1, name=name)())[0] == 1


@given(texts)
@relaxed
def test_any_error(message: str) -> None:
    def fail() -> None:
        raise ValueError(message)

    connector = Capturing()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - any text at all
        cs.run(cs.task(fail)(), connector=connector)
    assert caught.value.args == (message,)
    for payload in connector.payloads:
        dumps(payload)


@pytest.mark.parametrize("make", [Hostile, HostileDict, lambda: HostileText("x"), cycle, deep])
def test_hostile_literals_are_passed_on_unchanged(make: Any) -> None:
    literal = make()
    assert ran(cs.task(lambda x: x is literal, name="same")(literal))[0] is True


def test_a_connector_that_raises_everywhere_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def connect(self) -> None:
            raise OSError("no connect")

        async def disconnect(self) -> None:
            raise OSError("no disconnect")

        async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
            raise OSError("no publish")

        async def subscribe(self, topic: str, callback: Any) -> None:
            raise OSError("no subscribe")

        def place_run(self, *_: Any) -> Any:
            raise OSError("no place")

        def activate(self, *_: Any) -> Any:
            raise OSError("no span")

    assert cs.run(cs.task(lambda: 1, name="t")(), connector=Broken()) == 1
    assert any("4 telemetry messages were lost: OSError: no connect" in message for message in caplog.messages)
