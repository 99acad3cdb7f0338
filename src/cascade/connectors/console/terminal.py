"""Properties of the terminal behind a stream: whether it shows a live view and colors, its size and its characters."""

import os
import sys
from typing import TextIO

_MIN_SIZE = 10
_DEFAULT_SIZE = (80, 24)
_OFF = {"", "0", "false", "no", "off"}
_ASCII = str.maketrans(
    {"├": "|", "└": "`", "│": "|", "─": "-", "┄": ".", "⋯": "~", "•": "*", "…": "~", "←": "<", "·": ";", "✗": "x"}
    | {"–": "-", "█": "#", "▌": "#", "▐": "#", "▏": "|", "▕": "|", "░": ":", "µ": "u"}  # noqa: RUF001
    | {"✓": "+", "▸": ">", "↻": "@", "◦": "o"}
)
"""The characters of the view and the tree for a terminal whose encoding lacks them."""


def may_color() -> bool:
    """Return whether the environment allows colors: NO_COLOR is not set."""
    return not os.environ.get("NO_COLOR")


def is_colored(stream: TextIO | None) -> bool:
    """Return whether texts on the stream have colors: it is a terminal, or FORCE_COLOR is set, and NO_COLOR is not set."""
    if not may_color():
        return False
    if forced := os.environ.get("FORCE_COLOR"):
        return forced != "0"
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # the stream is closed
        return False


def can_move_cursor(stream: TextIO | None) -> bool:
    """Return whether the stream is a terminal on which a view can be redrawn.

    It is not if TERM is "dumb" or missing, or if the environment has CI: the log of a CI job may come from a terminal.
    """
    if not is_terminal(stream) or os.environ.get("CI", "").lower() not in _OFF:
        return False
    if sys.platform == "win32":
        return _is_modern_windows()
    return os.environ.get("TERM", "dumb") not in {"dumb", "unknown", ""}


def size_of(stream: TextIO) -> tuple[int, int]:
    """Return the columns and lines of the terminal."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return _DEFAULT_SIZE
    return columns or _DEFAULT_SIZE[0], lines or _DEFAULT_SIZE[1]


def is_same_terminal(one: TextIO, other: TextIO | None) -> bool:
    """Return whether both streams are the same terminal."""
    if other is None or not is_terminal(other):
        return False
    try:
        return os.fstat(one.fileno()).st_rdev == os.fstat(other.fileno()).st_rdev
    except (OSError, ValueError):
        return False


def encodable(text: str, stream: TextIO | None) -> str:
    """Return the text with ASCII characters in place of those that the encoding of the stream lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def _is_modern_windows() -> bool:
    from rich.console import detect_legacy_windows

    return not detect_legacy_windows()
