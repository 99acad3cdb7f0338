"""Masks secrets in structured texts, where the name and the value stand apart: XML, SQL, and errors of validation."""

import re

from cascade.telemetry._secret_keys import is_secret
from cascade.telemetry._secret_values import Masked, end_of_brackets, replaced, value_at

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
_PLACE = re.compile(
    r"[\"']loc[\"']: {0,2}[(\[](?P<key>[^()\[\]{}]{1,200}+)[)\]][^{}\n]{0,500}?[\"']input[\"']: {0,2}(?=[\"'\d])"
)
_WORD = re.compile(r"[\w-]{2,80}")
_MENTION = re.compile(r"(?i:passw|secret|token|_key\b|api_?key|credential)")


def mask_documents(text: str, lowered: str) -> str:
    """The text with the values of secret elements, columns and fields masked."""
    if "</" in text or "&lt;/" in text:
        text = replaced(text, _ELEMENT, _content)
    if "values" in lowered and "into" in lowered:
        text = replaced(text, _INSERT, _row)
    if "[parameters: " in text:
        text = replaced(text, _PARAMETERS, _parameters)
    if "input_value=" in text:
        text = replaced(text, _INPUT, _input)
    return replaced(text, _PLACE, _input_of_place) if "loc" in text and "input" in text else text


def _content(found: re.Match[str]) -> Masked | None:
    name = _NAME.search(found["attributes"] or "")
    hidden = is_secret(found["tag"].rpartition(":")[2]) or (name is not None and is_secret(name[1]))
    return Masked(*found.span("content")) if hidden and found["content"].strip() else None


def _row(found: re.Match[str]) -> Masked | None:
    """All values of the row: one of its columns is secret."""
    if not any(map(is_secret, _WORD.findall(found["columns"]))):
        return None
    return Masked(found.end() + 1, end_of_brackets(found.string, found.end(), len(found.string)) - 1)


def _parameters(found: re.Match[str]) -> Masked | None:
    """All parameters of a statement that mentions a secret. Those in a mapping have names of their own."""
    text, start = found.string, found.end()
    if text[start] == "{" or not _MENTION.search(found["statement"]):
        return None
    return Masked(start, end_of_brackets(text, start, len(text)))


def _input(found: re.Match[str]) -> Masked | None:
    return Masked(*found.span("input")) if is_secret(found["key"]) else None


def _input_of_place(found: re.Match[str]) -> Masked | None:
    return value_at(found.string, found.end()) if any(map(is_secret, _WORD.findall(found["key"]))) else None
