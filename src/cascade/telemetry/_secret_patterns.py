"""Recognizes secrets: by the name of a key, in mappings, parameters, headers and texts, and by the shape of a token."""

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import methodcaller
from typing import Any

MASK = "***"

_MAX_KEY = 128
"""Number of characters at the end of a key that are checked. The last words of a key name its value."""

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATORS = re.compile(r"[\W_]+")
_NUMBERS = re.compile(r"(?<=[^\W\d_])\d+(?=_)")

# Alternatives of the patterns below match the words of a key, in lower case, with `_` around and between them.
_KINDS_OF_KEYS = (
    r"api|access|secret|private|priv|ssh|ssl|tls|encryption|encrypt|decryption|signing|sign|license|licence"
    r"|session|auth|client|master|shared|account|storage|deploy|deployment|rsa|aes|des|hmac|gpg|pgp|root"
    r"|service|functions|subscription|webhook|crypto|cipher|fernet|jwt|app|application|consumer|server|host|bearer|admin"
    r"|user|security|function|product|openai|anthropic|google|azure|aws|gcp|stripe|sendgrid|mailgun|twilio"
    r"|github|gitlab|slack|datadog|sentry"
)
_PASSWORDS_OF = r"user|my|db|admin|root|ftp|smtp|mail|email|login|sql|mysql|pg|redis|http|web|wifi|new|old|proxy"
_STORES = r"database|db|webhook|redis|mongo|mongodb|amqp|rabbitmq|postgres|postgresql|mysql|broker|sentry"

_ALWAYS = re.compile(
    rf"""
      (?:secret|session|sess)_?ids?_ | access_?key_?ids?_
    | _(?:card|cc|account|routing|social_security)_?(?:number|num|no)_ | _credit_?card_ | _social_security_$
    | (?:pin|security|access|auth|verification|recovery|backup|one_time)_?codes?_
    | (?:connection|conn)_?str(?:ing)?s?_ | _(?:my|app)?(?:{_STORES})_?ur[il]s?_ | webhooks?_$
    | auth(?:orization)?_(?:headers?|value|data|string|hash|basic)_
    """,
    re.VERBOSE,
)
_NEVER = re.compile(
    r"""
      ^_(?:max|maximum|min|minimum|num|number|count|total|avg|average|mean)_ | _per_
    | _(?:prompt|completion|input|output|cached|reasoning|context|remaining)_tokens_$
    | _(?:first|second|third|last|next|single|multi|one|two|boarding|by|dry|tests?|all)_pass_$
    | _(?: age|algorithms?|alg|bits|bucket|budget|bytes|class|cost|counts?|created|dates?|days|dirs?|directory|domain
        | enabled|endpoints?|env|errors?|exists|expired|expires|expiry|expiration|fields?|files?|filename|format|hosts?
        | hours|index|in|interval|issuer|labels?|left|len|length|level|lifetime|limits?|location|max|methods?|min|minutes
        | missing|mode|names?|number|page|paths?|patterns?|period|policy|policies|ports?|prompt|providers?|rates?|ratio
        | regex|required|reset|retries|rotation|rules?|scheme|scopes?|score|seconds|size|status|store|strength|table
        | timeout|timestamp|total|ttl|types?|unit|updated|at|ur[il]s?|usage|used|users?|username|valid|validators?
        | version|window )_$
    """,
    re.VERBOSE,
)
_SECRET = re.compile(
    rf"""
      pass_?(?:wor[dt]|wört|wd|phrase|code|key)s?(?!less) | kennwort | contrase[nñ]a | mot_?de_?passe | _senha_ | wachtwoord
    | парол | 密码 | 密碼 | パスワード | 비밀번호
    | secret(?!ar|ion|iv|ly) | credential | [cx]srf | pwds?_ | _pwd | tokens?_
    | (?:{_KINDS_OF_KEYS})_?keys?_
    | _(?:jwts?|otps?|totp|mfa|2fa|tfa|mnemonic|psk)_ | (?:seed|recovery|backup)_?phrase | _pw_hash_
    | (?:_|{_PASSWORDS_OF})(?:pass|pw)_$
    | _(?:auth|authorization|bearer|sessions?|cookies?|signatures?|sig|sas|hmac|salt|pins?|ssn|cvv|cvc|iban|dsn|creds?)_$
    """,
    re.VERBOSE,
)
_HEADER = re.compile(r"_(?:(?:proxy_)?authorization|(?:set_)?cookies?)_$")

_OPTION = re.compile(r"-[^=]*")
_NAMES = frozenset({"name", "key", "k", "id", "field", "label", "header", "parameterkey"})
_VALUES = frozenset({"value", "v", "input", "parametervalue"})

_custom_keys: tuple[str, ...] = ()
_custom_hints: tuple[str, ...] = ()
"""A word of each custom key. A text with a custom key contains its word."""
_version = 0


def is_secret(key: str) -> bool:
    """Return whether a key names a secret, in snake, camel or kebab case, with dots, or without separators.

    `dbPassword`, `PGPASSWORD` and `license-key` are secret; `token_count`, `password_max_age` and `keyboard` are not.
    """
    return _is_secret(key if len(key) <= _MAX_KEY else key[-_MAX_KEY:], _version)


@lru_cache(maxsize=4096)
def _is_secret(key: str, version: int) -> bool:  # noqa: ARG001 - a part of the cache's key
    words = words_of(key)
    if any(custom in words for custom in _custom_keys) or _ALWAYS.search(words):
        return True
    return not _NEVER.search(words) and _SECRET.search(words) is not None


def is_count(key: str) -> bool:
    """Return whether a number with this secret key is a quantity: `tokens=120`, but not `pin=1234`."""
    return words_of(key[-_MAX_KEY:]).endswith("s_")


def is_header(key: str) -> bool:
    """Return whether the value of the key may have several parts, such as a scheme and credentials, or cookies."""
    return _HEADER.search(words_of(key[-_MAX_KEY:])) is not None


def is_masked(key: str, value: Any) -> bool:
    """Return whether the value of a key is masked. None, booleans and numbers of tokens are not."""
    if value is None or type(value) is bool or not is_secret(key):
        return False
    return type(value) not in {int, float} or not is_count(key)


def mask_mapping(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with the values of secret keys masked, also in `{"name": "password", "value": "x"}`."""
    named = next((item for key, item in shown.items() if key.lower() in _NAMES and _is_name_of_secret(item)), None)
    return {
        key: MASK if is_masked(key, item) or (named and key.lower() in _VALUES and is_masked(named, item)) else item
        for key, item in shown.items()
    }


def _is_name_of_secret(item: Any) -> bool:
    return isinstance(item, str) and is_secret(item)


def mask_sequence(shown: Sequence[Any], names: Sequence[str] = ()) -> list[Any]:
    """Return the items with secrets masked: items with a secret name, the value of a pair, and the item after an option.

    A pair is `("password", "x")`. An option is a text such as `--password`. `names` are those of a named tuple.
    """
    masked = [MASK if is_masked(name, item) else item for name, item in zip(names, shown, strict=False)]
    masked += shown[len(masked) :]
    for number, (before, item) in enumerate(itertools.pairwise(shown), 1):
        if (
            isinstance(before, str)
            and (len(shown) == len("kv") or _OPTION.fullmatch(before))
            and is_masked(before, item)
        ):
            masked[number] = MASK
    return masked


def words_of(key: str) -> str:
    """Return the words of a key in lower case, without trailing digits, with `_` before, between and after them."""
    return _NUMBERS.sub("", f"_{_SEPARATORS.sub('_', _CAMEL.sub('_', key)).strip('_').lower()}_")


def rules_version() -> int:
    """Return the version of the rules. It is a part of each cache key, so that no result of earlier rules is used."""
    return _version


def set_custom_keys(keys: Sequence[str]) -> None:
    """Replace the custom keys, in the form of `words_of`, and start a new version of the rules."""
    global _custom_keys, _custom_hints, _version  # noqa: PLW0603 - one set of rules per process
    _custom_hints = tuple(words.split("_")[1] for words in keys)
    _custom_keys = (*keys, *(f"_{words.replace('_', '')}_" for words in keys))
    _version += 1


_TOKEN_PREFIXES = (  # the fixed part of tokens before a `-` or `_`
    *("ghp", "gho", "ghu", "ghs", "ghr", "pat", "glpat", "gldt", "glrt", "glcbt", "glptt", "glft", "glsoat", "glagent"),
    *("xoxa", "xoxb", "xoxc", "xoxd", "xoxe", "xoxo", "xoxp", "xoxr", "xoxs", "xapp", "sk", "pk", "rk", "hf", "npm"),
    *("pypi", "whsec", "dop", "doo", "dor", "SPX", "shpat", "shpca", "shppa", "shpss", "AGE", "lin", "key", "glc"),
    *("dckr", "secret", "ntn", "figd", "PMAK", "rdme", "pul", "sbp", "sb", "sntrys", "sntryu", "phx", "xai", "gsk"),
    *("pplx", "r8", "nvapi", "tskey", "ops", "fm1", "fm2", "fo1", "sq0atp", "sq0csp", "xkeysib", "xsmtpsib", "sgp"),
    *("CFPAT", "FLWSECK", "NRAK", "aio", "duffel", "shippo", "glsa"),
)
_TOKEN_HINTS = re.compile(r"eyJ|A(?:KIA|SIA|Iza|TBB|KCp)|ya29|//0|SG\.|hv[sbr]\.|dapi|TT3|LTAI|gAAAA|:AA|Q~|SK")
# Names that are searched before `=` and `:` only: they are too short to search them in every text.
_SHORT_NAMES = (
    *("pin", "pins", "otp", "otps", "mfa", "tfa", "ssn", "cvv", "cvv2", "cvc", "iban", "salt", "hmac", "jwt", "jwts"),
    *("sas", "dsn", "card", "number", "num", "no", "code", "codes", "phrase", "mnemonic", "psk", "conn_str", "connstr"),
    *("string", "strings", "uri", "url", "urls", "senha", "kennwort", "wachtwoord", "contrasena", "hook", "hooks"),
)
_DECORATIONS = " \t\"'\\]0123456789"  # characters between a key and its separator
_SHORT_OPTION = re.compile(r"-(?:(?<=[\s\"'].)|(?<=[\s\"']-.))[pPuUaw]")


def may_contain_secret(text: str, lowered: str) -> bool:
    """Return False if a text certainly contains no secret. Most texts do not; these searches take 2 µs."""
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
        or _may_contain_token(text)
        or ("-" in text and _SHORT_OPTION.search(text) is not None)
        or ("=" in text and _has_short_name(lowered, "="))
        or (":" in text and _has_short_name(lowered, ":"))
        or not text.isascii()
        or (bool(_custom_hints) and any(hint in lowered for hint in _custom_hints))
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


def _may_contain_token(text: str) -> bool:
    return _TOKEN_HINTS.search(text) is not None or (("_" in text or "-" in text) and _has_token_prefix(text))


def _has_token_prefix(text: str) -> bool:
    return any(map(_ends_with_prefix, text.replace("_", "-").split("-")[:-1]))


_ends_with_prefix = methodcaller("endswith", _TOKEN_PREFIXES)
