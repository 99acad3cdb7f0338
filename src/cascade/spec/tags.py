"""Tags: texts that group tasks or runs, to find them in messages and spans."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_TAGS = 32
"""Largest number of tags. Each message about the end of a task has all of them."""

_ADVICE = 'give a list or tuple of texts, such as tags=["etl", "nightly"]'


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags as a tuple, each once, in the given order.

    Raises:
        TypeError: `tags` is a single text, a mapping or no iterable, or a tag is not a text.
        ValueError: A tag is empty, or `tags` has more than 32 tags.
    """
    if not isinstance(tags, Iterable) or isinstance(tags, (str, bytes, bytearray, Mapping)):
        shown = repr(tags) if isinstance(tags, str) and len(tags) <= MAX_TAGS else f"a {type(tags).__name__}"
        raise TypeError(f"tags must be several texts, got {shown}; {_ADVICE}")
    found = tuple(dict.fromkeys(_checked(tags)))
    if len(found) > MAX_TAGS:
        raise ValueError(f"tags must be at most {MAX_TAGS} texts, got {len(found)}")
    return found


def _checked(tags: Iterable[Any]) -> Iterator[str]:
    for tag in tags:
        if not isinstance(tag, str):
            raise TypeError(f"each tag must be a text, got a {type(tag).__name__}; {_ADVICE}")
        text = str.__str__(tag)  # a subclass may have no hash
        if not text.strip():
            raise ValueError(f"each tag must have at least one visible character, got {text!r}")
        yield text
