"""A run raises the exception of a task unchanged, as the same object, whatever its class."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.events import TaskExecutionFinished
from tests.runtime.conftest import RecordedEngine


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


@dataclass(frozen=True, slots=True)
class SlotsError(Exception):
    code: int


class PropertiesError(Exception):
    @property
    def __notes__(self) -> NoReturn:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        raise AttributeError("no notes")

    @property
    def __traceback__(self) -> NoReturn:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        raise RuntimeError("no traceback")

    @property
    def __cause__(self) -> NoReturn:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        raise RuntimeError("no cause")

    @property
    def args(self) -> NoReturn:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        raise RuntimeError("no args")


class ClassError(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            raise RuntimeError("no class")
        return super().__getattribute__(name)


class MethodsError(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(code)

    def _refuse(self, *_: object) -> NoReturn:
        raise RuntimeError("refused")

    __str__ = __repr__ = __eq__ = __hash__ = __bool__ = __len__ = __reduce__ = _refuse
    with_traceback = add_note = __setattr__ = _refuse


class OwnBaseError(BaseException):
    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise TypeError(name)


MAKERS: list[Callable[[], BaseException]] = [
    lambda: FrozenError(7),
    lambda: SlotsError(7),
    PropertiesError,
    ClassError,
    lambda: MethodsError(7, detail="x"),
    OwnBaseError,
    lambda: ExceptionGroup("group", [FrozenError(1), MethodsError(2, detail="y")]),
]


def target_of(shape: str, error: BaseException) -> Any:  # noqa: C901 - a case for each shape
    def fail(*_: object) -> NoReturn:
        raise error

    async def fail_async() -> NoReturn:
        raise error

    def generator() -> Iterator[int]:
        fail()
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        fail()
        yield 1

    async def nested() -> Any:
        return await cs.run_async(cs.task(fail, name="inner")(), log_level="OFF")

    match shape:
        case "thread":
            return cs.task(fail)()
        case "loop":
            return cs.task(fail, threaded=False)()
        case "async":
            return cs.task(fail_async)()
        case "item":
            return cs.task(lambda x: fail(), name="item").map(x=[1, 2])
        case "retried":
            return cs.task(fail)().with_retry(2)
        case "nested":
            return cs.task(nested)()
        case "resource":
            return cs.task(lambda r: r, name="t")(cs.inject(cs.resource(generator)))
        case _:
            return cs.task(lambda r: r, name="t")(cs.inject(cs.resource(async_generator)))


SHAPES = ["thread", "loop", "async", "item", "retried", "nested", "resource", "async resource"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: type(make()).__name__)
@pytest.mark.parametrize("connector", [None, MemoryConnector], ids=["plain", "connector"])
def test_run_raises_it_unchanged(make: Callable[[], BaseException], shape: str, connector: Any) -> None:
    error, caught = make(), None
    try:
        cs.run(target_of(shape, error), log_level="OFF", connector=connector and connector())
    except BaseException as raised:  # noqa: BLE001 - some of them are no Exception
        caught = raised
    assert caught is error


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: type(make()).__name__)
def test_run_async_raises_it_unchanged(make: Callable[[], BaseException], shape: str) -> None:
    error = make()

    async def caught() -> BaseException | None:
        try:
            await cs.run_async(target_of(shape, error), log_level="OFF")
        except BaseException as raised:  # noqa: BLE001 - some of them are no Exception
            return raised
        return None

    assert asyncio.run(caught()) is error


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: type(make()).__name__)
def test_a_result_has_it_unchanged_and_unwraps_it_twice(make: Callable[[], BaseException], shape: str) -> None:
    error, caught = make(), list[BaseException]()
    result = cs.execute(target_of(shape, error), log_level="OFF")
    for _ in range(2):
        try:
            result.unwrap()
        except BaseException as raised:  # noqa: BLE001 - some of them are no Exception
            caught.append(raised)
    assert [each is error for each in [result.error, *caught]] == [True] * 3
    assert result.status == "Failed"
    assert type(error).__name__ in repr(result)


async def test_an_overridden_resource_raises_it_unchanged(recorded: RecordedEngine) -> None:
    @cs.resource
    def r() -> Iterator[int]:
        yield 1

    error = FrozenError(7)
    recorded.engine.register(r)
    with pytest.raises(FrozenError) as caught, cs.override_resource(recorded.engine, "r", r):
        await recorded.run(target_of("async", error))
    assert caught.value is error


async def test_its_traceback_names_the_line_of_the_user(recorded: RecordedEngine) -> None:
    for shape in ("thread", "loop", "async"):
        with pytest.raises(FrozenError) as caught:
            await recorded.run(target_of(shape, FrozenError(7)))
        assert traceback.extract_tb(caught.value.__traceback__)[-1].line == "raise error"
    for finished in recorded.of(TaskExecutionFinished):
        assert finished.exception is not None
        assert finished.exception.stacktrace.splitlines()[-2].strip() == "raise error"
