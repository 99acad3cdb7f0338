"""Masks secrets: by the names of keys, by the shape of texts, and by the rules that `cascade.redact` adds.

All outputs use these rules: the terminal, the log in JSON, messages, spans and exported log records. Each pass takes time
linear in the length of the text: quantifiers are possessive or bounded, and a pass continues after the text that it has masked.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from cascade._forks import ForkSafeLock
from cascade.telemetry._secret_patterns import (
    MASK,
    is_masked,
    is_secret,
    mask_mapping,
    mask_sequence,
    may_contain_secret,
    rules_version,
    set_custom_keys,
    words_of,
)

__all__ = [
    "MASK",
    "Redaction",
    "is_masked",
    "is_secret",
    "mask_items",
    "mask_url_at_end",
    "redact",
    "redact_text",
    "redact_value",
]

_lock = ForkSafeLock()
_rules: list["Redaction"] = []
_custom_patterns: tuple[re.Pattern[str], ...] = ()
_MAX_PASSES = 10
_MAX_NAME = 100  # characters of a text that may be a name
_MAX_CACHED = 20_000  # characters of a text whose result is cached
_MAX_LINE = 200  # characters of a command line before an argument
_ENDS_URL = re.compile(r"[\"'`<>]")


def redact_value(value: Any) -> Any:
    """Return a copy of a JSON value in which the secrets at any depth are masked."""
    match value:
        case dict():
            return {redact_text(key): redact_value(item) for key, item in mask_mapping(value).items()}
        case list():
            return [redact_value(item) for item in mask_items(value)]
        case str():
            return redact_text(value)
        case _:
            return value


def redact_text(text: str) -> str:
    """Return the text with its secrets masked.

    Secrets are private keys, tokens of known vendors, credentials in URLs and headers, the values of keys that
    `is_secret` accepts, and matches of the patterns of `cascade.redact`. The time is linear in the length of the text.
    """
    if len(text) <= _MAX_NAME and type(text) is str:
        return _redact_name(text, rules_version())
    return _redact(text)


@lru_cache(maxsize=1024)
def _redact_name(text: str, version: int) -> str:  # noqa: ARG001 - a part of the cache's key
    """Cache the result: most short texts are names, such as those of tasks and keys, which each line of a log repeats."""
    return _redact(text)


def _redact(text: str) -> str:
    for pattern in _custom_patterns:
        text = pattern.sub(MASK, text)
    if not may_contain_secret(text, text.lower()):
        return text
    return _redact_cached(text, rules_version()) if len(text) <= _MAX_CACHED else _redact_repeatedly(text)


def mask_items(shown: Sequence[Any], names: Sequence[str] = ()) -> list[Any]:
    """Return the items with secrets masked, and the secret arguments of a command line."""
    masked = mask_sequence(shown, names)
    if not any(isinstance(item, str) and item.startswith("-") for item in masked):
        return masked
    line = ""
    for number, item in enumerate(masked):
        if number and isinstance(item, str) and item != MASK:
            opening = f"{line} '"
            seen = redact_text(f"{opening}{item}'")
            masked[number] = seen[len(opening) : -1] if seen.startswith(opening) else item
        line = f"{line} {masked[number]}"[-_MAX_LINE:]
    return masked


def mask_url_at_end(text: str) -> str:
    """Mask the URL at the end of a truncated text, because the `@` after its password may be missing."""
    start = text.rfind("://") + len("://")
    is_cut = start > len("://") - 1 and len(text[start:].split(None, 1)) == 1 and not text[-1:].isspace()
    return text[:start] + MASK if is_cut and not _ENDS_URL.search(text, start) else text


def _redact_repeatedly(text: str) -> str:
    """Mask the text until it remains the same. A mask and the text around it may form another secret."""
    from cascade.telemetry._secret_texts import mask_secrets  # few runs need its patterns, which take 8 ms

    for _ in range(_MAX_PASSES):
        before, text = text, mask_secrets(text, text.lower())
        if text == before:
            break
    return text


@lru_cache(maxsize=64)
def _redact_cached(text: str, version: int) -> str:  # noqa: ARG001 - a part of the cache's key
    """Cache the result: the events of a task, its attempts and its run have the same error and stack trace."""
    return _redact_repeatedly(text)


class Redaction:
    """A rule that `redact` has added. It applies until `remove` or until the end of its `with` block."""

    def __init__(self, pattern: re.Pattern[str] | None, words: str) -> None:
        self._pattern = pattern
        self._words = words

    def remove(self) -> None:
        """Remove the rule. A further call has no effect."""
        with _lock:
            if self in _rules:
                _rules.remove(self)
            _apply()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def redact(pattern: str | re.Pattern[str] | None = None, *, key: str | None = None) -> Redaction:
    r"""Add a rule that masks further secrets in all outputs of this process.

    `cs.redact(r"\bcust-\d{6}\b")` masks each match of a regular expression in texts: errors, log records, messages and
    captured values. `cs.redact(key="patient_id")` masks the values of a key in mappings, of a parameter, and of
    `patient_id=…` in texts. It also applies to `patientId`, `PATIENT-ID` and `main_patient_id`.

    The pattern is searched in texts of up to 34,000 characters. A pattern that takes exponential time delays the run. A
    match of more than 1,000 characters may be truncated and then is not found.

    Args:
        pattern: A regular expression, as text or compiled. The whole match is masked.
        key: A name in snake, camel or kebab case.

    Returns:
        The rule. Its `remove()`, or the end of a `with` block, removes the rule.

    Raises:
        TypeError: Not exactly one of `pattern` and `key` is given, or it has another type.
        ValueError: The pattern is not a regular expression or matches the empty text, or the key has no letter.
    """
    if (pattern is None) == (key is None):
        raise TypeError(
            'redact() needs either a pattern or key=, such as redact(r"cust-\\d+") or redact(key="patient_id")'
        )
    rule = Redaction(None if pattern is None else _compiled(pattern), "" if key is None else _words(key))
    with _lock:
        _rules.append(rule)
        _apply()
    return rule


def _compiled(pattern: object) -> re.Pattern[str]:
    written = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    if not isinstance(written, str):
        raise TypeError(f"pattern must be a str or a compiled pattern of str, got {pattern!r}")
    try:
        compiled: re.Pattern[str] = pattern if isinstance(pattern, re.Pattern) else re.compile(written)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern={written!r} is not a regular expression: {error}") from None
    if compiled.search("") is not None:
        raise ValueError(f"pattern={written!r} matches the empty text; it must match at least one character")
    return compiled


def _words(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"key must be a str, got {key!r}; for a regular expression pass a pattern")
    words = words_of(key)
    if not any(map(str.isalpha, words)):
        raise ValueError(f"key={key!r} has no letter; give the name of a key, such as 'patient_id'")
    return words


def _apply() -> None:
    global _custom_patterns  # noqa: PLW0603 - one set of rules per process
    _custom_patterns = tuple(rule._pattern for rule in _rules if rule._pattern is not None)  # noqa: SLF001 - a class of this module
    # Last, because this starts the new version of the rules.
    set_custom_keys([rule._words for rule in _rules if rule._words])  # noqa: SLF001
