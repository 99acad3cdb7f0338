"""Masks secrets in texts: tokens by their shape, credentials of URLs and headers, and the values of secret keys.

Each pass takes time linear in the length of the text: quantifiers are possessive or bounded, and a pass continues after
the text that it has masked.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from cascade.telemetry._secret_documents import mask_documents
from cascade.telemetry._secret_keys import MASK, is_secret, mask_sequence, version
from cascade.telemetry._secret_shapes import mask_shapes, may_hold_token
from cascade.telemetry._secret_values import Masked, first_value, is_random, mask_values, replaced, value_at

_own: tuple[re.Pattern[str], ...] = ()
_own_hints: tuple[str, ...] = ()

# Names that are too short to look for in every text: they are looked for before `=` and `:`.
_SHORT_NAMES = (
    *("pin", "pins", "otp", "otps", "mfa", "tfa", "ssn", "cvv", "cvv2", "cvc", "iban", "salt", "hmac", "jwt", "jwts"),
    *("sas", "dsn", "card", "number", "num", "no", "code", "codes", "phrase", "mnemonic", "psk", "conn_str", "connstr"),
    *("string", "strings", "uri", "url", "urls", "senha", "kennwort", "wachtwoord", "contrasena", "hook", "hooks"),
)
_SHORT_OPTION = re.compile(r"-(?:(?<=[\s\"'].)|(?<=[\s\"']-.))[pPuUaw]")
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
_MAX_PASSES = 10
_MAX_REMEMBERED = 20_000
_LONGEST_WORD = 15
_LONGEST_LINE = 200
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


def redact_text(text: str) -> str:
    """The text with its secrets masked.

    These are private keys, tokens of known shape, credentials of URLs and of headers, the values of keys that
    `is_secret` accepts, and matches of the patterns of `cascade.redact`. The time is linear in the length of the text.
    """
    for pattern in _own:
        text = pattern.sub(MASK, text)
    if not _is_suspicious(text, text.lower()):
        return text
    return _redacted_before(text, version()) if len(text) <= _MAX_REMEMBERED else _redacted_again(text)


def mask_items(shown: Sequence[Any], names: Sequence[str] = ()) -> list[Any]:
    """The items as `mask_sequence` returns them; of a command line, the values of the program's options as well."""
    masked = mask_sequence(shown, names)
    if not any(isinstance(item, str) and item.startswith("-") for item in masked):
        return masked
    line = ""
    for number, item in enumerate(masked):
        if number and isinstance(item, str) and item != MASK:
            opening = f"{line} '"
            seen = redact_text(f"{opening}{item}'")
            masked[number] = seen[len(opening) : -1] if seen.startswith(opening) else item
        line = f"{line} {masked[number]}"[-_LONGEST_LINE:]
    return masked


def without_cut_login(text: str) -> str:
    """The text, which was cut, without the URL at its end: the `@` after the password may be cut off."""
    start = text.rfind("://") + len("://")
    is_cut = start > len("://") - 1 and len(text[start:].split(None, 1)) == 1 and not text[-1:].isspace()
    return text[:start] + MASK if is_cut and not _ENDS_URL.search(text, start) else text


def set_own(patterns: tuple[re.Pattern[str], ...], hints: tuple[str, ...]) -> None:
    """Replace the program's own patterns, and the words by which texts with its own keys are found."""
    global _own, _own_hints
    _own, _own_hints = patterns, hints


def _is_suspicious(text: str, lowered: str) -> bool:
    """Whether a text may hold a secret. Most texts do not, and need no more than these searches: 2 µs."""
    return (
        "pass" in lowered
        or "token" in lowered
        or "secret" in lowered
        or "key" in lowered
        or "@" in text
        or "auth" in lowered
        or "pw" in lowered
        or "sess" in lowered
        or "cred" in lowered
        or "cook" in lowered
        or "sig" in lowered
        or "bearer" in lowered
        or "basic" in lowered
        or "hook" in lowered
        or "/bot" in lowered
        or "identified" in lowered
        or "srf" in lowered
        or may_hold_token(text)
        or ("-" in text and _SHORT_OPTION.search(text) is not None)
        or ("=" in text and _has_short_name(lowered, "="))
        or (":" in text and _has_short_name(lowered, ":"))
        or not text.isascii()
        or (bool(_own_hints) and any(hint in lowered for hint in _own_hints))
    )


def _has_short_name(lowered: str, separator: str) -> bool:
    end = lowered.find(separator)
    while end >= 0:
        start = end
        while start and lowered[start - 1] in _DECORATIONS:
            start -= 1
        if lowered.endswith(_SHORT_NAMES, 0, start):
            return True
        end = lowered.find(separator, end + 1)
    return False


_DECORATIONS = " \t\"'\\]0123456789"


def _redacted_again(text: str) -> str:
    """The masked text, masked again until it remains the same: a mask and the text around it may form a further secret."""
    for _ in range(_MAX_PASSES):
        before, text = text, _redacted(text, text.lower())
        if text == before:
            break
    return text


@lru_cache(maxsize=64)
def _redacted_before(text: str, version: int) -> str:  # noqa: ARG001 - a part of the cache's key
    """Cache: the events of a task, of its attempts and of the run hold the same error and the same stack trace."""
    return _redacted_again(text)


def _redacted(text: str, lowered: str) -> str:
    text = mask_shapes(text)
    if "@" in text:
        text = replaced(text, _URL, _login_of_url)
        text = replaced(text, _ORACLE, _group)
        text = replaced(text, _LOGIN, _group)
    text = mask_values(mask_documents(text, lowered))
    if "auth" in lowered or "pw_set" in lowered:
        text = replaced(text, _BASIC_AUTH, _group)
    if "bearer" in lowered or "basic" in lowered:
        text = replaced(text, _SCHEME, _credentials)
    if "identified" in lowered:
        text = replaced(text, _IDENTIFIED, _value_of_user)
    if "-" in text:
        text = replaced(text, _USER_OPTION, _group)
        text = replaced(text, _OPTION, _value_of_option)
        text = replaced(text, _PROGRAM, _value_after)
    return replaced(text, _PHRASE, _value_in_phrase) if _OF_PHRASE.search(lowered) else text


def _group(found: re.Match[str]) -> Masked:
    return Masked(*found.span(1))


def _login_of_url(found: re.Match[str]) -> Masked | None:
    scheme = _SCHEME_OF_URL.search(found.string, max(0, found.start() - 20), found.start())
    end = _end_of_login("" if scheme is None else scheme[0].lower(), found[1])
    return None if end <= 0 else Masked(found.start(1), found.start(1) + end)


def _end_of_login(scheme: str, rest: str) -> int:
    """Where in the part of an URL after `://` its user and password end; -1 if it has none.

    A password may hold `@` and `/`. So the last `@` ends it, unless a port or a path begins before.
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


def _credentials(found: re.Match[str]) -> Masked | None:
    """The word after `Bearer` or `Basic`. A word of prose has no digit, no capital but its first letter, and is short."""
    word = found[1]
    looks_random = len(word) > _LONGEST_WORD or any(c.isdigit() or c in "=_" or c.isupper() for c in word[1:])
    return Masked(*found.span(1)) if looks_random else None


def _value_of_option(found: re.Match[str]) -> Masked | None:
    return value_at(found.string, found.end()) if is_secret(found[1]) else None


def _value_after(found: re.Match[str]) -> Masked | None:
    return value_at(found.string, found.end())


def _value_of_user(found: re.Match[str]) -> Masked | None:
    value = value_at(found.string, found.end())
    is_quoted = value is not None and value.start > found.end()
    return value if value and (is_quoted or is_random(found.string[value.start : value.end], 6)) else None


def _value_in_phrase(found: re.Match[str]) -> Masked | None:
    if found[2]:
        quoted = value_at(found.string, found.start(2))
        is_password = found[1] or (quoted and is_random(found.string[quoted.start : quoted.end], 10))
        return quoted if is_password else None
    value = first_value(found.string, found.end())
    return Masked(*value) if value and is_random(found.string[slice(*value)], 6 if found[1] else 10) else None
