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
    mask_tokens,
    may_contain_secret,
    rules_version,
    set_custom_keys,
    words_of,
)
from cascade.telemetry._secret_values import (
    Replacement,
    is_random,
    mask_documents,
    mask_values,
    replace_matches,
    unquoted_at,
    value_at,
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
_MAX_PROSE_WORD = 15  # characters of a word after `Bearer` that may be prose
_MAX_LINE = 200  # characters of a command line before an argument

# A quote inside of a password does not end the URL; a quote before a delimiter does.
_URL = re.compile(r"://((?:[^\s\"'`<>\\]|[\"'`](?![\s,;:.)\]}]|\Z)|\\(?![\"'\\nrt]))++)")
_SCHEME_OF_URL = re.compile(r"[a-zA-Z0-9+.-]{0,20}\Z")
_WEB = ("http", "https", "ws", "wss", "file", "s3", "gs")
_LOGIN = re.compile(
    r"(?<![\w./:=+-])(?!(?i:mailto|sips?|xmpp|acct|to|from|e?mail|contact|cc|bcc|\d+):)[\w.+-]{1,64}+:"
    r"([^\s@:/\"'<>]{1,200})@(?!sha256:)(?=[A-Za-z]|\d{1,3}\.\d{1,3}\.\d)"
)
_ORACLE = re.compile(r"jdbc:oracle:[a-z]{1,10}:([^\s@]++)@")
_SCHEME = re.compile(r"\b(?i:bearer|basic)\s{1,8}(?!\w{1,20}=[\"'])([A-Za-z0-9._~+/=-]{4,}+)")
_OPTION = re.compile(
    r"(?<![\w.-])(--?[A-Za-z][\w.-]*+)\s{1,8}(?![\s-])"
    r"(?!(?:is|was|are|must|option|flag|or|and|to|for|in|argument|requires?d?|needs|cannot|has|with|not|should|can|may"
    r"|when|if|from|as|instead|missing)\b)"
)
_PHRASE = re.compile(
    r"(?<![\w.-])(?i:([\w-]{0,20}(?:passw(?:or)?d|passphrase|passcode|passwort|pwd|requirepass)|\w{0,20}(?:api|access|secret|private)_key)|(?:[\w-]{0,20}[ _-])?(?:secret|token)"
    r"|(?:api|access|secret|private|license)[ _-]?key)"
    r"\s{1,8}(?:(?i:(?:for|of)\s{1,8}(?:[^\s:=]{1,60}\s{1,8})?[^\s:=]{1,60}(?:\s{0,8}[:=]|\s{1,8}is)|is|was|ist|provided|given"
    r"|supplied|received):?\s{1,8})?(?=[^\s=:]{6,}(?:\s|\Z))([\"']?)"
)
_OF_PHRASE = re.compile(r"(?:pass\w*|pwd|token|secret|key)\s")
_ARGUMENTS = r"\b[^\n;|&]{0,200}?[\s\"']"
_GAP = r"(?:\s{1,8}|[\"'],\s{0,8})"
_PROGRAM = re.compile(
    rf"\b(?:(?:mysql\w{{0,10}}|mariadb[\w-]{{0,10}}|sshpass){_ARGUMENTS}-p(?=\S)"
    rf"|(?:sshpass|mongo\w{{0,8}}|(?:docker|podman|az|oc|registry) login){_ARGUMENTS}-p{_GAP}"
    rf"|(?:mosquitto_\w{{2,6}}|sqlcmd|bcp|zip|unzip){_ARGUMENTS}-P{_GAP}?"
    rf"|redis-cli{_ARGUMENTS}-a{_GAP}|ldap[a-z]{{3,8}}{_ARGUMENTS}-w{_GAP}"
    rf"|curl{_ARGUMENTS}-[uU][^\s:\"']{{1,100}}:|smbclient{_ARGUMENTS}-U{_GAP}?[^\s%\"']{{1,100}}%)"
)
_IDENTIFIED = re.compile(
    r"(?i:identified\s{1,8}(?:with\s{1,8}[\w\"'`]{1,60}\s{1,8})?(?:by|as)\s{1,8}(?:password\s{1,8})?)"
)
_BASIC_AUTH = re.compile(
    r"(?:BasicAuth|DigestAuth|basic_auth|username_pw_set)\(\s{0,8}[\"'][^\"']{0,100}[\"']\s{0,8},\s{0,8}[\"']([^\"']++)"
)
_USER_OPTION = re.compile(
    rf"(?<![\w-])(?:-[uU]|--user|--proxy-user)(?:{_GAP}|=)[\"']?(?!\d+:|\+)[^\s:\"']{{1,100}}:([^\s\"']++)"
)
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
    for _ in range(_MAX_PASSES):
        before, text = text, _redact_once(text, text.lower())
        if text == before:
            break
    return text


@lru_cache(maxsize=64)
def _redact_cached(text: str, version: int) -> str:  # noqa: ARG001 - a part of the cache's key
    """Cache the result: the events of a task, its attempts and its run have the same error and stack trace."""
    return _redact_repeatedly(text)


def _redact_once(text: str, lowered: str) -> str:
    text = mask_tokens(text)
    if "@" in text:
        text = replace_matches(text, _URL, _login_of_url)
        text = replace_matches(text, _ORACLE, _group)
        text = replace_matches(text, _LOGIN, _group)
    text = mask_values(mask_documents(text, lowered))
    if "auth" in lowered or "pw_set" in lowered:
        text = replace_matches(text, _BASIC_AUTH, _group)
    if "bearer" in lowered or "basic" in lowered:
        text = replace_matches(text, _SCHEME, _credentials)
    if "identified" in lowered:
        text = replace_matches(text, _IDENTIFIED, _value_of_user)
    if "-" in text:
        text = replace_matches(text, _USER_OPTION, _group)
        text = replace_matches(text, _OPTION, _value_of_option)
        text = replace_matches(text, _PROGRAM, _value_of_argument)
    return replace_matches(text, _PHRASE, _value_in_phrase) if _OF_PHRASE.search(lowered) else text


def _group(found: re.Match[str]) -> Replacement:
    return Replacement(*found.span(1))


def _login_of_url(found: re.Match[str]) -> Replacement | None:
    scheme = _SCHEME_OF_URL.search(found.string, max(0, found.start() - 20), found.start())
    end = _end_of_login("" if scheme is None else scheme[0].lower(), found[1])
    return None if end <= 0 else Replacement(found.start(1), found.start(1) + end)


def _end_of_login(scheme: str, rest: str) -> int:
    """Return the end of the user and password in the part of a URL after `://`, or -1 for none.

    A password may contain `@` and `/`. Therefore the last `@` ends it, unless a port or a path begins before.
    """
    at = rest.rfind("@")
    if at < 0:
        return -1
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    in_authority = authority.rfind("@")
    _, colon, password = authority.partition(":")
    if in_authority >= 0:
        return at if colon and authority.index(":") < in_authority else in_authority
    if not colon or authority.startswith("["):
        return -1
    if not password.isdecimal() and password:
        return at
    return -1 if scheme in _WEB else rest.partition("?")[0].rfind("@")


def _credentials(found: re.Match[str]) -> Replacement | None:
    """Find the word after `Bearer` or `Basic`. A short word without digits and inner capitals is prose."""
    word = found[1]
    looks_random = len(word) > _MAX_PROSE_WORD or any(c.isdigit() or c in "=_" or c.isupper() for c in word[1:])
    return Replacement(*found.span(1)) if looks_random else None


def _value_of_option(found: re.Match[str]) -> Replacement | None:
    return value_at(found.string, found.end()) if is_secret(found[1]) else None


def _value_of_argument(found: re.Match[str]) -> Replacement | None:
    return value_at(found.string, found.end())


def _value_of_user(found: re.Match[str]) -> Replacement | None:
    value = value_at(found.string, found.end())
    is_quoted = value is not None and value.start > found.end()
    return value if value and (is_quoted or is_random(found.string[value.start : value.end], 6)) else None


def _value_in_phrase(found: re.Match[str]) -> Replacement | None:
    if found[2]:
        quoted = value_at(found.string, found.start(2))
        is_password = found[1] or (quoted and is_random(found.string[quoted.start : quoted.end], 10))
        return quoted if is_password else None
    value = unquoted_at(found.string, found.end())
    return Replacement(*value) if value and is_random(found.string[slice(*value)], 6 if found[1] else 10) else None


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
