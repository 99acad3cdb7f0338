"""Lines of coloured pieces that fit a terminal, and the terminal's width and colours."""

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence

Piece = tuple[str, str]
"""A text and the name of its style."""

_STYLES = {"dim": "2", "bold": "1", "error": "1;31", "bar": "36", "error bar": "31", "wait bar": "33"}


def terminal_width(*, least: int, otherwise: int) -> int:
    """The cells of a line of the terminal: COLUMNS, else the size of the terminal that stdout writes to.

    At least `least`; `otherwise` where stdout is no terminal and COLUMNS is not set.
    """
    return max(least, shutil.get_terminal_size((otherwise, 24)).columns)


def is_colored(*, wanted: bool | None) -> bool:
    """Whether to use colour. NO_COLOR forbids it. Without `wanted`, FORCE_COLOR or a terminal on stdout decides."""
    if os.environ.get("NO_COLOR"):
        return False
    if wanted is not None:
        return wanted
    if forced := os.environ.get("FORCE_COLOR"):
        return forced != "0"
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def width_of(text: str) -> int:
    """The cells that a text takes in a terminal."""
    return len(text) if text.isascii() else sum(_cells(text))


def fitted(pieces: Sequence[Piece], cells: int) -> list[Piece]:
    """The pieces cut, with an ellipsis, or filled up with blanks to so many cells.

    A blank replaces each character that breaks a line or moves the cursor.
    """
    pieces = [(_one_line(text), style) for text, style in pieces]
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


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(" " if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else char for char in text)


def _cut(text: str, cells: int) -> str:
    if width_of(text) <= cells:
        return text
    taken = 0
    for number, width in enumerate(_cells(text)):
        taken += width
        if taken > cells:
            return text[:number]
    return text


def _cells(text: str) -> Iterator[int]:
    """The cells that each character adds to the line."""
    before = 0
    for char in text:
        if char == _EMOJI_STYLE and before == 1:
            before = 1  # makes an emoji of two cells of the character before
        elif unicodedata.category(char) in {"Mn", "Me"}:
            before = 0
        else:
            before = 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1
        yield before


_EMOJI_STYLE = "\ufe0f"
