"""Output of a command line: the result on stdout, the failure of a run on stderr."""

import asyncio
import concurrent.futures
import contextlib
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from cascade.messaging.renderer import printable
from cascade.telemetry.sanitize import error_text, stack_text
from cascade.tools._run_options import Format

_LAYOUT = ("\n", "\t")

_FRAMEWORK_FILES = tuple(
    file.removesuffix("__init__.py")
    for file in (
        str(Path(__file__).parents[1] / "__init__.py"),
        asyncio.__file__,
        concurrent.futures.__file__,
        contextlib.__file__,
    )
)
"""Files and folders of the frames between `cli` and the user's functions. Tracebacks do not show them."""


def print_result(typer: Any, shown: str | bytes) -> None:
    """Print the result. On a terminal, control characters other than line breaks and tabs are escaped."""
    if isinstance(shown, str) and sys.stdout.isatty():
        shown = "".join(part if part in _LAYOUT else printable(part) for part in re.split(r"([\n\t])", shown))
    try:
        typer.echo(shown)
    except UnicodeEncodeError:  # a terminal that is not in UTF-8, or a text with surrogates
        typer.echo(str(shown).encode("ascii", "backslashreplace"))


def print_failure(error: BaseException, *, is_printed: bool, log_format: str) -> None:
    """Print the traceback of the user's code. An error without such code has one line, unless `is_printed`.

    A cancellation has no traceback. A log in JSON or of `logging` that contains the failure gets no other lines.
    """
    if is_printed and log_format != Format.HUMAN:
        return
    trace = None if isinstance(error, asyncio.CancelledError) else _user_traceback(error.__traceback__)
    if trace is not None:
        print_lines(stack_text(error.with_traceback(trace), indent=True).rstrip("\n"))
    elif not is_printed:
        _print(f"Error: {error_text(error)}")


def _user_traceback(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_FRAMEWORK_FILES):
        trace = trace.tb_next
    return trace


def print_lines(text: str) -> None:
    for line in text.split("\n"):
        _print(line)


def _print(line: str) -> None:
    print(printable(line), file=sys.stderr)  # noqa: T201 - the command line's own output
