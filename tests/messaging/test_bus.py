import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade.messaging.bus import MessageBus, MessageStore, bus


class Recorder:
    def __init__(self) -> None:
        self.rendered: list[tuple[str, str, dict[str, Any]]] = []

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None:
        self.rendered.append((msg_id, level, kwargs))


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise self


class Unformattable:
    def __format__(self, spec: str) -> str:
        raise UnprintableError


@pytest.fixture
def store_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MessageStore]:
    """Return a function that makes a store of the given texts."""

    def make(**texts: str) -> MessageStore:
        (tmp_path / "en").mkdir()
        (tmp_path / "en" / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        monkeypatch.setattr("cascade.messaging.bus.LOCALES", tmp_path)
        return MessageStore()

    return make


def test_values_are_formatted(store_of: Callable[..., MessageStore]) -> None:
    assert store_of(greeting="Hello {name:>3}").get("greeting", name="A") == "Hello   A"


def test_an_unknown_message_is_its_default_or_its_id() -> None:
    assert MessageStore().get("no.such") == "<no.such>"
    assert MessageStore().get("no.such", "default", name=1) == "default"


@pytest.mark.parametrize(
    "values", [{}, {"name": [1]}, {"name": Unformattable()}], ids=["missing", "wrong type", "raises"]
)
def test_a_formatting_error_is_described_and_not_raised(
    store_of: Callable[..., MessageStore], values: dict[str, Any]
) -> None:
    assert "Formatting error" in store_of(greeting="Hello {name:>3}").get("greeting", **values)


def test_a_given_value_can_select_another_text(store_of: Callable[..., MessageStore]) -> None:
    store = store_of(**{"greeting": "Hello {name}", "greeting+title": "Hello {title} {name}"})
    assert store.get("greeting", name="Ada", title="Dr") == "Hello Dr Ada"
    assert store.get("greeting", name="Ada", other=1) == "Hello Ada"


def test_an_unknown_locale_has_no_texts() -> None:
    assert MessageStore("xx").get("run.started", target_tasks=[]) == "<run.started>"


def test_messages_go_to_the_renderer_with_their_level() -> None:
    messages, recorder = MessageBus(MessageStore()), Recorder()
    messages.info("without a renderer")
    messages.set_renderer(recorder)
    messages.debug("d")
    messages.info("a", x=1)
    messages.warning("b")
    messages.error("c")
    assert recorder.rendered == [("d", "debug", {}), ("a", "info", {"x": 1}), ("b", "warning", {}), ("c", "error", {})]


@pytest.mark.parametrize(
    ("msg_id", "values", "parts"),
    [
        ("run.started", {"target_tasks": ["report"]}, ["▶️", "report"]),
        ("run.started_with_params", {"params": {"day": 1}}, ["{'day': 1}"]),
        ("run.finished_success", {"duration": 1.2345}, ["✅", "1.23s"]),
        ("run.finished_failure", {"duration": 1.0, "error": "E: x"}, ["❌", "1.00s", "E: x"]),
        ("run.cancelled", {"duration": 1.0}, ["1.00s"]),
        ("run.trace", {"trace_id": "abc"}, ["🔎", "abc"]),
        ("run.trace_url", {"trace_id": "abc", "url": "http://x/abc"}, ["🔎", "http://x/abc"]),
        ("connector.failed", {"connector": "OtelConnector", "error": "E: x"}, ["OtelConnector", "E: x"]),
        ("telemetry.lost", {"count": 3, "reason": "refused"}, ["3", "refused"]),
        ("task.started", {"task_name": "load"}, ["load"]),
        ("task.finished_success", {"task_name": "load", "duration": 0.5}, ["✅", "load", "0.50s"]),
        ("task.finished_failure", {"task_name": "load", "duration": 0.5, "error": "E: x"}, ["❌", "load", "E: x"]),
        ("task.skipped", {"task_name": "load", "reason": "CacheHit"}, ["⚪", "load", "CacheHit"]),
        ("task.skipped", {"task_name": "load", "map_index": 0, "reason": "CacheHit"}, ["⚪", "load[0]", "CacheHit"]),
        ("map.progress", {"task_name": "map(x)", "done": 1_200, "total": 9_000}, ["map(x)", "1,200 of 9,000 done"]),
        (
            "task.retrying",
            {"task_name": "load", "attempt": 1, "max_attempts": 3, "delay": 0.5, "error": "E: x"},
            ["⚠️", "load", "attempt 2 of 4", "retry 1 of 3", "0.5", "E: x"],
        ),
    ],
)
def test_the_english_texts(msg_id: str, values: dict[str, Any], parts: list[str]) -> None:
    text = bus.store.get(msg_id, **values)
    assert [part for part in parts if part not in text] == []
