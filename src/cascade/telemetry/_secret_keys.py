"""The one vocabulary of names of secrets: for keys of mappings, parameters and headers, and for `key=value` in texts."""

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

MASK = "***"

_MAX_KEY = 128
"""Characters of a key that are looked at: its last ones, which name what it is."""

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

_own: tuple[str, ...] = ()
_version = 0


def is_secret(key: str) -> bool:
    """Whether a key names a secret, in snake, camel or kebab case, with dots, or run together.

    `dbPassword`, `PGPASSWORD` and `license-key` do; `token_count`, `password_max_age` and `keyboard` do not.
    """
    return _is_secret(key if len(key) <= _MAX_KEY else key[-_MAX_KEY:], _version)


@lru_cache(maxsize=4096)
def _is_secret(key: str, version: int) -> bool:  # noqa: ARG001 - a part of the cache's key
    words = words_of(key)
    if any(own in words for own in _own) or _ALWAYS.search(words):
        return True
    return not _NEVER.search(words) and _SECRET.search(words) is not None


def is_count(key: str) -> bool:
    """Whether a number under this secret key is a quantity: `tokens=120`, but not `pin=1234`."""
    return words_of(key[-_MAX_KEY:]).endswith("s_")


def is_header(key: str) -> bool:
    """Whether the value of this key may have several parts: a scheme and its credentials, or cookies."""
    return _HEADER.search(words_of(key[-_MAX_KEY:])) is not None


def hides(key: str, value: Any) -> bool:
    """Whether the value under a key is to be masked. None, a boolean, and a number of tokens are no secrets."""
    if value is None or type(value) is bool or not is_secret(key):
        return False
    return type(value) not in {int, float} or not is_count(key)


def mask_mapping(shown: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with the values of secret keys masked, in the form `{"name": "password", "value": "x"}` as well."""
    named = next((item for key, item in shown.items() if key.lower() in _NAMES and _is_name_of_secret(item)), None)
    return {
        key: MASK if hides(key, item) or (named and key.lower() in _VALUES and hides(named, item)) else item
        for key, item in shown.items()
    }


def _is_name_of_secret(item: Any) -> bool:
    return isinstance(item, str) and is_secret(item)


def mask_sequence(shown: Sequence[Any], names: Sequence[str] = ()) -> list[Any]:
    """The items with secrets masked: by names of their own, in a pair `("password", "x")`, and after `--password`."""
    masked = [MASK if hides(name, item) else item for name, item in zip(names, shown, strict=False)]
    masked += shown[len(masked) :]
    for number, (before, item) in enumerate(itertools.pairwise(shown), 1):
        if isinstance(before, str) and (len(shown) == len("kv") or _OPTION.fullmatch(before)) and hides(before, item):
            masked[number] = MASK
    return masked


def words_of(key: str) -> str:
    """The words of a key in lower case, with `_` before, between and after them; numbers at their ends are left out."""
    return _NUMBERS.sub("", f"_{_SEPARATORS.sub('_', _CAMEL.sub('_', key)).strip('_').lower()}_")


def version() -> int:
    """Number of the current rules, for the keys of caches: a result of earlier rules is not used again."""
    return _version


def set_own(keys: tuple[str, ...]) -> None:
    """Replace the program's own keys, which are given as `words_of` returns them. Own patterns are replaced before."""
    global _own, _version  # noqa: PLW0603 - one vocabulary per process
    _own = keys
    _version += 1
