"""Masks the values of secret keys in texts: `key=value`, quoted values, brackets, pairs, headers, YAML, XML and SQL."""

import re
from collections.abc import Callable
from typing import NamedTuple

from cascade.telemetry._secret_patterns import MASK, is_count, is_header, is_secret

_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "„": "“", "\u2018": "\u2019", "«": "»"}
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_CALLS = frozenset({"secret", "secretstr", "secretvalue", "password", "token"})
_IN_QUERY = frozenset({"key", "code"})
_SECOND_WORDS = frozenset(
    {"key", "keys", "id", "code", "codes", "phrase", "string", "number", "url", "uri", "word", "passe"}
)
_MAX_WORD = 20
_SHORTEST = 6
"""Characters of the shortest secret that is recognized without a key."""
_LONGEST = 200
"""Characters in which the end of a possible secret is searched. The limit keeps the time linear in the length."""

_KEY = re.compile(
    r"(?<![\w.$-])(?P<key>-{0,2}[\w.$]++(?:-++[\w.$]++)*+)"
    r"(?P<quote>(?:\\++[\"']|[\"'”\u2019]|%(?:25){0,3}2[27]|&(?:quot|apos|#3[49]);)?)(?:\]|(?<=[\"'])\)|\x1b\[[\d;]{0,20}m)?\s{0,40}+"
    r"(?P<sep>=>|->|:=|!=|={1,3}|:{1,2}|%(?:25){0,3}3[DdAa]|\\(?:u00|x)3[Dd]|&#(?:61|x3[Dd]);|[(,])(?P<space>\s*+(?:(?<=[ ])\|[ ]++)?+)"
)
_BEFORE_KEY = re.compile(r"([A-Za-z]{1,20}(?:[ ]de)?)[ ]\Z")
_NAMED = re.compile(
    r"(?i:name|key|\btype(?==))(?:\\*+[\"'])?\s{0,8}[=:]\s{0,8}(?:\\*+[\"'])?(?P<key>[\w.$-]++)(?:\\*+[\"'])?"
    r"(?:\s{0,8},?(?:\\n)?\s{0,40}(?:\\*+[\"'])?(?i:\w{0,20}?value)(?:\\*+[\"'])?\s{0,8}[=:]\s{0,8}|(?:\\r\\n|\r?\n){2})"
)
_ANNOTATION = re.compile(
    r"(?:Optional\[)?(?:str|bytes|int|Any|SecretStr|[sS]tring)\]?(?: ?\| ?None)?\s{0,8}=\s{0,8}(?=[bBrRfF]?[\"'])"
)
_START_OF_LINE = re.compile(r"(?P<indent>[ \t|]*+(?:- )?)(?P<error>[\w.]{1,80}: )?[\"']?")
_OPENING = re.compile(r"(?:[bBrRuUfF]{1,2}(?=[\"']))?(\\*+)([\"'`“„\u2018«])")
_LITERAL = re.compile(
    r"(?:None|null|NULL|nil|undefined|[Tt]rue|[Ff]alse|YES|NO|str|bytes|int|bool|Optional|Any|object)(?![\w=+/-])"
)
_PROSE = re.compile(r"(?:must|should|cannot|expected|required|missing|invalid|is|was|has|not)[ ][\w'\"<({;]")
_DELIMITER = r"(?![\s,;&\"'`)\]}>\\:.<]|\Z|[\w.-]{1,40}[=:])"
_PLAIN = re.compile(
    rf"(?:![\w/:!]{{0,40}}\s{{1,8}})?(?:(?i:bearer|basic|token|digest|negotiate|apikey|ntlm)\s{{1,8}})?"
    rf"(?:[^\s,;&\"'`)\]}}><\\]|[,;&\"'`)\]}}>\\]{_DELIMITER}|<(?!/)|\\(?![\"'`\\]))++"
)
_NEXT_KEY = re.compile(r"[\w.$-]{1,60}\s{0,8}[=:]|\S{0,8}Traceback ")
_BLOCK = re.compile(r"[|>][+-]?\d?[ \t]{0,8}\n(?:[ \t]++[^\n]*+\n?+)++")
_TAG = re.compile(r"<[^<>\n]{0,200}>")
_CALL = re.compile(r"[\w.]{1,80}\(")
_LINE = re.compile(r"[^\r\n]++")
_ROW = re.compile(r"([ \t|]*+)[^\s|][^\n]*+")
_INSIDE = {end: re.compile(rf"(?:[^{end}\\]|\\.|{end}{end})*+", re.DOTALL) for end in _QUOTES.values()}
_NESTED = re.compile(r"[\"'\[\](){}]")
_ARGUMENT = re.compile(rf"[^\s()\"',;]{{{_SHORTEST},{_LONGEST}}}+(?=\))")
_AFTER_PAIR = re.compile(r"\\*+[\"'”\u2019]?\s{0,8}(.)", re.DOTALL)
_ALGORITHM = re.compile(
    r"(?i:sha-?\d+|md5|utf-?\d+|base\d+|oauth2?|ipv\d|x509|http/?\d.*|v\d.*|\d+[a-z]{1,3}|python.*)\W*\Z"
)
_ELEMENT = re.compile(
    r"(?:<|&lt;)(?P<tag>[\w.:-]{1,80}+)(?P<attributes>\s[^<>&]{0,300}+)?(?:>|&gt;)(?P<content>(?:[^<&]|&(?!lt;)|<!\[CDATA\[)++)"
    r"(?=</|&lt;/)"
)
_NAME = re.compile(r"(?i:name|key|id)\s?=\s?[\"']?([\w.$-]{1,80}+)")
_INSERT = re.compile(
    r"(?i:\binto\s{1,8}[^\s()]{1,200}\s{0,8})\((?P<columns>[^()]{1,2000}+)\)\s{0,8}(?i:values)\s{0,8}(?=\()"
)
_PARAMETERS = re.compile(
    r"\[SQL: (?P<statement>(?:[^\[]|\[(?!SQL: |parameters: ))*+)\[parameters: (?=[\[({])"
)  # of SQLAlchemy
_INPUT = re.compile(  # of Pydantic
    r"(?m:^)[ \t|]{0,20}(?P<key>[\w.\[\]-]{1,200}+)\n[^\n]{0,500}?\binput_value=(?P<input>[^\n]{0,1000}?)(?=, input_type=|\n|\Z)"
)
_LOCATION = re.compile(
    r"[\"']loc[\"']: {0,2}[(\[](?P<key>[^()\[\]{}]{1,200}+)[)\]][^{}\n]{0,500}?[\"']input[\"']: {0,2}(?=[\"'\d])"
)
_WORD = re.compile(r"[\w-]{2,80}")
_MENTION = re.compile(r"(?i:passw|secret|token|_key\b|api_?key|credential)")


class Replacement(NamedTuple):
    """A part of a text, and the text that replaces it."""

    start: int
    end: int
    mask: str = MASK


def mask_values(text: str) -> str:
    """Return the text with the values of its secret keys masked."""
    text = replace_matches(text, _KEY, _value_of_key)
    if "alue" in text or "VALUE" in text or "form-data" in text:
        text = replace_matches(text, _NAMED, _value_after_name)
    return text


def mask_documents(text: str, lowered: str) -> str:
    """Return the text with the values of secret XML elements, SQL columns and Pydantic fields masked."""
    if "</" in text or "&lt;/" in text:
        text = replace_matches(text, _ELEMENT, _xml_content)
    if "values" in lowered and "into" in lowered:
        text = replace_matches(text, _INSERT, _sql_row)
    if "[parameters: " in text:
        text = replace_matches(text, _PARAMETERS, _sql_parameters)
    if "input_value=" in text:
        text = replace_matches(text, _INPUT, _pydantic_input)
    if "loc" in text and "input" in text:
        text = replace_matches(text, _LOCATION, _pydantic_input_at_location)
    return text


def replace_matches(
    text: str, pattern: re.Pattern[str], secret_in: Callable[[re.Match[str]], Replacement | None]
) -> str:
    """Replace the part that `secret_in` returns for each match of a pattern. Matches in a replaced part are skipped."""
    done, pieces = 0, list[str]()
    for found in pattern.finditer(text):
        secret = secret_in(found) if found.start() >= done else None
        if secret is not None:
            pieces += text[done : secret.start], secret.mask
            done = secret.end
    return "".join([*pieces, text[done:]])


def _value_after_name(found: re.Match[str]) -> Replacement | None:
    return value_at(found.string, found.end()) if is_secret(found["key"]) else None


def _value_of_key(found: re.Match[str]) -> Replacement | None:
    text, key, separator, start = found.string, found["key"], found["sep"], found.end()
    before = text[found.start() - 1] if found.start() else ""
    if not (is_secret(key) or _is_secret_in_context(text, key, found.start(), before)):
        return None
    if separator in "(,":
        return _argument(found, before, start) if separator == "(" else _second_of_pair(found, before, start)
    if found["space"].count("\n") == 1 and (block := _yaml_block(found)):
        return block
    if "\n" in found["space"] and _NEXT_KEY.match(text, start):
        return None  # the value is empty, and the next line has the next key
    if separator == "!=":
        return _quoted(text, start)
    if separator == ":" and _PROSE.match(text, start):
        return None
    if annotation := _ANNOTATION.match(text, start):
        return _quoted(text, annotation.end())
    if is_header(key):
        return _header_value(found, before, start)
    quote = found["quote"] if found["quote"].endswith('"') else ""
    secret = value_at(text, start, quote=quote)
    if secret and is_count(key) and text[secret.start : secret.end].isdecimal():
        return None
    return secret


def _is_secret_in_context(text: str, key: str, start: int, before: str) -> bool:
    """Return whether the text before a key makes it secret: `?key=` in a URL, or `api key:`."""
    if len(key) > _MAX_WORD:
        return False
    if before in {"?", "&"}:
        return key.lower() in _IN_QUERY
    if before != " " or key.lower() not in _SECOND_WORDS:
        return False
    word = _BEFORE_KEY.search(text, max(0, start - 2 * _MAX_WORD), start)
    return word is not None and not is_secret(word[1]) and is_secret(f"{word[1]}_{key}")


def _argument(found: re.Match[str], before: str, start: int) -> Replacement | None:
    """Find the argument of a call such as `Secret('x')`."""
    text = found.string
    if found["key"].lower() not in _CALLS or before in {".", "_"}:
        return None
    if (quoted := _quoted(text, start)) is not None:
        return quoted
    value = _ARGUMENT.match(text, start)
    return Replacement(*value.span()) if value and is_random(value[0], _SHORTEST) else None


def _second_of_pair(found: re.Match[str], before: str, start: int) -> Replacement | None:
    """Find the second item of a pair such as `('password', 'x')`, or the item after `'--password', `."""
    text, key = found.string, found["key"]
    if not found["quote"] or before not in _QUOTES:
        return None
    if key.startswith("-"):
        return _quoted(text, start)
    opening = text[max(0, found.start() - 4) : found.start() - 1].rstrip("bu\\")[-1:]
    if opening not in _CLOSING:  # an item of a longer list, such as a list of column names
        return None
    secret = value_at(text, start)
    if secret is None or secret.end - secret.start > _LONGEST:
        return secret
    closing = _AFTER_PAIR.match(text, secret.end)
    return secret if closing is None or closing[1] == _CLOSING[opening] else None


def _yaml_block(found: re.Match[str]) -> Replacement | None:
    """Find the list or the mapping of YAML in the lines below a key."""
    text, start = found.string, found.end()
    line = text.rfind("\n", max(0, found.start() - _LONGEST), found.start()) + 1
    before = text[line : found.start()]
    start_of_line = None if len(before) > _LONGEST else _START_OF_LINE.fullmatch(before)
    if start_of_line is None:
        return None
    # The lines of an exception message are not indented, except by the bars of an exception group.
    is_message = start_of_line["error"] and "|" not in before
    depth = 0 if is_message else start_of_line.end("indent")
    indent = len(found["space"].rpartition("\n")[2])
    is_list = text.startswith("- ", start)
    if indent < depth + (not is_list) or not (is_list or _NEXT_KEY.match(text, start)):
        return None
    end = start
    for row in _ROW.finditer(text, start):
        is_below = len(row[1]) > depth or (is_list and len(row[1]) == indent and text.startswith("- ", row.end(1)))
        if row.start() > start and not is_below:
            break
        end = row.end()
    return Replacement(start, end)


def _header_value(found: re.Match[str], before: str, start: int) -> Replacement | None:
    """Find the rest of the line, up to the quote that was opened before the name of the header."""
    text = found.string
    if (quoted := _quoted(text, start)) is not None or _OPENING.match(text, start):
        return quoted
    if _LITERAL.match(text, start) or text[start : start + 1] in _CLOSING:
        return value_at(text, start)
    line = _LINE.match(text, start)
    if line is None:
        return None
    end = text.find(before, start, line.end()) if before in _QUOTES and not found["quote"] else -1
    end = line.end() if end < 0 else end
    return Replacement(start, end) if text[start:end].strip("\\ ") else None


def value_at(text: str, start: int, *, quote: str = "") -> Replacement | None:
    """Find the value that begins at `start`, without its quotes. An empty value, None, null or a boolean is not masked.

    The mask of a value without quotes is in the `quote` of its key, so that JSON remains valid.
    """
    if _OPENING.match(text, start):
        return _quoted(text, start)
    if text[start : start + 1] in _CLOSING and start < len(text):
        end = _end_of_brackets(text, start, len(text))
        if end - start <= len("()"):
            return None
        rest = unquoted_at(text, end)
        return Replacement(start, rest[1] if rest else end, f"{quote}{MASK}{quote}")
    if block := _BLOCK.match(text, start) or _TAG.match(text, start):
        return Replacement(*block.span())
    value = unquoted_at(text, start)
    if value is None or _LITERAL.fullmatch(text, *value):
        return None
    return Replacement(*value, f"{quote}{MASK}{quote}")


def unquoted_at(text: str, start: int) -> tuple[int, int] | None:
    """Return the start and end of an unquoted value. It ends at a space, or at a delimiter before another key."""
    if call := _CALL.match(text, start):
        line = _LINE.match(text, start)
        end = _end_of_brackets(text, call.end() - 1, len(text) if line is None else line.end())
        rest = _PLAIN.match(text, end)
        return start, end if rest is None else rest.end()
    found = _PLAIN.match(text, start)
    return None if found is None else found.span()


def _quoted(text: str, start: int) -> Replacement | None:
    """Find the content of the quotes at `start`. Quotes without an end reach to the end of the text."""
    opening = _OPENING.match(text, start)
    if opening is None:
        return None
    begin, end = opening.end(), _end_of_quotes(text, opening)
    if opening[2] * 2 == text[begin : begin + 2] and not opening[1]:  # three quotes
        begin += 2
        closing = text.find(opening[2] * 3, begin)
        end = len(text) if closing < 0 else closing
    return Replacement(begin, end) if begin < end else None


def _end_of_quotes(text: str, opening: re.Match[str]) -> int:
    escapes, closing = opening[1], _QUOTES[opening[2]]
    if escapes:
        found = re.compile(rf"(?<!\\){re.escape(escapes)}{closing}").search(text, opening.end())
        return len(text) if found is None else found.start()
    inside = _INSIDE[closing].match(text, opening.end())
    return len(text) if inside is None else inside.end()


def _end_of_brackets(text: str, start: int, last: int) -> int:
    """Return the end of the brackets at `start`, or `last` if they are not closed before."""
    depth, position = 0, start
    while found := _NESTED.search(text, position, last):
        position = found.end()
        if found[0] in "\"'":
            opening = _OPENING.match(text, found.start())
            position = min(last, _end_of_quotes(text, opening) + 1) if opening else position
        elif found[0] in _CLOSING:
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return position
    return last


def is_random(word: str, shortest: int) -> bool:
    """Return whether a word looks like a secret: long enough, with letters and digits, and not a name of an algorithm."""
    has_both = any(map(str.isdigit, word)) and any(map(str.isalpha, word))
    return len(word) >= shortest and has_both and not _ALGORITHM.match(word)


def _xml_content(found: re.Match[str]) -> Replacement | None:
    name = _NAME.search(found["attributes"] or "")
    hidden = is_secret(found["tag"].rpartition(":")[2]) or (name is not None and is_secret(name[1]))
    return Replacement(*found.span("content")) if hidden and found["content"].strip() else None


def _sql_row(found: re.Match[str]) -> Replacement | None:
    """Find all values of a row with a secret column."""
    if not any(map(is_secret, _WORD.findall(found["columns"]))):
        return None
    return Replacement(found.end() + 1, _end_of_brackets(found.string, found.end(), len(found.string)) - 1)


def _sql_parameters(found: re.Match[str]) -> Replacement | None:
    """Find all parameters of a statement with a secret column. Parameters in a mapping are found by their keys."""
    text, start = found.string, found.end()
    if text[start] == "{" or not _MENTION.search(found["statement"]):
        return None
    return Replacement(start, _end_of_brackets(text, start, len(text)))


def _pydantic_input(found: re.Match[str]) -> Replacement | None:
    return Replacement(*found.span("input")) if is_secret(found["key"]) else None


def _pydantic_input_at_location(found: re.Match[str]) -> Replacement | None:
    return value_at(found.string, found.end()) if any(map(is_secret, _WORD.findall(found["key"]))) else None
