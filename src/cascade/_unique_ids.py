"""Ids that are unique among all processes, but not secret. A random UUID costs six times as much."""

import itertools
import os
from uuid import UUID

_count = itertools.count()


def _new_prefix() -> str:
    # The program may have seeded `random`, whose sequence Cascade must not change.
    return str(UUID(bytes=os.urandom(16), version=4))[:-12]


_prefix = _new_prefix()


def _new_process() -> None:
    global _prefix  # noqa: PLW0603 - a forked child must not repeat the ids of its parent
    _prefix = _new_prefix()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_process)


def unique_id() -> str:
    """Return an id in the form of a UUID of version 4: random bits of the process, and a number."""
    return f"{_prefix}{next(_count):012x}"
