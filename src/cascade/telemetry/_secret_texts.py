"""Masks the secrets in a text: tokens of vendors, credentials in URLs, headers and command lines, and values of secret keys."""

import re

from cascade.telemetry._secret_patterns import MASK, is_secret
from cascade.telemetry._secret_values import (
    Replacement,
    is_random,
    mask_documents,
    mask_values,
    replace_matches,
    unquoted_at,
    value_at,
)

_MAX_PROSE_WORD = 15  # characters of a word after `Bearer` that may be prose

_TOKENS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
      eyJ[A-Za-z0-9_=-]{6,}\.[A-Za-z0-9_=-]*+(?:\.[A-Za-z0-9_=-]*+){0,3}
    | (?:AKIA|ASIA|AGPA|AIDA|AROA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])
    | AIza[\w-]{30,} | GOCSPX-[\w-]{16,} | ya29\.[\w.-]{16,} | 1//0[\w-]{30,}
    | gh[pousr]_[A-Za-z0-9_]{16,} | github_pat_\w{16,} | gl[a-z]{2,6}-[\w.-]{16,}
    | xox[a-z]-[\w-]{8,} | xapp-[\w-]{8,} | whsec_[A-Za-z0-9+/=]{16,}
    | sk-[A-Za-z0-9_-]{16,} | [spr]k_(?:live|test)_[A-Za-z0-9]{8,} | (?:xai|nvapi|pplx)-[\w-]{30,}
    | npm_[A-Za-z0-9]{30,} | pypi-[\w-]{32,} | do[opr]_v1_[0-9a-f]{32,} | dckr_[op]at_[\w-]{20,}
    | (?:hf|gsk|r8|ntn)_[A-Za-z0-9]{20,} | figd_[\w-]{30,} | aio_[A-Za-z0-9]{28} | secret_[A-Za-z0-9]{43} | glc_[\w+/=-]{30,}
    | glsa_[A-Za-z0-9_]{32,} | (?:sbp|sgp)_[0-9a-f]{32,} | sb_secret_[\w-]{20,} | sntry[su]_[\w+/=-]{32,}
    | shp[a-z]{2}_[0-9a-fA-F]{32,} | lin_api_\w{20,} | AGE-SECRET-KEY-1[0-9A-Z]{20,} | phx_[A-Za-z0-9]{30,}
    | SG\.[\w-]{16,}\.[\w-]{16,} | hv[sbr]\.[\w-]{20,} | dapi[0-9a-f]{32}(?:-\d)? | NRAK-[A-Z0-9]{27} | key-[0-9a-f]{32}
    | AT(?:ATT|CTT)3[\w=-]{20,} | ATBB[A-Za-z0-9]{28,} | AKCp[A-Za-z0-9]{40,} | LTAI[A-Za-z0-9]{16,} | SK[0-9a-f]{32}
    | PMAK-[0-9a-f]{24}-[0-9a-f]{34} | pul-[0-9a-f]{40} | rdme_[a-z0-9]{60,} | tskey-[a-z]{3,10}-[\w-]{20,}
    | ops_eyJ[\w=-]{30,} | f[mo][12]_[\w+/=-]{30,} | sq0[a-z]{3}-[\w-]{22,} | x(?:key|smtp)sib-[0-9a-f]{32,}[\w-]*+
    | CFPAT-[\w-]{40,} | FLWSECK(?:_TEST)?-[\w-]{16,} | (?:duffel|shippo)_(?:live|test)_[\w-]{20,}
    | pat-(?:na|eu)\d-[0-9a-f-]{36} | gAAAAA[\w=-]{60,} | \d{8,10}:AA[\w-]{32,} | [\w.~]{3}\dQ~[\w.~-]{31,34}
    )""",
    re.VERBOSE,
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----(?:[^-]|-(?!----))*+(?:-----END [A-Z0-9 ]{0,60}-----)?"
)
_WEBHOOK = re.compile(
    r"(hooks\.slack\.com/(?:services|workflows|triggers)/|discord(?:app)?\.com/api/(?:v\d+/)?webhooks/"
    r"|webhook\.office\.com/|outlook\.office(?:365)?\.com/webhook/|hooks\.zapier\.com/hooks/|api\.telegram\.org/bot)"
    r"[^\s\"'<>]++"
)

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


def mask_secrets(text: str, lowered: str) -> str:
    """Return the text after one pass over its secrets. `lowered` is the text in lower case."""
    text = _mask_tokens(text)
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


def _mask_tokens(text: str) -> str:
    """Return the text with private keys, addresses of webhooks, and tokens of known vendors masked."""
    if "-----BEGIN" in text:
        text = _PRIVATE_KEY.sub(MASK, text)
    return _TOKENS.sub(MASK, _WEBHOOK.sub(rf"\1{MASK}", text))
