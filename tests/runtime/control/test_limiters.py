from hypothesis import given
from hypothesis import strategies as st

from cascade.runtime.control.limiters import TokenBucket


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


_rates = st.floats(min_value=1 / 3600, max_value=10_000)


@given(_rates, st.floats(min_value=1, max_value=100), st.lists(st.floats(min_value=0, max_value=20), max_size=60))
def test_the_tokens_never_exceed_burst_and_rate(rate: float, burst: float, pauses: list[float]) -> None:
    clock = Clock()
    bucket, taken = TokenBucket(rate, burst, clock), list[float]()
    for pause in pauses:
        clock.now += pause / rate
        while bucket.has_token:
            bucket.take()
            taken.append(clock.now)
    for first, start in enumerate(taken):
        for number, end in enumerate(taken[first:], 1):
            assert number <= burst + (end - start) * rate + 1e-3


@given(_rates)
def test_the_first_token_is_available_at_once_and_each_further_one_later(rate: float) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, 0.0, clock)
    for _ in range(5):
        assert bucket.has_token
        bucket.take()
        assert not bucket.has_token
        clock.now += bucket.delay
    assert bucket.has_token
    assert bucket.delay < 1e-6


def test_an_unused_token_is_put_back_up_to_the_burst() -> None:
    bucket = TokenBucket(1, 2, Clock())
    bucket.take()
    bucket.put_back()
    bucket.put_back()
    assert bucket.tokens == 2


def test_a_bucket_that_replaces_another_one_gets_no_new_tokens() -> None:
    clock = Clock()
    before, after = TokenBucket(1, 5, clock), TokenBucket(2, 10, clock)
    for _ in range(5):
        before.take()
    after.limit_to(before)
    assert not after.has_token
    clock.now += 0.5
    assert after.has_token
