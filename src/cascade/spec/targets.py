"""Types of a target and of the options of its run, for type checkers."""

from collections.abc import Iterable
from typing import Any, TypedDict

from cascade.spec.caching import Cache

Shape = list[Any] | tuple[Any, ...] | dict[Any, Any]
"""A container of several targets."""


class EngineOptions(TypedDict, total=False):
    """The options of `Engine.run`, which documents them."""

    run_id: str | None
    name: str | None
    tags: Iterable[str]
    timeout: float | None
    fail_fast: bool
    cache: Cache | None
