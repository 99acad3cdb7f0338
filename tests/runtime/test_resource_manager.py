import asyncio
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.runtime.resource_manager import ResourceManager
from tests.lab.waiting import HANG


async def test_amounts_are_held_until_released() -> None:
    manager = ResourceManager({"cpu": 2})
    await manager.acquire({"cpu": 2})
    waiting = asyncio.create_task(manager.acquire({"cpu": 1}))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert manager.usage == {"cpu": 2}
    await manager.release({"cpu": 2})
    await waiting
    assert manager.usage == {"cpu": 1}


async def test_names_without_capacity_are_unlimited() -> None:
    await ResourceManager({"cpu": 1}).acquire({"gpu": 1e9})


async def test_a_request_above_the_capacity_fails_at_once() -> None:
    with pytest.raises(ValueError, match="'cpu': 3 exceeds total system capacity of 2"):
        await ResourceManager({"cpu": 2}).acquire({"cpu": 3})


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), "2", None, True])
async def test_amounts_must_be_numbers(amount: Any) -> None:
    with pytest.raises(ValueError, match="must be a number"):
        await ResourceManager({"cpu": 2}).acquire({"cpu": amount})
    with pytest.raises(ValueError, match="Capacity of resource 'cpu'"):
        ResourceManager({"cpu": amount})


async def test_first_come_first_served() -> None:
    manager, order = ResourceManager({"cpu": 2}), []

    async def take(name: str, amount: int) -> None:
        await manager.acquire({"cpu": amount})
        order.append(name)

    await manager.acquire({"cpu": 2})
    tasks = [asyncio.create_task(take("big", 2)), asyncio.create_task(take("small", 1))]
    await asyncio.sleep(0)
    await manager.release({"cpu": 1})
    await asyncio.sleep(0)
    assert order == []  # one unit is free, but the larger request is first in the queue
    await manager.release({"cpu": 1})
    await tasks[0]
    await manager.release({"cpu": 2})
    await tasks[1]
    assert order == ["big", "small"]


async def test_a_cancelled_request_unblocks_the_next_one() -> None:
    manager = ResourceManager({"cpu": 1})
    await manager.acquire({"cpu": 1})
    first, second = (asyncio.create_task(manager.acquire({"cpu": 1})) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await manager.release({"cpu": 1})
    await second
    assert first.cancelled()
    assert manager.usage == {"cpu": 1}


async def test_a_request_that_is_cancelled_after_its_grant_releases_its_amounts() -> None:
    manager = ResourceManager({"cpu": 1})
    await manager.acquire({"cpu": 1})
    waiting = asyncio.create_task(manager.acquire({"cpu": 1}))
    await asyncio.sleep(0)
    await manager.release({"cpu": 1})
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert manager.usage == {"cpu": 0}


async def test_a_larger_capacity_grants_waiting_requests() -> None:
    manager = ResourceManager({"cpu": 1})
    await manager.acquire({"cpu": 1})
    waiting = asyncio.create_task(manager.acquire({"cpu": 1}))
    await asyncio.sleep(0)
    manager.set_capacity({"cpu": 2})
    await waiting


@given(
    requests=st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), min_size=1), max_size=30),
    seed=st.randoms(use_true_random=False),
)
@settings(max_examples=60)
def test_no_order_of_requests_deadlocks_or_exceeds_the_capacity(requests: list[dict[str, int]], seed: Any) -> None:
    async def scenario() -> None:
        manager = ResourceManager(dict.fromkeys("abc", 3))

        async def use(amounts: dict[str, int]) -> None:
            await manager.acquire(amounts)
            assert all(used <= 3 for used in manager.usage.values())
            for _ in range(seed.randint(0, 3)):
                await asyncio.sleep(0)
            await manager.release(amounts)

        await asyncio.wait_for(asyncio.gather(*map(use, requests)), timeout=HANG)
        assert set(manager.usage.values()) == {0.0}

    asyncio.run(scenario())


async def test_an_override_replaces_the_capacity_until_it_is_removed() -> None:
    manager = ResourceManager({"cpu": 2})
    manager.override("cpu", 1)
    await manager.acquire({"cpu": 1})
    waiting = asyncio.create_task(manager.acquire({"cpu": 1}))
    await asyncio.sleep(0)
    assert not waiting.done()
    manager.override("cpu", None)
    await waiting
    assert manager.usage == {"cpu": 2}


async def test_a_request_above_the_override_waits_but_one_above_the_capacity_fails() -> None:
    manager = ResourceManager({"cpu": 2})
    manager.override("cpu", 1)
    waiting = asyncio.create_task(manager.acquire({"cpu": 2}))
    with pytest.raises(ValueError, match="exceeds total system capacity of 2"):
        await manager.acquire({"cpu": 3})
    manager.override("cpu", 5)
    await waiting
    await manager.acquire({"cpu": 3})
    too_large = asyncio.create_task(manager.acquire({"cpu": 3}))
    await asyncio.sleep(0)
    manager.override("cpu", None)
    with pytest.raises(ValueError, match="'cpu': 3 exceeds total system capacity of 2"):
        await too_large


async def test_an_unlimited_resource_can_be_overridden_and_its_usage_counts() -> None:
    manager = ResourceManager()
    await manager.acquire({"api": 3})
    manager.override("api", 3)
    waiting = [asyncio.create_task(manager.acquire({"api": 1})) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(one.done() for one in waiting)
    await manager.release({"api": 3})
    await asyncio.gather(*waiting)
    waiting = [asyncio.create_task(manager.acquire({"api": 2})) for _ in range(3)]
    await asyncio.sleep(0)
    manager.override("api", None)
    await asyncio.gather(*waiting)


async def test_a_request_does_not_block_others_at_an_unlimited_resource() -> None:
    manager = ResourceManager({"gpu": 1})
    await manager.acquire({"gpu": 1})
    manager.override("api", 0)
    first = asyncio.create_task(manager.acquire({"gpu": 1, "api": 1}))
    second = asyncio.create_task(manager.acquire({"api": 1}))
    await asyncio.sleep(0)
    manager.override("api", None)
    await second
    assert not first.done()
    await manager.release({"gpu": 1})
    await first


async def test_any_real_number_is_an_amount() -> None:
    capacity: dict[str, Any] = {"cpu": Fraction(5, 2)}
    amounts: dict[str, Any] = {"cpu": Fraction(1, 2)}
    wrong: dict[str, Any] = {"cpu": "hunter2"}
    manager = ResourceManager(capacity)
    await manager.acquire(amounts)
    assert manager.usage == {"cpu": 0.5}
    with pytest.raises(ValueError, match="must be a number from zero up, got a str"):
        manager.set_capacity(wrong)
