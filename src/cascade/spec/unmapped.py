"""Constants of a map: arguments that are the same value in each call."""

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Value_co = TypeVar("Value_co", covariant=True)


class Unmapped(Generic[Value_co]):
    """Argument of `.map(...)` that is one value for all calls."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<unmapped {type(self.value).__name__}>"


def unmapped(value: T) -> Unmapped[T]:
    """Mark an argument of `.map(...)` as one value for all calls: `f.map(x=xs, mode=cs.unmapped("r"))`.

    Each call receives the same object. It may be any value: a text, a list, a lazy result, `cs.inject(...)`, None. The
    value of a lazy result is passed as a whole.
    """
    return Unmapped(value)


def without_marks(lists: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the arguments of a map with the values of the unmapped ones, and the names of these."""
    names = frozenset(name for name, value in lists.items() if type(value) is Unmapped)
    if not names:
        return lists, names
    return {name: value.value if name in names else value for name, value in lists.items()}, names


def require_list(unmapped_names: Iterable[str], count: int, owner: str) -> None:
    """Raise TypeError for a map that has arguments, but only unmapped ones. `count` is the number of all arguments."""
    names = sorted(unmapped_names)
    if names and len(names) == count:
        raise TypeError(
            f"{owner}: each argument is unmapped ({', '.join(map(repr, names))}), so that no list gives the number of calls; "
            "give one argument as a list, or call the task"
        )
