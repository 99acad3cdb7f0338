import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

import cascade as cs
from cascade._loggers import get_logger
from cascade.telemetry import redact
from cascade.telemetry.redact import MASK, is_secret, redact_text
from cascade.telemetry.sanitize import captured, error_text, masked_name
from cascade.testing import MemoryConnector
from tests.lab.waiting import HANG


def test_a_pattern_masks_its_matches_in_texts() -> None:
    with cs.redact(r"\bcust-\d{6}\b"):
        assert redact_text("no cust-123456 here, nor cust-1234567") == f"no {MASK} here, nor cust-1234567"
        assert error_text(ValueError("cust-123456")) == f"ValueError: {MASK}"
        assert captured({"id": ["cust-123456"]}) == {"id": [MASK]}
        assert masked_name("load cust-123456") == f"load {MASK}"
    assert redact_text("cust-123456") == "cust-123456"
    assert masked_name("load cust-123456") == "load cust-123456"


def test_a_compiled_pattern_keeps_its_flags() -> None:
    with cs.redact(re.compile("CUST-x", re.IGNORECASE)):
        assert redact_text("cust-X") == MASK


@pytest.mark.parametrize(
    "key", ["patient_id", "patientId", "PATIENT-ID", "patient.id", "PATIENTID", "main_patient_id", "patient id"]
)
def test_a_custom_key_is_masked_in_each_form(key: str) -> None:
    assert not is_secret(key)
    with cs.redact(key="patientId"):
        assert is_secret(key)
        assert captured({key: "Ann"}) == {key: MASK}
        assert redact_text(f"x patient_id=Ann, {key.replace(' ', '_')}: 'Bob'").count(MASK) == 2
    assert not is_secret(key)


def test_a_rule_applies_to_a_text_that_was_masked_before() -> None:
    text = "token=x patient_id=Ann cust-1"
    assert redact_text(text) == "token=*** patient_id=Ann cust-1"
    with cs.redact(key="patient_id"), cs.redact("cust-1"):
        assert redact_text(text) == "token=*** patient_id=*** ***"
    assert redact_text(text) == "token=*** patient_id=Ann cust-1"


@cs.task
def discharge(patient_id: str, note: str) -> str:
    raise LookupError(f"no bed for {note}, patientId={patient_id}")


class Capturing(MemoryConnector):
    capture = frozenset({"arguments", "params"})


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_a_rule_applies_to_all_outputs(
    log_format: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    connector = Capturing()
    target = discharge(cs.Param("patient_id"), "cust-123456")
    with cs.redact(key="patient_id"), cs.redact(r"cust-\d{6}"):
        with pytest.raises(LookupError, match="cust-123456"):
            cs.run(target, params={"patient_id": "Ann"}, connector=connector, log_format=log_format)
        cs.dry_run(discharge("Ann", "cust-123456"))
        get_logger("cascade.tests").warning("%s: %s", "cust-123456", "patient_id=Ann")
    shown = capsys.readouterr()
    for text in (shown.err, shown.out, json.dumps(connector.payloads), caplog.text):
        assert "Ann" not in text
        assert "123456" not in text
        assert MASK in text


def test_a_result_of_earlier_rules_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule is added between the last pass over a text and the storage of its result."""
    text, redact_repeatedly = "token=x patient_id=Ann", vars(redact)["_redact_repeatedly"]
    is_done, may_return = threading.Event(), threading.Event()

    def slow(text: str) -> str:
        result = str(redact_repeatedly(text))
        if MASK in result:
            is_done.set()
            may_return.wait(HANG)
        return result

    monkeypatch.setattr(redact, "_redact_repeatedly", slow)
    thread = threading.Thread(target=masked_name, args=(text,))
    thread.start()
    assert is_done.wait(HANG)
    with cs.redact(key="patient_id"):
        may_return.set()
        thread.join()
        assert masked_name(text) == redact_text(text) == "token=*** patient_id=***"


def test_keys_that_only_contain_its_letters_stay() -> None:
    with cs.redact(key="ward"):
        assert is_secret("ward")
        assert not is_secret("award")
        assert not is_secret("forward")


def test_removing_twice_removes_one_rule() -> None:
    one, other = cs.redact("alpha"), cs.redact("alpha")
    one.remove()
    one.remove()
    assert redact_text("alpha") == MASK
    other.remove()
    assert redact_text("alpha") == "alpha"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (cs.redact, TypeError, "either a pattern or key="),
        (lambda: cs.redact("a", key="b"), TypeError, "either a pattern or key="),
        (lambda: cs.redact(b"a"), TypeError, "must be a str or a compiled pattern of str, got b'a'"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (lambda: cs.redact(re.compile(b"a")), TypeError, "must be a str"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (lambda: cs.redact("("), ValueError, r"pattern='\(' is not a regular expression: missing \)"),
        (lambda: cs.redact("a*"), ValueError, r"pattern='a\*' matches the empty text"),
        (lambda: cs.redact(key=re.compile("a")), TypeError, "key must be a str"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (lambda: cs.redact(key="__1"), ValueError, "key='__1' has no letter"),
    ],
)
def test_an_invalid_rule_is_refused(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_rules_can_be_added_in_many_threads() -> None:
    rules: list[Any] = []

    def add(number: int) -> None:
        rules.extend(cs.redact(f"thread-{number}-{count}-") for count in range(20))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [f"thread-{number}-{count}-" for number in range(8) for count in range(20)]
    assert redact_text(" ".join(texts)).split() == [MASK] * len(texts)
    for rule in rules:
        rule.remove()
    assert redact_text(texts[0]) == texts[0]
