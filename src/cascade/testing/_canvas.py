"""Lines of coloured pieces that fit a terminal."""

import unicodedata
from collections.abc import Sequence

Piece = tuple[str, str]
"""A text and the name of its style."""

_STYLES = {"dim": "2", "bold": "1", "error": "1;31", "bar": "36", "error bar": "31", "wait bar": "33"}


def width_of(text: str) -> int:
    """The cells that a text takes in a terminal."""
    return len(text) if text.isascii() else sum(_cells(char) for char in text)


def fitted(pieces: Sequence[Piece], cells: int) -> list[Piece]:
    """The pieces cut, with an ellipsis, or filled up with blanks to so many cells."""
    if sum(width_of(text) for text, _ in pieces) <= cells:
        return [*pieces, (" " * (cells - sum(width_of(text) for text, _ in pieces)), "")]
    kept: list[Piece] = []
    left = cells - 1
    for text, style in pieces:
        part = _cut(text, left)
        kept.append((part, style))
        left -= width_of(part)
        if part != text:
            break
    return [*kept, ("…" + " " * left, "dim")]


def painted(pieces: Sequence[Piece], *, color: bool) -> str:
    """The line, with ANSI's escape sequences if it is to have colour, without blanks at its end."""
    if not color:
        return "".join(text for text, _ in pieces).rstrip()
    return "".join(_paint(text, style) for text, style in pieces).rstrip()


def _paint(text: str, style: str) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style in _STYLES and text.strip() else text


def _cut(text: str, cells: int) -> str:
    if width_of(text) <= cells:
        return text
    taken = 0
    for number, char in enumerate(text):
        taken += _cells(char)
        if taken > cells:
            return text[:number]
    return text


def _cells(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1
