import sys

import pytest
from jsonschema import Draft202012Validator

from cascade.telemetry import schema
from cascade.telemetry.schema import generate


@pytest.mark.parametrize("name", schema.NAMES)
def test_each_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(schema.load(name))


def test_they_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    generate.main()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="choose from message"):
        schema.load("nonsense")
