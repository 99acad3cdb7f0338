"""Digests of values that are equal in all processes.

Two values have the same digest only if a function cannot tell them apart, apart from their identity. The encoding of a value
contains its exact type, so 1, 1.0, True and "1" differ. Values of other classes are encoded by the parts that `pickle`
would store. Pickle itself is not used: its output depends on whether two equal parts are one object.
"""

import copyreg
import marshal
import struct
import sys
from collections.abc import Callable
from enum import Enum
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ref

from cascade.spec.caching import CacheError
from cascade.spec.failure import Failure
from cascade.spec.task import Task

_DIGEST_SIZE = 20
_ATOMS = frozenset({str, int, float, bool, bytes, type(None), complex})
_MANY = 64
"""Number of items from which a list of simple values is encoded at once."""
_CHUNK = 10_000
_BUFFER = 1 << 16
"""Number of bytes that are hashed at once."""
_MARSHAL_VERSION = 2
"""The last version without references, which depend on the identity of objects."""


_SUBFLOW = "cascade_subflow_"
"""Start of the names of modules that `cs.subflow` loads. The rest is different in each run."""


class UnkeyableError(CacheError):
    """Raised for a function or an argument that has no key."""


class FailureKeyError(UnkeyableError):
    """Raised for an argument that is the failure of a task. It is different in each run."""


class TooLargeError(Exception):
    """Raised if the arguments exceed the limit of a key that is computed in the event loop."""


class Encoder:
    """Writes values to a digest. Each value has a tag for its type, and its length if it varies."""

    def __init__(self, limit: int | None) -> None:
        self._hash = blake2b(digest_size=_DIGEST_SIZE)
        self._buffer = bytearray()
        self._limit = limit
        self._end = _BUFFER if limit is None else limit
        self.functions: list[Any] = []  # whose encoding has begun: a function may refer to itself

    def digest(self) -> bytes:
        self._flush()
        return self._hash.digest()

    def write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > self._end:
            if self._limit is not None:
                raise TooLargeError
            self._flush()

    def _flush(self) -> None:
        self._hash.update(self._buffer)
        self._buffer.clear()

    def add(self, value: Any) -> None:
        encode = _ENCODERS.get(type(value))
        if encode is None:
            self._other(value)
        else:
            encode(self, value)

    def sized(self, tag: bytes, data: bytes) -> None:
        self.write(b"%s%d:" % (tag, len(data)))
        if len(data) > _BUFFER and self._limit is None:
            self._flush()
            self._hash.update(data)
        else:
            self.write(data)

    def text(self, value: str) -> None:
        self.sized(b"s", value.encode("utf-8", "surrogatepass"))

    def sequence(self, tag: bytes, values: Any) -> None:
        self.write(b"%s%d:" % (tag, len(values)))
        if len(values) > _MANY and _ATOMS.issuperset(map(type, values)):
            for start in range(0, len(values), _CHUNK):
                self.sized(b"m", marshal.dumps(list(values[start : start + _CHUNK]), _MARSHAL_VERSION))
            return
        for value in values:
            self.add(value)

    def pairs(self, tag: bytes, items: Any) -> None:
        self.write(b"%s%d:" % (tag, len(items)))
        for key, value in items:
            self.add(key)
            self.add(value)

    def unordered(self, tag: bytes, values: Any) -> None:
        """Write a set. Its order depends on the process, so its items are sorted by their digests."""
        digests = []
        for value in values:
            part = Encoder(self._limit)
            part.functions = self.functions.copy()
            part.add(value)
            digests.append(part.digest())
            if self._limit is not None and len(digests) * _DIGEST_SIZE > self._limit:
                raise TooLargeError
        self.sequence(tag, sorted(digests))

    def name(self, tag: bytes, value: Any) -> None:
        self.write(tag)
        self.text(module_of(value))
        self.text(str(getattr(value, "__qualname__", type(value).__qualname__)))

    def _other(self, value: Any) -> None:
        kind = type(value)
        if issubclass(kind, Enum):
            self.name(b"E", kind)
            self.add(value.value if value._name_ is None else value._name_)
        elif issubclass(kind, type):
            self.class_(value)
        elif issubclass(kind, partial):
            self.write(b"P")
            self.add(value.func)
            self.sequence(b"t", value.args)
            self.pairs(b"d", sorted(value.keywords.items()))
        elif issubclass(kind, Failure):
            raise FailureKeyError("a failure of a task has no key")
        elif issubclass(kind, Task):
            self.write(b"A")
            self.add(value.func)
        else:
            self.object(value)

    def class_(self, kind: type) -> None:
        """Write the name of a class and the code of its methods."""
        self.name(b"C", kind)
        if kind.__module__ != "builtins" and not any(kind is known for known in self.functions):
            self.functions.append(kind)
            for name, member in sorted(vars(kind).items()):
                if type(member) is FunctionType:
                    self.text(name)
                    self.add(member)

    def object(self, value: Any) -> None:
        """Write the parts of an object that `pickle` stores."""
        kind = type(value)
        if kind is object:
            raise UnkeyableError("an object() has no content, and equals only itself")
        self._check_size(value)
        try:
            reduce = copyreg.dispatch_table.get(kind)
            parts: Any = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except (RecursionError, MemoryError):
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise UnkeyableError(f"the type {kind.__qualname__} has no stable content: {reason}") from error
        self.write(b"O")
        if isinstance(parts, str):
            self.text(module_of(value))
            self.text(parts)
            return
        self.name(b"C", kind)
        function, args, state, items, pairs = (tuple(parts) + (None,) * 3)[:5]
        self.name(b"N", function)
        self.add(tuple(None if arg is kind else arg for arg in args))
        self._state(state)
        self.sequence(b"l", [] if items is None else list(items))
        self.pairs(b"d", [] if pairs is None else list(pairs))

    def _state(self, state: Any) -> None:
        if type(state) is dict and all(type(name) is str for name in state):
            self.pairs(b"a", sorted(state.items()))  # the order of attributes has no meaning
        elif type(state) is tuple:
            self.write(b"T%d:" % len(state))
            for part in state:
                self._state(part)
        else:
            self.add(state)

    def _check_size(self, value: Any) -> None:
        """Raise TooLargeError before an array is copied."""
        if self._limit is None:
            return
        try:
            with memoryview(value) as view:
                size = view.nbytes
        except (TypeError, ValueError, BufferError):
            return
        if size > self._limit:
            raise TooLargeError

    def function(self, function: FunctionType) -> None:
        """Write the code of a function, its defaults, and the values of the enclosing functions that it uses."""
        self.name(b"F", function)
        if any(function is known for known in self.functions):
            return
        self.functions.append(function)
        self.write(code_digest(function.__code__))
        self.add(function.__defaults__)
        self.pairs(b"d", sorted((function.__kwdefaults__ or {}).items()))
        self.closure(function)

    def method(self, method: MethodType) -> None:
        self.write(b"M")
        self.add(method.__self__)
        self.add(method.__func__)

    def builtin(self, function: BuiltinFunctionType) -> None:
        self.name(b"U", function)
        owner = function.__self__
        if owner is not None and type(owner) is not ModuleType:
            self.add(owner)

    def code(self, code: CodeType) -> None:
        self.write(b"K")
        self.write(code_digest(code))

    def closure(self, function: FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            self.text(name)
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                self.write(b"?")
            else:
                self.named(content, f"'{name}' of the enclosing function")

    def named(self, value: Any, name: str) -> None:
        """Write a value whose errors begin with a name."""
        try:
            self.add(value)
        except UnkeyableError as error:
            raise type(error)(f"{name}: {error}") from error


_ENCODERS: dict[type, Callable[[Encoder, Any], object]] = {
    type(None): lambda encoder, _: encoder.write(b"n"),
    type(...): lambda encoder, _: encoder.write(b"e"),
    bool: lambda encoder, value: encoder.write(b"1" if value else b"0"),
    int: lambda encoder, value: encoder.write(b"i%x;" % value),
    float: lambda encoder, value: encoder.write(b"f" + struct.pack(">d", value)),
    complex: lambda encoder, value: encoder.write(b"c" + struct.pack(">dd", value.real, value.imag)),
    str: Encoder.text,
    bytes: lambda encoder, value: encoder.sized(b"b", value),
    bytearray: lambda encoder, value: encoder.sized(b"B", bytes(value)),
    list: lambda encoder, value: encoder.sequence(b"l", value),
    tuple: lambda encoder, value: encoder.sequence(b"t", value),
    dict: lambda encoder, value: encoder.pairs(b"d", value.items()),
    set: lambda encoder, value: encoder.unordered(b"S", value),
    frozenset: lambda encoder, value: encoder.unordered(b"Z", value),
    FunctionType: Encoder.function,
    MethodType: Encoder.method,
    BuiltinFunctionType: Encoder.builtin,
    CodeType: Encoder.code,
    ModuleType: lambda encoder, value: encoder.text(value.__name__),
}


_digests: dict[int, tuple[ref[CodeType], bytes]] = {}  # by `id` of the code


def code_digest(code: CodeType) -> bytes:
    """Return the digest of compiled code, without its lines and comments. Computed once for each code object."""
    known = _digests.get(id(code))
    if known is not None and known[0]() is code:
        return known[1]
    encoder = Encoder(None)
    encoder.add((code.co_code, code.co_exceptiontable, code.co_flags, code.co_name))
    encoder.add((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount))
    encoder.add((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
    encoder.add(code.co_consts)
    digest, number = encoder.digest(), id(code)
    _digests[number] = ref(code, lambda _: _digests.pop(number, None)), digest
    return digest


def module_of(value: Any) -> str:
    """Return the module of a function or a class.

    For a script and for the file of a `cs.subflow`, it is the name that an import of the file has.
    """
    name = str(getattr(value, "__module__", None) or "")
    if name != "__main__" and not name.startswith(_SUBFLOW):
        return name
    module = sys.modules.get(name)
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    if file is not None and (spec is None or name != "__main__"):
        return Path(file).stem
    return name if spec is None else spec.name
