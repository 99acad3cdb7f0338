"""The bus of messages for the terminal and the log; the MessageBus of `cascade.runtime.bus` has events."""

import json
from pathlib import Path
from typing import Any, Protocol

LOCALES = Path(__file__).with_name("locales")


class Renderer(Protocol):
    """Shows a message. Levels are in lower case.

    A renderer with a true attribute `shows_subject` finds the ids of the message's run and task in
    `cascade.messaging.subject`.
    """

    def render(self, msg_id: str, level: str, **kwargs: Any) -> None: ...


class MessageStore:
    """The texts of one locale, by id, from all JSON files of its folder.

    The text with the id `message+name` replaces that of `message` if the value `name` is given. If several apply, the
    first of the given values decides.
    """

    def __init__(self, locale: str = "en") -> None:
        self._messages: dict[str, str] = {}
        for path in sorted((LOCALES / locale).glob("*.json")):
            self._messages.update(json.loads(path.read_text(encoding="utf-8")))

    def get(self, msg_id: str, default: str = "", **kwargs: Any) -> str:
        """The text with its places filled in. It never raises: the text describes an error of formatting."""
        special = (self._messages.get(f"{msg_id}+{name}") for name in kwargs)
        template = next(filter(None, special), self._messages.get(msg_id))
        if template is None:
            return default or f"<{msg_id}>"
        try:
            return template.format(**kwargs)
        except Exception as error:  # noqa: BLE001 - a value's own __format__ may do anything
            return f"<Formatting error for '{msg_id}': {_described(error)}>"


def _described(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - and so may an exception's own __str__
        return type(error).__name__


class MessageBus:
    """Passes messages to the renderer that is set; without one they are dropped."""

    shows_subject = False

    def __init__(self, store: MessageStore) -> None:
        self.store = store
        self._renderer: Renderer | None = None

    def set_renderer(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self.shows_subject = getattr(renderer, "shows_subject", False) is True

    def debug(self, msg_id: str, **kwargs: Any) -> None:
        self._render(msg_id, "debug", kwargs)

    def info(self, msg_id: str, **kwargs: Any) -> None:
        self._render(msg_id, "info", kwargs)

    def warning(self, msg_id: str, **kwargs: Any) -> None:
        self._render(msg_id, "warning", kwargs)

    def error(self, msg_id: str, **kwargs: Any) -> None:
        self._render(msg_id, "error", kwargs)

    def _render(self, msg_id: str, level: str, kwargs: dict[str, Any]) -> None:
        if self._renderer is not None:
            self._renderer.render(msg_id, level, **kwargs)


bus = MessageBus(MessageStore())
