"""Keys of calls: digests of a function and its arguments."""

from collections.abc import Mapping
from functools import partial
from inspect import Parameter, signature
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple
from weakref import ref

from cascade.adapters.caching._digests import Encoder, UnkeyableError, code_digest
from cascade.graph.model import split_arguments
from cascade.spec.caching import TaskCall


def key_of(call: TaskCall, version: str | None, limit: int | None = None) -> str:
    """Return the key of a call in hexadecimal digits.

    Args:
        call: The call of a task.
        version: Text that replaces the code of the function; None uses the code.
        limit: Largest number of bytes to encode. None is unlimited.

    Raises:
        UnkeyableError: The function or an argument has no key.
        TooLargeError: The limit is exceeded.
    """
    encoder = _KeyEncoder(limit)
    try:
        parameters = encoder.task(call.function, version)
        encoder.arguments(call, parameters)
    except RecursionError:
        raise UnkeyableError("an argument is nested too deeply, or contains itself") from None
    return encoder.digest().hex()


class _KeyEncoder(Encoder):
    """Writes a call to a digest."""

    def task(self, function: Any, version: str | None) -> "_Parameters":
        """Write the function of a task, with its code or a version. Returns its parameters: their defaults are not written."""
        if type(function) is FunctionType:
            head = _head_of(function, version)
            self.write(head.digest)
            self.functions.append(function)
            if function.__closure__:
                self.closure(function)
            return head.parameters
        if isinstance(function, MethodType):
            self.add(function.__self__)
            positional, keywords, defaults = self.task(function.__func__, version)
            return _Parameters(positional[1:], tuple(k for k in keywords if k not in positional[:1]), defaults)
        if isinstance(function, partial):
            self.sequence(b"t", function.args)
            self.pairs(b"d", sorted(function.keywords.items()))
            self.task(function.func, version)
            return _parameters_of(function)
        if not isinstance(function, (BuiltinFunctionType, type)):
            self.add(function)  # an instance with __call__, whose class may have code
        named = function if isinstance(function, (BuiltinFunctionType, type)) else type(function)
        self.name(b"F", named)
        if version is not None:
            self.sized(b"V", version.encode("utf-8", "surrogatepass"))
        elif isinstance(named, type):
            self.class_(named)
        return _parameters_of(function)

    def arguments(self, call: TaskCall, parameters: "_Parameters") -> None:
        """Write the arguments by the names of their parameters, in the order of the parameters, with the defaults."""
        args, kwargs = split_arguments(call.inputs, call.positional)
        positional, keywords, defaults = parameters
        named = dict(zip(positional, args, strict=False))
        others: dict[str, Any] = {}
        for name, value in kwargs.items():
            (named if name in keywords and name not in named else others)[name] = value
        for name in dict.fromkeys(positional + keywords):
            if name in named:
                self.text(name)
                self.named(named[name], f"argument '{name}'")
            elif name in defaults:
                self.text(name)
                self._default(defaults[name])
        if len(args) > len(positional) or others:
            self.sequence(b"t", args[len(positional) :])
            self.pairs(b"d", sorted(others.items()))

    def _default(self, value: Any) -> None:
        try:
            self.add(value)
        except UnkeyableError:  # such as the marker of a missing argument
            self.write(b"?")


class _Parameters(NamedTuple):
    """Parameters of a function: the positional ones, all that accept a keyword, and the defaults by name."""

    positional: tuple[str, ...]
    keywords: tuple[str, ...]
    defaults: Mapping[str, Any]


def _parameters_of(function: Any) -> _Parameters:
    if type(function) is FunctionType and not hasattr(function, "__wrapped__"):
        return _parameters_of_code(function)
    try:
        found = signature(function).parameters.values()
    except (TypeError, ValueError):  # built-in functions without a signature
        return _Parameters((), (), {})
    return _Parameters(
        tuple(p.name for p in found if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}),
        tuple(p.name for p in found if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}),
        {p.name: p.default for p in found if p.default is not Parameter.empty},
    )


def _parameters_of_code(function: FunctionType) -> _Parameters:
    """`inspect.signature` takes twenty times as long."""
    code, values = function.__code__, function.__defaults__ or ()
    end = code.co_argcount
    positional = code.co_varnames[:end]
    defaults = dict(zip(positional[end - len(values) :], values, strict=True)) if values else {}
    keywords = code.co_varnames[code.co_posonlyargcount : end + code.co_kwonlyargcount]
    return _Parameters(positional, keywords, defaults | (function.__kwdefaults__ or {}))


class _Head(NamedTuple):
    """Digest of the name of a function, and of its code or a version. Valid while the function has this code and defaults."""

    function: ref[FunctionType]
    state: tuple[Any, ...]
    digest: bytes
    parameters: _Parameters


_heads: dict[tuple[int, str | None], _Head] = {}  # by `id` of the function, and version


def _head_of(function: FunctionType, version: str | None) -> _Head:
    """Return the head of a function. It is computed once for each function and version."""
    place, state = (id(function), version), (function.__code__, function.__defaults__, function.__kwdefaults__)
    known = _heads.get(place)
    if known is not None and known.function() is function and all(map(is_, known.state, state)):
        return known
    encoder = Encoder(None)
    encoder.name(b"F", function)
    if version is None:
        encoder.write(code_digest(function.__code__))
    else:
        encoder.sized(b"V", version.encode("utf-8", "surrogatepass"))
    reference = ref(function, lambda _: _heads.pop(place, None))
    head = _heads[place] = _Head(reference, state, encoder.digest(), _parameters_of(function))
    return head
