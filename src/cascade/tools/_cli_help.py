"""Text of the help of a command line, from docstrings."""

import inspect
import re
from types import FunctionType, MethodType
from typing import Any

from cascade.graph.build import build_graph
from cascade.graph.model import Graph
from cascade.messaging.renderer import printable

EXIT_CODES = "Exit codes: 0 success, 1 failed run, 2 usage error, 130 Ctrl-C, 143 SIGTERM."

_SECTION = re.compile(
    r"^(args|arguments|parameters|attributes|returns?|yields?|raises|examples?|notes?|see also):?\s*$"
    r"|^:(param|returns?|raises|type|rtype)\b|^-{3,}\s*$",
    re.IGNORECASE | re.MULTILINE,
)
"""First line of the sections about parameters and results, in the styles of Google, NumPy and Sphinx."""


def help_of(target: Any, function: Any = None) -> str | None:
    """Return the docstring of the function, of the program if it declares the target's task, or of this task.

    The docstrings of several targets do not count. The text ends before the first section about parameters. It is None
    without a docstring.
    """
    docs = [inspect.getdoc(function) if function is not None else None]
    tasks = _functions_of(build_graph(target))
    docs += [_program_doc(task) for task in tasks]
    docs += [inspect.getdoc(task) for task in tasks if len(tasks) == 1]
    return next((shown for doc in docs if doc and (shown := help_text(_without_sections(doc)))), None)


def _functions_of(graph: Graph) -> list[Any]:
    """Return the functions of the targets, without inputs and objects of other classes."""
    ids = set(graph.target_ids())
    nodes = [node for node in graph.nodes if node.id in ids and node.param_spec is None]
    functions = [
        node.callable_obj if node.mapping_factory is None else getattr(node.mapping_factory, "func", None)
        for node in nodes
    ]
    return [function for function in functions if isinstance(function, (FunctionType, MethodType))]


def _program_doc(task: Any) -> str | None:
    if task.__module__ != "__main__":
        return None
    doc = task.__globals__.get("__doc__")
    return inspect.cleandoc(doc) if isinstance(doc, str) else None


def _without_sections(doc: str) -> str:
    section = _SECTION.search(doc)
    return doc if section is None else doc[: section.start()]


def help_text(text: str) -> str:
    """Return the text with control characters other than line breaks escaped."""
    return "\n".join(map(printable, text.strip().split("\n")))
