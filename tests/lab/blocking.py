"""Detects blocking calls of the product in an event loop: a file, a sleep, a blocking socket, a lock that is held."""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from blockbuster import BlockBuster
from blockbuster.blockbuster import BlockBusterFunction

import cascade

_PRODUCT = str(Path(cascade.__file__).parent)
_TESTS = str(Path(__file__).parent.parent)

EXEMPT: dict[tuple[str, str], str] = {
    ("logging/__init__.py", "handle"): "the handlers are those of the program",
    ("opentelemetry/sdk/trace/export/__init__.py", "on_end"): "the exporter is that of the program",
    ("cascade/_forks.py", "__enter__"): "waits for a few statements of another thread, or for a fork",
    ("connectors/mqtt/options.py", "_tls_context"): "a connector checks its files when it is constructed",
    ("connectors/mqtt/session.py", "wake"): "sleeps for 0.1 ms, to release the lock of the interpreter",
    (
        "adapters/caching/disk.py",
        "look_up",
    ): "reads up to 64 KiB, in less time than a thread starts; threads read from a slow disk",
    ("testing/_http_server.py", "stop"): "a test ends its server",
}
"""Functions that may block, by the end of their file's path and their name, with the reason."""


@contextmanager
def blocking_calls_raise() -> Iterator[list[str]]:
    """Raise BlockingError in each blocking call of the product in an event loop, and yield the list of stack traces.

    Calls of the tests are allowed: they contain functions of users that block the event loop.
    """
    detector, found = BlockBuster(), list[str]()
    for function in detector.functions.values():
        function.can_block_predicate = partial(_may_block, function, function.can_block_predicate, found)
    detector.activate()
    try:
        yield found
    finally:
        detector.deactivate()


def _may_block(
    function: BlockBusterFunction,
    never_blocks: Callable[..., bool],
    found: list[str],
    *args: object,
    **kwargs: object,
) -> bool:
    if never_blocks(*args, **kwargs):
        return True
    frame = sys._getframe(2)
    stack = list(_stack(frame))
    if not _is_by_product(stack) or any(_is_exempt(each, function) for each in stack):
        return True
    found.append(f"{function.full_name}\n{''.join(traceback.format_stack(frame))}")
    return False


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_by_product(stack: list[FrameType]) -> bool:
    """Return whether the innermost frame outside of libraries belongs to the product, and not to a test."""
    own = next((name for each in stack if (name := each.f_code.co_filename).startswith((_PRODUCT, _TESTS))), "")
    return own.startswith(_PRODUCT)


def _is_exempt(frame: FrameType, function: BlockBusterFunction) -> bool:
    path, name = frame.f_code.co_filename.replace("\\", "/"), frame.f_code.co_name
    exempt = [*EXEMPT, *((file, each) for file, names in function.can_block_functions for each in names)]
    return any(path.endswith(file) and name == each for file, each in exempt)
