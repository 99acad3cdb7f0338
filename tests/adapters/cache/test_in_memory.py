import pytest

from cascade.adapters.cache.in_memory import InMemoryCacheBackend


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    return clock


def test_values_without_a_ttl_stay(now: list[float]) -> None:
    cache = InMemoryCacheBackend()
    cache.set("k", "v")
    now[0] += 1e9
    assert cache.get("k") == "v"
    assert cache.get("other") is None


def test_get_deletes_an_expired_value(now: list[float]) -> None:
    cache = InMemoryCacheBackend()
    cache.set("k", "v", ttl=10)
    now[0] += 9.9
    assert cache.get("k") == "v"
    now[0] += 0.2
    assert cache.get("k") is None
    assert "k" not in cache._store
    assert "k" not in cache._expiry


def test_a_second_set_replaces_the_ttl(now: list[float]) -> None:
    cache = InMemoryCacheBackend()
    cache.set("k", "old", ttl=1)
    cache.set("k", "new")
    now[0] += 10
    assert cache.get("k") == "new"
