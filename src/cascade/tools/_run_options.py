"""Options of a command line that belong to the run, not to the workflow."""

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cascade.connectors.by_name import FACTORIES, connectors_named
from cascade.spec.retry import checked_timeout
from cascade.spec.tags import checked_tags

PREFIX = "run-"
"""Prefix of an option of the run whose name is that of a Param."""


class Level(StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    OFF = "OFF"


class Format(StrEnum):
    HUMAN = "human"
    JSON = "json"
    LOGGING = "logging"


@dataclass(frozen=True)
class RunOption:
    """One option. `parse` converts its text, and raises TypeError or ValueError; ImportError if an extra is missing.

    `key` is the name of the parameter of `cs.run`. `more` has further arguments of `typer.Option`.
    """

    name: str
    key: str
    help: str
    kind: Any = str | None
    default: Any = None
    parse: Callable[[str], Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)


def _connectors(text: str) -> Any:
    return [] if text.strip().lower() == "none" else connectors_named(text, "connector")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number of seconds") from None
    return checked_timeout("cs.run", seconds)


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError(f"the name must have at least one visible character, got {text!r}")
    return text


def _tag(text: str) -> str:
    return checked_tags([text])[0]


LEVEL = RunOption("log-level", "log_level", "lowest level of the run's messages", Level, Level.INFO)
FORMAT = RunOption("log-format", "log_format", "of the run's messages", Format, Format.HUMAN)
DRY_RUN = RunOption("dry-run", "dry_run", "print the plan of the run, and run nothing", bool, default=False)

RUN_OPTIONS = (
    RunOption(
        *("connector", "connector", f"connectors that get the telemetry: {', '.join(FACTORIES)}, or none"),
        parse=_connectors,
        more={"metavar": "NAME,..."},
    ),
    RunOption("timeout", "timeout", "limit of the run", parse=_seconds, more={"metavar": "SECONDS"}),
    RunOption(
        "max-workers",
        "max_workers",
        "plain functions that execute at the same time",
        int | None,
        more={"min": 1, "metavar": "N"},
    ),
    RunOption("run-name", "name", "name of the run in its trace and messages", parse=_name, more={"metavar": "TEXT"}),
    RunOption(
        *("tag", "tags", "text to find the run by; may be repeated"),
        kind=list[str] | None,
        parse=_tag,
        more={"metavar": "TEXT"},
    ),
    DRY_RUN,
)
"""The options whose names give way to those of Params."""


def option_name(option: RunOption, params: Container[str]) -> str:
    """Return the name of an option: with the prefix `run-`, if a Param has its name.

    Raises:
        ValueError: Another Param has the name with the prefix.
    """
    if option.name not in params:
        return option.name
    name = f"{PREFIX}{option.name}"
    if name in params:
        raise ValueError(f"Param '{name}' has the name of the option --{name}; give it another name")
    return name
