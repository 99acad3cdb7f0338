"""Masks what is a secret by its shape alone: tokens of known vendors, private keys, and the addresses of webhooks."""

import re
from operator import methodcaller

from cascade.telemetry._secret_keys import MASK

_PREFIXES = (  # of tokens: the fixed part before a `-` or `_`
    *("ghp", "gho", "ghu", "ghs", "ghr", "pat", "glpat", "gldt", "glrt", "glcbt", "glptt", "glft", "glsoat", "glagent"),
    *("xoxa", "xoxb", "xoxc", "xoxd", "xoxe", "xoxo", "xoxp", "xoxr", "xoxs", "xapp", "sk", "pk", "rk", "hf", "npm"),
    *(
        "pypi",
        "whsec",
        "dop",
        "doo",
        "dor",
        "SPX",
        "shpat",
        "shpca",
        "shppa",
        "shpss",
        "AGE",
        "lin",
        "key",
        "glc",
        "glsa",
    ),
    *("dckr", "secret", "ntn", "figd", "PMAK", "rdme", "pul", "sbp", "sb", "sntrys", "sntryu", "phx", "xai", "gsk"),
    *("pplx", "r8", "nvapi", "tskey", "ops", "fm1", "fm2", "fo1", "sq0atp", "sq0csp", "xkeysib", "xsmtpsib", "sgp"),
    *("CFPAT", "FLWSECK", "NRAK", "aio", "duffel", "shippo"),
)
_MARKS = re.compile(r"eyJ|A(?:KIA|SIA|Iza|TBB|KCp)|ya29|//0|SG\.|hv[sbr]\.|dapi|TT3|LTAI|gAAAA|:AA|Q~|SK")
_SHAPES = re.compile(
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


def may_hold_token(text: str) -> bool:
    """Whether a text has a part by which the tokens of known shape are found. Most texts have none."""
    return _MARKS.search(text) is not None or (("_" in text or "-" in text) and _has_prefix(text))


def mask_shapes(text: str) -> str:
    """The text with private keys, webhooks and tokens masked."""
    if "-----BEGIN" in text:
        text = _PRIVATE_KEY.sub(MASK, text)
    return _SHAPES.sub(MASK, _WEBHOOK.sub(rf"\1{MASK}", text))


def _has_prefix(text: str) -> bool:
    return any(map(_ends_with_prefix, text.replace("_", "-").split("-")[:-1]))


_ends_with_prefix = methodcaller("endswith", _PREFIXES)
