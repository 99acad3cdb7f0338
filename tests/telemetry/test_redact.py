import pytest

from cascade.telemetry.redact import MASK, captured, is_secret, redact, redact_text, without_captured

SECRET_KEYS = """
password PASSWORD dbPassword db_password db-password api_key apiKey API_KEY x-api-key Authorization auth_token
client_secret AWS_SECRET_ACCESS_KEY privateKey sessionId cookie
"""


@pytest.mark.parametrize("key", SECRET_KEYS.split())
def test_secret_keys(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key", ["author", "authority", "token_count", "tokens_per_second", "keyboard", "monkey", "path", ""]
)
def test_keys_that_only_look_like_it(key: str) -> None:
    assert not is_secret(key)


def test_masking_goes_to_any_depth() -> None:
    assert redact({"a": [{"password": {"deep": 1}, "b": 2}]}) == {"a": [{"password": MASK, "b": 2}]}
    assert captured({"user": "u", "db": {"token": object()}}) == {"user": "u", "db": {"token": MASK}}


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach postgres://admin:hunter2@db:5432/x",
        "Authorization: Bearer hunter2abc",
        "authorization: basic aHVudGVyMg==",
        "password=hunter2 is wrong",
        "{'password': 'hunter2'}",
        '{"api_key": "hunter2"}',
        "DB_PASSWORD=hunter2",
        "token: hunter2",
    ],
)
def test_secrets_in_texts_are_masked(text: str) -> None:
    assert "hunter2" not in redact_text(text)
    assert "aHVudGVyMg" not in redact_text(text)
    assert MASK in redact_text(text)


@pytest.mark.parametrize(
    "text", ["the key to success", "see https://example.org/a@b", "a basic idea", "monkey: banana"]
)
def test_plain_texts_stay(text: str) -> None:
    assert redact_text(text) == text


def test_what_was_captured_can_be_left_out_again() -> None:
    payload = {"body": {"metadata": {"arguments": 1, "output": 2, "params": 3, "start_ns": 4}}}
    assert without_captured(payload, keep={"results"}) == {"body": {"metadata": {"output": 2, "start_ns": 4}}}
    assert without_captured(payload, keep={"params", "arguments", "results"}) is payload
