"""What a type checker accepts as an argument of a task in place of a value."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class Argument(Any):  # type: ignore[misc]  # the purpose of this class
        """Base class of lazy results and Routers. At run time it is empty.

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
        __slots__ = ()
