import asyncio
import math
import os
import pickle
import random
import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest

import cascade as cs
from cascade.spec.retry import MAX_DELAY, RetryPolicy
from tests.lab.waiting import HANG


def delays(count: int, **settings: Any) -> list[float]:
    policy = RetryPolicy(count, **settings)
    return [policy.delay_before(number) for number in range(1, count + 1)]


def test_delays_grow_by_the_backoff() -> None:
    assert delays(3, delay=0.5) == [0.5, 0.5, 0.5]
    assert delays(4, delay=0.5, backoff=3) == [0.5, 1.5, 4.5, 13.5]
    assert delays(3, delay=8, backoff=0.5) == [8, 4, 2]
    assert delays(2, delay=Fraction(1, 2), backoff=Fraction(3, 1)) == [0.5, 1.5]


@pytest.mark.parametrize("backoff", [2, 2.0, 10.0, 1e200, 10**400 // 10**100])
def test_a_delay_never_exceeds_its_limit(backoff: float) -> None:
    assert RetryPolicy(5_000, delay=1, backoff=backoff, max_delay=7.5).delay_before(5_000) == 7.5
    assert RetryPolicy(5_000, delay=1, backoff=backoff).delay_before(5_000) == MAX_DELAY == 86_400
    assert RetryPolicy(5_000, delay=0, backoff=backoff).delay_before(5_000) == 0


def test_jitter_shortens_a_delay_by_a_random_share() -> None:
    drawn = delays(2_000, delay=10, jitter=0.4)
    assert all(6 <= delay <= 10 for delay in drawn)
    assert len(set(drawn)) > 1_000
    assert min(drawn) < 7
    assert max(drawn) > 9
    assert all(0 <= delay <= 10 for delay in delays(100, delay=10, jitter=1))


def test_jitter_is_independent_of_the_programs_random_numbers() -> None:
    random.seed(1)
    first, after = delays(5, delay=1, jitter=1), random.random()
    random.seed(1)
    assert random.random() == after
    assert delays(5, delay=1, jitter=1) != first


@pytest.mark.parametrize("name", ["delay", "backoff", "max_delay", "jitter"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, -0.001, 10**400])
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^RetryPolicy: {name} must be .* from 0.*, got {value!r}(, which is negative)?$"
    ):
        cs.task(lambda: 1, name="t")().with_retry(**{"max_attempts": 1, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_attempts", "delay", "backoff", "max_delay", "jitter"])
@pytest.mark.parametrize("value", [True, "3", None, [1], 1j], ids=repr)
def test_other_types_are_refused(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^RetryPolicy: {name} must be .* from 0.*, got "):
        RetryPolicy(**{"max_attempts": 1, name: value})


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (2.0, TypeError), (math.nan, TypeError)])
def test_the_number_of_retries_is_an_integer_from_zero(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"max_attempts must be an integer from 0, the number of retries.*, got "):
        RetryPolicy(value)
    assert RetryPolicy(0).max_attempts == 0


def test_jitter_is_at_most_one() -> None:
    with pytest.raises(ValueError, match=r"jitter must be a share from 0 to 1, such as 0\.5, got 1\.5"):
        RetryPolicy(1, jitter=1.5)


def test_a_first_delay_above_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"delay=60 exceeds max_delay=30 seconds; give a shorter delay or a longer"):
        RetryPolicy(1, delay=60, max_delay=30)


@pytest.mark.parametrize("value", [0, -1, 0.0, math.inf, math.nan, 10**400])
def test_a_timeout_is_above_zero(value: float) -> None:
    with pytest.raises(ValueError, match=r"^Task 'int': timeout must be a finite number of seconds above 0, got "):
        cs.task(int)(1).with_timeout(value)


@pytest.mark.parametrize("value", [True, "30", [1], 1j])
def test_a_timeout_is_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^Task 'int': timeout must be a finite number of seconds above 0, got "):
        cs.task(int)(1).with_timeout(value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_processes_have_different_delays() -> None:
    """With the same delays, the workers of a pool would send their retries at the same time."""
    source = """
import os
from cascade.spec.retry import random_factor

random_factor()
for _ in range(3):
    if (child := os.fork()) == 0:
        os.write(1, f"{random_factor()}\\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
"""
    printed = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=HANG, check=True
    ).stdout
    assert len(set(printed.split())) == 3


def is_busy(error: Exception) -> bool:
    return "busy" in str(error)


class RefusedError(ConnectionError):
    pass


@pytest.mark.parametrize(
    ("retry_on", "retried", "not_retried"),
    [
        (None, [ValueError(), OSError(), ExceptionGroup("g", [ValueError()])], []),
        (ConnectionError, [ConnectionError(), RefusedError()], [OSError(), ValueError("busy")]),
        (is_busy, [ValueError("busy"), OSError("busy")], [ValueError("x")]),
        ((ConnectionError, is_busy), [RefusedError(), ValueError("busy")], [OSError(), ValueError("x")]),
        ([LookupError], [KeyError("x")], [ValueError("x")]),
        (lambda error: error.args, [ValueError(0)], [ValueError()]),
    ],
)
def test_only_the_errors_of_retry_on_are_retried(
    retry_on: Any, retried: list[Exception], not_retried: list[Exception]
) -> None:
    policy = RetryPolicy(1, retry_on=retry_on)
    assert [policy.retries(error) for error in retried] == [True] * len(retried)
    assert [policy.retries(error) for error in not_retried] == [False] * len(not_retried)


def test_equal_conditions_make_equal_policies() -> None:
    single = RetryPolicy(1, retry_on=OSError)
    assert single == RetryPolicy(1, retry_on=[OSError]) == RetryPolicy(1, retry_on=(OSError,))
    assert hash(single) == hash(RetryPolicy(1, retry_on=(OSError,)))
    assert single.retry_on == (OSError,)
    assert pickle.loads(pickle.dumps(RetryPolicy(1, retry_on=is_busy))).retry_on == (is_busy,)  # noqa: S301 - own bytes


async def asynchronous(error: Exception) -> bool:
    return True


@pytest.mark.parametrize(
    ("retry_on", "text"),
    [
        (KeyboardInterrupt, "got KeyboardInterrupt, which is never retried; give subclasses of Exception"),
        (asyncio.CancelledError, "got CancelledError, which is never retried; give subclasses of Exception"),
        ((OSError, BaseException), "got BaseException, which is never retried; give subclasses of Exception"),
        (int, "got int, which is no exception class; give subclasses of Exception"),
        (OSError("x"), "got a OSError; give its class"),
        ((OSError, "TimeoutError"), "got 'TimeoutError'"),
        ("TimeoutError", "got 'TimeoutError'"),
        (5, "got 5"),
        ({OSError}, "got a set"),
        (asynchronous, "got a coroutine function; give a plain function"),
    ],
)
def test_other_conditions_are_refused(retry_on: Any, text: str) -> None:
    with pytest.raises(
        TypeError, match=r"^RetryPolicy: retry_on must have exception classes and functions .*"
    ) as caught:
        cs.task(lambda: 1, name="t")().with_retry(1, retry_on=retry_on)
    assert str(caught.value).endswith(text)


def test_an_empty_retry_on_is_refused() -> None:
    with pytest.raises(ValueError, match=r"retry_on is empty, so that no error is retried; leave it out"):
        RetryPolicy(1, retry_on=())
