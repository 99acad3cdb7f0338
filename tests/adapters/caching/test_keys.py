"""Keys of calls: equal calls have equal keys in all processes, and different calls have different keys."""

import dataclasses
import datetime as dt
import enum
import functools
import os
import subprocess
import sys
import threading
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.adapters.caching._digests import FailureKeyError, TooLargeError, UnkeyableError
from cascade.adapters.caching._keys import key_of
from cascade.graph.model import join_arguments
from cascade.spec.caching import TaskCall
from cascade.spec.failure import Failure

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(codec=None))
    | st.binary()
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.text() | st.integers())
    ),
    max_leaves=10,
)


def key(function: Any, *args: Any, version: str | None = None, limit: int | None = None, **kwargs: Any) -> str:
    call = TaskCall("id", "name", function, join_arguments(args, kwargs), len(args))
    return key_of(call, version, limit)


def value_key(value: Any) -> str:
    return key(identity, value)


def identity(x: Any) -> Any:
    return x


def shape(value: Any) -> Any:
    """Return the value with the type of each part, so that 1, 1.0 and True differ, and nan equals itself."""
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(shape, value))
    if isinstance(value, dict):
        return dict, tuple((shape(k), shape(v)) for k, v in value.items())
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(shape, value))
    return type(value), repr(value)


@given(VALUES, VALUES)
def test_values_have_the_same_key_only_if_they_and_their_types_are_equal(a: Any, b: Any) -> None:
    assert (value_key(a) == value_key(b)) is (shape(a) == shape(b))


@given(st.lists(ATOMS, min_size=60, max_size=70), st.lists(ATOMS, min_size=60, max_size=70))
def test_long_lists_have_the_same_key_only_if_they_are_equal(a: list[Any], b: list[Any]) -> None:
    assert (value_key(a) == value_key(b)) is (shape(a) == shape(b))
    assert value_key(a) != value_key(tuple(a))


def test_the_key_does_not_depend_on_the_identity_of_parts() -> None:
    word, other = "ab" * 40, "".join(["ab"] * 40)
    inner, words = [1], [word] * 100
    assert value_key([word, word]) == value_key([word, other])
    assert value_key([inner, inner]) == value_key([[1], [1]])
    assert value_key(words) == value_key([*words[1:], other])


def call(a: int, /, b: int, *rest: int, c: int = 3, **more: int) -> None: ...


def test_positional_and_keyword_forms_and_defaults_have_the_same_key() -> None:
    def plain(a: int, b: int = 2, *, c: int = 3) -> None: ...

    forms = [key(plain, 1), key(plain, a=1), key(plain, 1, 2), key(plain, c=3, b=2, a=1), key(plain, 1, b=2, c=3)]
    assert len(set(forms)) == 1
    assert key(call, 1, 2) == key(call, 1, b=2, c=3)
    assert key(call, 1, 2, x=1, y=2) == key(call, 1, 2, y=2, x=1)
    different = [
        key(call, 1, 2), key(call, 1, 2, a=1), key(call, 1, 2, 3), key(call, 1, 2, x=3), key(call, 1, 2, c=4)
    ]  # fmt: skip
    assert len(set(different)) == len(different)


@given(st.data())
def test_the_form_of_a_call_does_not_change_its_key(data: st.DataObject) -> None:
    def plain(a: Any, b: Any = None, c: Any = 0) -> None: ...

    values = data.draw(st.lists(ATOMS, min_size=3, max_size=3))
    split = data.draw(st.integers(0, 3))
    named = data.draw(st.permutations(list(zip("abc", values, strict=True))[split:]))
    assert key(plain, *values[:split], **dict[str, Any](named)) == key(plain, *values)


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: int


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Number(int): ...


DIFFERENT: list[Any] = [
    1, True, 1.0, 1 + 0j, "1", b"1", bytearray(b"1"), Number(1), Decimal(1), Fraction(1), None, (), [], {}, set(), frozenset(),
    [1], (1,), {1}, frozenset({1}), {1: None}, [[1]], [[], 1], 0.0, -0.0, 10**5000, Point(1), Point(1, 2), Slotted(1), Color.RED,
    Color.BLUE, {"a": 1, "b": 2}, {"b": 2, "a": 1}, OrderedDict(a=1), Counter("a"), deque([1]), array("i", [1]), array("q", [1]),
    Path("a"), PurePosixPath("a") if os.name == "nt" else "a", dt.date(2024, 1, 1), dt.datetime(2024, 1, 1),  # noqa: DTZ001

    dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.timedelta(1), UUID(int=1), range(1), slice(1), ..., identity,
    call, len, "a".upper, Point, int, Point(1).__eq__, functools.partial(identity, 1), functools.partial(identity, 2), sys,
    lambda: 1, lambda: 2, lambda x=1: x, lambda x=2: x, cs.task(call), cs.inject("db"), cs.inject("cache"), float("inf"),
]  # fmt: skip


def test_values_of_different_types_have_different_keys() -> None:
    keys = [value_key(value) for value in DIFFERENT]
    assert [repr(value) for value, one in zip(DIFFERENT, keys, strict=True) if keys.count(one) > 1] == []


PROGRAM = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[3])]!r}
from tests.adapters.caching import test_keys as t
print([t.value_key(value) for value in t.DIFFERENT + [{{"a", "b", "c"}}, {{"x": frozenset("abcd")}}, float("nan")]])
"""


def test_keys_are_equal_in_all_processes() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": s}
        ).stdout
        for s in ("0", "1", "2")
    }  # fmt: skip
    assert len(found) == 1


class Keyless:
    def __reduce__(self) -> Any:
        raise ValueError("secret state")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (threading.Lock, "argument 'x': the type lock has no stable content: cannot pickle"),
        (lambda: open(__file__, encoding="utf-8"), "cannot pickle"),  # noqa: SIM115, PTH123
        (lambda: (x for x in "a"), "type generator has no stable content"),
        (object, r"an object\(\) has no content"),
        (Keyless, "type Keyless has no stable content: secret state"),
        (lambda: [[Keyless()]], "type Keyless"),
    ],
    ids=["lock", "file", "generator", "object", "own", "nested"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_argument_without_stable_content_has_no_key(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(UnkeyableError, match=reason):
        value_key(make())


def test_a_value_that_contains_itself_has_no_key() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UnkeyableError, match="contains itself"):
        value_key(value)


def test_the_failure_of_a_task_has_no_key() -> None:
    with pytest.raises(FailureKeyError):
        value_key([Failure(ValueError(), "load", "id", None, 1)])


def test_a_default_without_a_key_counts_as_the_default() -> None:
    missing = object()

    def load(x: int, y: Any = missing) -> None: ...

    assert key(load, 1) == key(load, x=1) != key(load, 1, 2)
    with pytest.raises(UnkeyableError):
        key(load, 1, missing)


def test_arguments_above_the_limit_are_not_encoded() -> None:
    for value in (
        "x" * 2000,
        list(range(2000)),
        [["x"]] * 2000,
        array("b", bytes(2000)),
        {str(x) for x in range(2000)},
    ):
        assert len(value_key(value)) == 40
        with pytest.raises(TooLargeError):
            key(identity, value, limit=1000)


def compiled(source: str, name: str = "f") -> Any:
    scope: dict[str, Any] = {"__name__": "workflow", "functools": functools}
    exec(source, scope)  # noqa: S102 - functions without a file
    return scope[name]


def test_the_key_contains_the_code_without_comments_and_lines() -> None:
    first = compiled("def f(x):\n    return x + 1")
    same = [
        compiled("\n\ndef f(x):\n    # a comment\n\n    return (x  +  1)"),
        compiled("def f(x: int) -> int:\n    return x + 1"),
    ]
    assert {key(f, 1) for f in same} == {key(first, 1)}
    different = [
        "x + 2",
        "x - 1",
        "x + y",
        "x.y",
        "[y for y in x]",
        "[y + 1 for y in x]",
        "x in {1, 2}",
        "(lambda: x)()",
    ]
    keys = [key(compiled(f"def f(x):\n    return {code}"), 1) for code in different]
    keys.append(key(compiled("def f(x):\n    try:\n        return x + 1\n    except ValueError:\n        return 0"), 1))
    assert len({*keys, key(first, 1)}) == len(keys) + 1


def test_a_version_replaces_the_code() -> None:
    first, second = compiled("def f(x):\n    return x"), compiled("def f(x):\n    return -x")
    assert key(first, 1) != key(second, 1)
    assert key(first, 1, version="1") == key(second, 1, version="1") != key(first, 1, version="2")
    assert key(first, 1, version="1") != key(compiled("def g(x):\n    return x", "g"), 1, version="1")


def test_the_key_contains_the_values_of_enclosing_functions() -> None:
    def make(factor: Any) -> Callable[[int], Any]:
        return lambda x: x * factor

    assert key(make(2), 1) == key(make(2), 1) != key(make(3), 1)
    with pytest.raises(UnkeyableError, match="'factor' of the enclosing function: the type lock has no stable content"):
        key(make(threading.Lock()), 1)

    def recursive(n: int) -> int:
        return n and recursive(n - 1)

    assert len(key(recursive, 1)) == 40


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def test_the_key_of_a_decorated_function_contains_its_own_code_and_its_parameters() -> None:
    first, second = (logged(compiled(f"def f(x, y=2):\n    return x + {n}")) for n in (1, 2))
    assert key(first, 1) == key(first, x=1) == key(first, 1, y=2)
    assert key(first, 1) != key(second, 1)


class Model:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def predict(self, x: int) -> int:
        return self.factor * x

    def __call__(self, x: int) -> int:
        return x


def test_methods_partials_classes_instances_and_builtins_have_keys() -> None:
    assert key(Model(1).predict, 5) == key(Model(1).predict, x=5) != key(Model(2).predict, 5)
    assert (
        key(functools.partial(call, 1), 2) == key(functools.partial(call, 1), b=2) != key(functools.partial(call, 2), 2)
    )
    functions = [
        Model,
        Model(1),
        Model(2),
        Model(1).predict,
        functools.partial(identity, 1),
        len,
        abs,
        "a".upper,
        identity,
    ]
    assert len({key(function, 5) for function in functions}) == len(functions)


def test_a_changed_default_or_code_changes_the_key() -> None:
    f = compiled("def f(x, y=1):\n    return x")
    keys = [key(f, 1)]
    f.__defaults__ = (2,)
    keys.append(key(f, 1))
    f.__code__ = compiled("def f(x, y=1):\n    return y").__code__
    keys.append(key(f, 1))
    assert len(set(keys)) == 3


def test_a_script_has_the_module_that_an_import_of_its_file_has(tmp_path: Path) -> None:
    source = Path(tmp_path, "flow.py")
    source.write_text(
        "from cascade.adapters.caching._keys import key_of\n"
        "from cascade.spec.caching import TaskCall\n"
        "def load(x):\n    return x\n"
        "print(key_of(TaskCall('i', 'n', load, {'x': 1}), None))\n"
    )
    commands = [[str(source)], ["-m", "flow"], ["-c", "import flow"]]
    found = [subprocess.check_output([sys.executable, *command], cwd=tmp_path, text=True) for command in commands]
    assert len(set(found)) == 1
