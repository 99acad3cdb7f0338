"""The bus of messages for the terminal and the log; the MessageBus of `cascade.runtime.bus` has events."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from string import Formatter
from typing import Any, Protocol

LOCALES = Path(__file__).with_name("locales")

message_ids: ContextVar[Callable[[], Mapping[str, str]] | None] = ContextVar("cascade_message_ids", default=None)
"""Returns the ids of the run and the task of the current message. It is a function because most messages are not printed.
It is set only during a call of a bus that `shows_ids`."""


def current_ids() -> Mapping[str, str]:
    """Return the `run_id`, `task_id`, `trace_id` and `span_id` of the current message, as far as it has them."""
    ids_of = message_ids.get()
    return {} if ids_of is None else ids_of()


class Renderer(Protocol):
    """Prints messages. Levels are in lower case.

    A renderer with a true attribute `shows_ids` can call `current_ids`.
    """

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None: ...


class _Formatter(Formatter):
    """Formats texts. The conversion `!n` is the next number: `{attempt!n}` is 2 for the attempt 1."""

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        return value + 1 if conversion == "n" else super().convert_field(value, conversion)


_formatter = _Formatter()


class MessageStore:
    """The texts of one locale by id, from all JSON files of its folder.

    If the value `name` is given, the text with the id `message+name` replaces that of `message`. If several such texts
    exist, the first of the given values decides. `message+name+other` is the text if both values are given.
    """

    def __init__(self, locale: str = "en") -> None:
        self._messages: dict[str, str] = {}
        for path in sorted((LOCALES / locale).glob("*.json")):
            self._messages.update(json.loads(path.read_text(encoding="utf-8")))
        self._texts: dict[str, dict[str, str]] = defaultdict(dict)
        for key, text in self._messages.items():
            msg_id, _, name = key.rpartition("+") if "+" in key else (key, "", "")
            self._texts[msg_id][name] = text

    def get(self, msg_id: str, default: str = "", **kwargs: Any) -> str:
        """Return the formatted text. Never raises: after a formatting error, the text describes that error."""
        template = self._template(msg_id, kwargs)
        if template is None:
            return default or f"<{msg_id}>"
        try:
            # `str.format` takes a quarter of the time.
            return _formatter.vformat(template, (), kwargs) if "!n}" in template else template.format(**kwargs)
        except Exception as error:  # noqa: BLE001 - a value's own __format__ may raise anything
            return f"<Formatting error for '{msg_id}': {_error_text(error)}>"

    def _template(self, msg_id: str, names: Iterable[str]) -> str | None:
        texts = self._texts.get(msg_id, {})
        for name in names:
            if name in texts:
                return self._template(f"{msg_id}+{name}", names) or texts[name]
        return texts.get("")


def _error_text(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an exception's own __str__ may raise anything
        return type(error).__name__


class MessageBus:
    """Passes messages to its renderer. Without a renderer, they are dropped."""

    shows_ids = False

    def __init__(self, store: MessageStore) -> None:
        self.store = store
        self._render: Callable[..., None] = _drop

    def set_renderer(self, renderer: Renderer) -> None:
        self._render = renderer.render
        self.shows_ids = getattr(renderer, "shows_ids", False) is True

    def debug(self, msg_id: str, **kwargs: Any) -> None:
        self._render(msg_id, "debug", **kwargs)

    def info(self, msg_id: str, **kwargs: Any) -> None:
        self._render(msg_id, "info", **kwargs)

    def warning(self, msg_id: str, **kwargs: Any) -> None:
        self._render(msg_id, "warning", **kwargs)

    def error(self, msg_id: str, **kwargs: Any) -> None:
        self._render(msg_id, "error", **kwargs)


def _drop(*_message: str, **_values: Any) -> None:
    pass


bus = MessageBus(MessageStore())
