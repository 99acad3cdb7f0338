"""`cs.cli`: a command line for a workflow, made of its Params."""

import inspect
from typing import Any

from cascade._extras import missing_extra
from cascade._run import run
from cascade.context import get_current_context
from cascade.spec.input import ParamSpec

_TYPES = (str, int, float, bool)


def cli(target: Any) -> Any:
    """A Typer app that runs `target`; call it. Each Param is an option; a result that is not None is printed.

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
        log_level, log_format = options.pop("log_level"), options.pop("log_format")
        params = {specs[key].name: value for key, value in options.items()}
        result = run(target, params=params, log_level=log_level, log_format=log_format)
        if result is not None:
            typer.echo(result)

    options = [_parameter(typer, key, spec) for key, spec in specs.items()]
    main.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *options,
            _option(typer, "log_level", str, "INFO", "--log-level", help="DEBUG, INFO, WARNING or ERROR"),
            _option(typer, "log_format", str, "human", "--log-format", help="human or json"),
        ]
    )
    app = typer.Typer(add_completion=False)
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
    shown = typer.Option(default, *names, help=help)
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=kind)


def _identifier(name: str) -> str:
    return "param_" + "".join(c if c.isalnum() else "_" for c in name)
