"""`cs.cli`: a command line for a workflow, made of its Params."""

import asyncio
import concurrent.futures
import contextlib
import inspect
import sys
from enum import StrEnum
from types import TracebackType
from typing import Any

import cascade
from cascade._extras import missing_extra
from cascade._run import PreparedRun, run_to_end
from cascade.context import get_current_context
from cascade.messaging.renderer import printable
from cascade.spec.input import ParamSpec
from cascade.telemetry.safe import error_text, stack_text

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130

_TYPES = (str, int, float, bool)
_HARNESS = tuple(
    file.removesuffix("__init__.py")
    for file in (cascade.__file__, asyncio.__file__, concurrent.futures.__file__, contextlib.__file__)
)
"""Where the frames between `cli` and the user's functions come from."""


class _Level(StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    OFF = "OFF"


class _Format(StrEnum):
    HUMAN = "human"
    JSON = "json"


def cli(target: Any) -> Any:
    """A Typer app that runs `target`; call it. Each Param is an option; a result that is not None is printed.

    Exit codes: 0 for success, 1 for a run that failed, 2 for a usage error, 130 for Ctrl-C, 143 for SIGTERM. Of the
    traceback of a task's exception it prints the user's own code.

    Raises:
        ImportError: Typer is not installed.
    """
    try:
        import typer
    except ImportError as error:
        raise missing_extra("cli", error) from error

    specs = {
        _identifier(spec.name): spec for spec in get_current_context().get_all_specs() if isinstance(spec, ParamSpec)
    }

    def main(**options: Any) -> None:
        settings = {name: options.pop(name).value for name in ("log_level", "log_format")}
        params = {specs[key].name: value for key, value in options.items()}
        try:
            work = PreparedRun(target, params, **settings)
        except (ValueError, TypeError) as error:
            raise typer.BadParameter(printable(str(error))) from None
        try:
            result = run_to_end(work)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except Exception as error:  # noqa: BLE001 - whatever a task raises
            _print_failure(error, is_told=work.failed and settings["log_level"] != _Level.OFF, **settings)
            raise typer.Exit(EXIT_FAILURE) from None
        if result is not None:
            typer.echo(result)

    options = [_parameter(typer, key, spec) for key, spec in specs.items()]
    main.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *options,
            _option(typer, "log_level", _Level, _Level.INFO, "--log-level", help="lowest level of the run's messages"),
            _option(typer, "log_format", _Format, _Format.HUMAN, "--log-format", help="of the run's messages"),
        ]
    )
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    return app


def _parameter(typer: Any, key: str, spec: ParamSpec) -> inspect.Parameter:
    kind = spec.type if spec.type in _TYPES else str
    default = ... if spec.default is None else spec.default
    names = [f"--{spec.name}"]
    if kind is bool:
        names = [f"--{spec.name}/--no-{spec.name}"]
    return _option(typer, key, kind, default, *names, help=spec.description)


def _option(typer: Any, key: str, kind: type[Any], default: Any, *names: str, help: str) -> inspect.Parameter:  # noqa: A002
    shown = typer.Option(default, *names, help=help, case_sensitive=False)
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=kind)


def _identifier(name: str) -> str:
    return "param_" + "".join(c if c.isalnum() else "_" for c in name)


def _print_failure(error: Exception, *, is_told: bool, log_format: str, **_: object) -> None:
    """Print the traceback of the user's own code; of an error without such code, its text, unless the run has done it.

    A log in JSON that has the failure stays free of other lines.
    """
    if is_told and log_format == _Format.JSON:
        return
    trace = _in_users_code(error.__traceback__)
    if trace is not None:
        _print(stack_text(error.with_traceback(trace)))
    elif not is_told:
        _print(f"Error: {error_text(error)}")


def _in_users_code(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_HARNESS):
        trace = trace.tb_next
    return trace


def _print(text: str) -> None:
    for line in text.splitlines():
        print(printable(line), file=sys.stderr)  # noqa: T201 - the command line's own output
