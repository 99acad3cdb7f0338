"""`cascade.redact`: rules of the program for its own secrets."""

import re
from types import TracebackType
from typing import Self

from cascade._forks import ForkSafeLock
from cascade.telemetry import _secret_keys, _secret_texts

_lock = ForkSafeLock()
_rules: list["Redaction"] = []


class Redaction:
    """A rule that `redact` has added. It applies until `remove`, or until the end of a `with` block over it."""

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
    r"""Mask more than what Cascade recognises, in all of its outputs, in this process.

    `cs.redact(r"\bcust-\d{6}\b")` masks each match of a regular expression in texts: errors, log records, messages,
    captured values. `cs.redact(key="patient_id")` masks the values of a key in mappings, of a parameter, and of
    `patient_id=…` in texts. `patientId`, `PATIENT-ID` and `main_patient_id` are the same key.

    The pattern is searched in texts of up to 34,000 characters, at each of them: a pattern that takes exponential time
    slows the run down. A match of more than 1,000 characters may be cut before it is found.

    Args:
        pattern: A regular expression, as text or compiled. The whole match is masked.
        key: A name in snake, camel or kebab case.

    Returns:
        The rule, to remove it again: by `remove()`, or as a context manager.

    Raises:
        TypeError: Not exactly one of `pattern` and `key` is given, or it has another type.
        ValueError: The pattern is no regular expression or matches the empty text, or the key has no letter.
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
        raise ValueError(f"pattern={written!r} is no regular expression: {error}") from None
    if compiled.search("") is not None:
        raise ValueError(f"pattern={written!r} matches the empty text; it must match at least one character")
    return compiled


def _words(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"key must be a str, got {key!r}; for a regular expression pass a pattern")
    words = _secret_keys.words_of(key)
    if not any(map(str.isalpha, words)):
        raise ValueError(f"key={key!r} has no letter; give the name of a key, such as 'patient_id'")
    return words


def _apply() -> None:
    keys = [rule._words for rule in _rules if rule._words]  # noqa: SLF001 - a class of this module
    patterns = tuple(rule._pattern for rule in _rules if rule._pattern is not None)  # noqa: SLF001
    _secret_texts.set_own(patterns, tuple(words.split("_")[1] for words in keys))
    _secret_keys.set_own((*keys, *(f"_{words.replace('_', '')}_" for words in keys)))
