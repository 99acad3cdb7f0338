"""`cs.cli`: command line of a workflow, with an option for each Param."""

import inspect
from collections.abc import Callable
from typing import Any

from cascade._imports import missing_extra
from cascade._run.options import RunOptions
from cascade._run.prepared import PreparedRun, run_to_end
from cascade.messaging.renderer import printable
from cascade.spec.input import ParamSpec
from cascade.spec.lazy_types import Target
from cascade.spec.task import Task
from cascade.telemetry.redact import is_secret, redact_text
from cascade.telemetry.sanitize import error_message
from cascade.tools._cli_help import EXIT_CODES, help_of, help_text
from cascade.tools._cli_output import print_failure, print_lines, print_result
from cascade.tools._options import OptionType, default_text, params_of, type_of
from cascade.tools._run_options import DRY_RUN, FORMAT, LEVEL, RUN_OPTIONS, Level, RunOption, option_name
from cascade.tools.preview import dry_run

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


def cli(target: Any, *, help: str | None = None) -> Any:  # noqa: A002 - the name of Typer's parameter
    """Return a Typer app that runs a workflow when it is called, and prints a result that is not None.

    The Params of the target's graph are the options `--<name>`. The text of an option is converted to the type of its
    Param. A Param without a default is required. The options of the run are `--connector`, `--timeout`, `--max-workers`,
    `--run-name`, `--tag`, `--dry-run`, `--log-level` and `--log-format`. If a Param has the name of one of the first six,
    the option of the run is `--run-<name>`.

    Exit codes: 0 for success, 1 for a run that failed or that a task cancelled, 2 for a usage error, 130 for Ctrl-C,
    143 for SIGTERM. The traceback of a task's exception shows the user's code only.

    Args:
        target: The target of the run, or a function without parameters that returns it.
        help: The text of `--help` before the options. None uses the docstring of the function, of the program, or of the
            target's task.

    Raises:
        ImportError: Typer is not installed.
        TypeError: The target is not one of a run, or the type of a Param has no conversion from text.
        ValueError: Two Params with one name have different types or defaults, or a Param has the name of another option.
    """
    try:
        import typer
    except ImportError as error:
        raise missing_extra("cli", error) from error

    build: Any = target if callable(target) and not isinstance(target, (Target, Task)) else None
    workflow = target if build is None else build()
    command = _Command(typer, workflow)
    # Markup would remove `[m]` from a description, and draw an error as a box of several lines.
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    text = help_of(workflow, build) if help is None else help_text(help)
    app.command(help=text, epilog=EXIT_CODES)(command.main())
    return app


class _Command:
    """The command of a workflow. `typer` is the imported library."""

    def __init__(self, typer: Any, target: Any) -> None:
        self._typer = typer
        self._target = target
        self._specs = {f"param_{number}": spec for number, spec in enumerate(params_of(target))}
        self._kinds = {key: type_of(spec) for key, spec in self._specs.items()}

    def main(self) -> Callable[..., None]:
        """Return the function of the command, whose parameters are the options."""

        def main(**options: Any) -> None:
            self._run(options)

        names = {spec.name for spec in self._specs.values()}
        params = [_parameter(self._typer, key, spec, self._kinds[key]) for key, spec in self._specs.items()]
        of_run = [_run_parameter(self._typer, option, option_name(option, names)) for option in RUN_OPTIONS]
        last = [_run_parameter(self._typer, option, option.name) for option in (LEVEL, FORMAT)]
        main.__signature__ = inspect.Signature([*params, *of_run, *last])  # type: ignore[attr-defined]
        return main

    def _run(self, options: dict[str, Any]) -> None:
        given = {key: value for key, value in options.items() if value is not None}
        params = {
            spec.name: self._kinds[key].value(given.pop(key)) for key, spec in self._specs.items() if key in given
        }
        is_dry_run = given.pop(DRY_RUN.key)
        settings = RunOptions(params, **given)
        try:
            work = None if is_dry_run else PreparedRun(self._target, settings)
        except (ImportError, TypeError, ValueError) as error:
            raise self._typer.BadParameter(printable(redact_text(str(error)))) from None
        if work is None:
            dry_run(self._target)
        else:
            self._print(self._perform(work, settings))

    def _perform(self, work: PreparedRun, settings: RunOptions) -> Any:
        """Run the workflow and return its result as text or bytes, or None."""
        try:
            result = run_to_end(work)
            return result if result is None or isinstance(result, bytes) else str(result)
        except KeyboardInterrupt:
            raise self._typer.Exit(EXIT_INTERRUPTED) from None
        except SystemExit as error:
            if error.code is None or isinstance(error.code, int):
                raise
            print_lines(error_message(error))
            raise self._typer.Exit(EXIT_FAILURE) from None
        except BaseException as error:  # noqa: BLE001 - a task may raise any exception
            is_printed = (work.failed or work.was_cancelled) and settings.log_level != Level.OFF
            print_failure(error, is_printed=is_printed, log_format=settings.log_format)
            raise self._typer.Exit(EXIT_FAILURE) from None

    def _print(self, shown: Any) -> None:
        if shown is not None:
            print_result(self._typer, shown)


def _parameter(typer: Any, key: str, spec: ParamSpec, kind: OptionType) -> inspect.Parameter:
    """Return the option of a Param. Its value is None if the user omits it; the run then uses the default of the Param."""
    default = None if spec.has_default else ...
    text = default_text(spec)
    shown = f"[default: {text}]" if text is not None else ""
    description = f"{spec.description} (may be repeated)" if kind.container else spec.description
    more: dict[str, Any] = {"help": printable(f"{description}  {shown}".strip()), "show_default": False}
    name = printable(spec.name)
    if kind.flag:
        return _option(typer, key, bool | None, default, f"--{name}/--no-{name}", **more)
    annotation = str | None if kind.container is None else list[str] | None
    more |= {
        "parser": _parser(typer, kind.convert, kind.label if is_secret(spec.name) else None),
        "metavar": kind.label,
    }
    return _option(typer, key, annotation, default, f"--{name}", **more)


def _run_parameter(typer: Any, option: RunOption, name: str) -> inspect.Parameter:
    parser = {} if option.parse is None else {"parser": _parser(typer, option.parse)}
    more = {"help": option.help, "show_default": option in (LEVEL, FORMAT), **parser, **option.more}
    return _option(typer, option.key, option.kind, option.default, f"--{name}", **more)


def _parser(typer: Any, convert: Callable[[Any], Any], secret: str | None = None) -> Callable[[Any], Any]:
    """Return a parser that raises usage errors. `secret` is the type of a value that the errors must not contain."""

    def parse(text: Any) -> Any:
        try:
            return convert(text)
        except (ImportError, TypeError, ValueError) as error:
            shown = f"the value is not a valid {secret}" if secret else redact_text(str(error))
            raise typer.BadParameter(printable(shown)) from None

    return parse


def _option(typer: Any, key: str, kind: Any, default: Any, *names: str, **more: Any) -> inspect.Parameter:
    shown = typer.Option(default, *names, case_sensitive=False, **more)
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=kind)
