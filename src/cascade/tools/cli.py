"""`cs.cli`: command line of a workflow, with an option for each Param."""

import asyncio
import concurrent.futures
import contextlib
import inspect
import re
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

from cascade._imports import missing_extra
from cascade._run.options import RunOptions
from cascade._run.prepared import PreparedRun, run_to_end
from cascade.messaging.renderer import printable
from cascade.spec.input import ParamSpec
from cascade.spec.lazy_types import Lazy
from cascade.telemetry.redact import is_secret, redact_text
from cascade.telemetry.sanitize import error_message, error_text, stack_text
from cascade.tools._options import SHOWN_TYPES, OptionType, params_of, shown_default, type_of

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130

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


class _Level(StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    OFF = "OFF"


class _Format(StrEnum):
    HUMAN = "human"
    JSON = "json"


def cli(target: Lazy[Any]) -> Any:
    """Return a Typer app that runs `target` when it is called, and prints a result that is not None.

    The Params of the target's graph are the options `--<name>`. The text of an option is converted to the type of its
    Param. A Param without a default is required.

    Exit codes: 0 for success, 1 for a run that failed or that a task cancelled, 2 for a usage error, 130 for Ctrl-C,
    143 for SIGTERM. The traceback of a task's exception shows the user's code only.

    Raises:
        ImportError: Typer is not installed.
        TypeError: The type of a Param has no conversion from text.
        ValueError: Two Params with one name have different types or defaults, or a Param has the name of another option.
    """
    try:
        import typer
    except ImportError as error:
        raise missing_extra("cli", error) from error

    specs = {f"param_{number}": spec for number, spec in enumerate(params_of(target))}
    kinds = {key: type_of(spec) for key, spec in specs.items()}

    def main(**options: Any) -> None:
        settings = {name: options.pop(name).value for name in ("log_level", "log_format")}
        given = {key: value for key, value in options.items() if value is not None}
        params = {specs[key].name: kinds[key].value(value) for key, value in given.items()}
        try:
            work = PreparedRun(target, RunOptions(params, **settings))
        except (ValueError, TypeError) as error:
            raise typer.BadParameter(printable(redact_text(str(error)))) from None
        try:
            result = run_to_end(work)
            shown = result if isinstance(result, bytes) else str(result)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except SystemExit as error:
            if error.code is None or isinstance(error.code, int):
                raise
            _print_lines(error_message(error))
            raise typer.Exit(EXIT_FAILURE) from None
        except BaseException as error:  # noqa: BLE001 - a task may raise any exception
            is_printed = (work.failed or work.was_cancelled) and settings["log_level"] != _Level.OFF
            _print_failure(error, is_printed=is_printed, **settings)
            raise typer.Exit(EXIT_FAILURE) from None
        if result is not None:
            _print_result(typer, shown)

    options = [_parameter(typer, key, spec, kinds[key]) for key, spec in specs.items()]
    main.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *options,
            _option(typer, "log_level", _Level, _Level.INFO, "--log-level", help="lowest level of the run's messages"),
            _option(typer, "log_format", _Format, _Format.HUMAN, "--log-format", help="of the run's messages"),
        ]
    )
    # Markup would remove `[m]` from a description, and draw an error as a box of several lines.
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(main)
    return app


def _parameter(typer: Any, key: str, spec: ParamSpec, kind: OptionType) -> inspect.Parameter:
    """Return the option of a Param. Its value is None if the user omits it; the run then uses the default of the Param."""
    default = None if spec.has_default else ...
    shown = f"[default: {shown_default(spec)}]" if isinstance(spec.default, SHOWN_TYPES) else ""
    more: dict[str, Any] = {"help": printable(f"{spec.description}  {shown}".strip()), "show_default": False}
    name = printable(spec.name)
    if kind.flag:
        return _option(typer, key, bool | None, default, f"--{name}/--no-{name}", **more)
    annotation = str | None if kind.container is None else list[str] | None
    more |= {"parser": _parser(typer, kind, spec.name), "metavar": kind.label}
    return _option(typer, key, annotation, default, f"--{name}", **more)


def _parser(typer: Any, kind: OptionType, name: str) -> Callable[[Any], Any]:
    def parse(text: Any) -> Any:
        try:
            return kind.convert(text)
        except ValueError as error:
            shown = f"the value is not a valid {kind.label}" if is_secret(name) else redact_text(str(error))
            raise typer.BadParameter(printable(shown)) from None

    return parse


def _option(typer: Any, key: str, kind: Any, default: Any, *names: str, **more: Any) -> inspect.Parameter:
    shown = typer.Option(default, *names, case_sensitive=False, **more)
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=kind)


def _print_result(typer: Any, shown: str | bytes) -> None:
    """Print the result. On a terminal, control characters other than line breaks and tabs are escaped."""
    if isinstance(shown, str) and sys.stdout.isatty():
        shown = "".join(part if part in _LAYOUT else printable(part) for part in re.split(r"([\n\t])", shown))
    try:
        typer.echo(shown)
    except UnicodeEncodeError:  # a terminal that is not in UTF-8, or a text with surrogates
        typer.echo(str(shown).encode("ascii", "backslashreplace"))


def _print_failure(error: BaseException, *, is_printed: bool, log_format: str, **_: object) -> None:
    """Print the traceback of the user's code. An error without such code has one line, unless `is_printed`.

    A cancellation has no traceback. A log in JSON that contains the failure gets no other lines.
    """
    if is_printed and log_format == _Format.JSON:
        return
    trace = None if isinstance(error, asyncio.CancelledError) else _user_traceback(error.__traceback__)
    if trace is not None:
        _print_lines(stack_text(error.with_traceback(trace), indent=True).rstrip("\n"))
    elif not is_printed:
        _print(f"Error: {error_text(error)}")


def _user_traceback(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_FRAMEWORK_FILES):
        trace = trace.tb_next
    return trace


def _print_lines(text: str) -> None:
    for line in text.split("\n"):
        _print(line)


def _print(line: str) -> None:
    print(printable(line), file=sys.stderr)  # noqa: T201 - the command line's own output
