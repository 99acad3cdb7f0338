"""Base class of the objects that stand for a value in the arguments of a task, as type checkers and as Python see it."""

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

ADVICE = (
    "a lazy result is a call that has not run, so it has no value yet. Pass it to a task, which receives the value, or "
    "run it with cs.run(...); use .run_if(...) or cs.Router for a decision that depends on it"
)

if TYPE_CHECKING:

    class Argument(Any):  # type: ignore[misc]  # the purpose of this class
        """Base class of lazy results and Routers, for type checkers.

        "Each parameter also takes a lazy result of its type" has no expression in terms of a `ParamSpec`
        (python/typing#1506). The base `Any` makes instances assignable to a parameter of any type, so a task's call
        keeps the function's own signature: names, count and the types of literals are checked.

        `self: None` matches no instance: a checker reports each use of the methods below. mypy also reads
        `__getattr__` and reports unknown attributes; pyright gives unknown attributes of such a class the type Any.
        """

        def __getattr__(self: None, name: str, /) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        def __iter__(self: None) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        def __getitem__(self: None, key: Any, /) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        def __contains__(self: None, item: Any, /) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        def __await__(self: None) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        def __enter__(self: None) -> Any: ...  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]

else:

    class Argument:
        """Base class of lazy results and Routers. An operation that needs the value raises TypeError."""

        __slots__ = ()
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            if other is None or isinstance(other, Argument):
                return self is other
            kind = type(other)
            compare = kind.__eq__
            if compare is not object.__eq__ and (answer := compare(other, self)) is not NotImplemented:
                return answer
            if compare is not object.__eq__ or issubclass(kind, Enum):
                self._refuse("==")
            return NotImplemented

        def _refuse(self, operation: str) -> NoReturn:
            raise TypeError(f"{operation} is not possible on {self!r}: {ADVICE}")

    def _refusal(operation: str) -> Callable[..., NoReturn]:
        def refuse(self: Argument, *_: object, **__: object) -> NoReturn:
            self._refuse(operation)

        return refuse

    _REFUSED = {
        "__bool__": "bool()",
        "__iter__": "Iteration",
        "__len__": "len()",
        "__getitem__": "[...]",
        "__format__": "Formatting",
        "__array__": "Conversion to an array",  # else numpy makes an array of objects
        **{f"__{name}__": sign for name, sign in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="))},
        **{
            f"__{side}{name}__": sign
            for side in ("", "r")
            for name, sign in (
                ("add", "+"),
                ("sub", "-"),
                ("mul", "*"),
                ("truediv", "/"),
                ("floordiv", "//"),
                ("mod", "%"),
            )
        },
    }
    for _method, _operation in _REFUSED.items():
        setattr(Argument, _method, _refusal(_operation))
