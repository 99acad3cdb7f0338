from cascade.telemetry import attributes


def test_the_documented_names_are_those_of_the_module() -> None:
    names = {
        value
        for name, value in vars(attributes).items()
        if name.isupper() and isinstance(value, str) and name[0] != "_"
    }
    assert {row.name for row in attributes.DOCUMENTED} == names
