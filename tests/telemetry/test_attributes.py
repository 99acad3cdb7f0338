from cascade.telemetry import attributes


def test_every_name_is_documented_and_no_other() -> None:
    names = {
        value
        for name, value in vars(attributes).items()
        if name.isupper() and isinstance(value, str) and name[0] != "_"
    }
    assert {row.name for row in attributes.DOCUMENTED} == names
