"""Which of many alike children are shown, and what is said of the others."""

from dataclasses import dataclass

from cascade.testing._facts import counted
from cascade.testing._forest import Node
from cascade.testing._timeline import span_of_durations

_SLOWEST = 3


@dataclass(frozen=True, slots=True)
class Fold:
    """Children of one name that are not shown."""

    nodes: tuple[Node, ...]

    @property
    def start_ns(self) -> int:
        return min(node.span.start_ns for node in self.nodes)

    @property
    def end_ns(self) -> int:
        return max(node.span.end_ns for node in self.nodes)

    @property
    def errors(self) -> int:
        return sum(node.span.status == "ERROR" for node in self.nodes)

    def text(self) -> str:
        """How many, from how fast to how slow, with how many errors."""
        lengths = [node.span.end_ns - node.span.start_ns for node in self.nodes]
        below = sum(node.size for node in self.nodes) - len(self.nodes)
        said = [
            f"… {len(self.nodes):,} more {self.nodes[0].span.name}",
            span_of_durations(min(lengths), max(lengths)) if any(lengths) else "",
            counted(self.errors, "error") if self.errors else "",
            f"{counted(below, 'span')} below" if below else "",
        ]
        return ", ".join(part for part in said if part)


def folded(children: list[Node], max_children: int) -> list[Node | Fold]:
    """The children in start order; where more than so many share a name, the slowest and the troubled ones and a fold."""
    by_name: dict[str, list[Node]] = {}
    for child in children:
        by_name.setdefault(child.span.name, []).append(child)
    hidden = {name: _hidden(alike, max_children) for name, alike in by_name.items() if len(alike) > max_children}
    gone = {id(node) for nodes in hidden.values() for node in nodes}
    shown = [child for child in children if id(child) not in gone]
    last = {child.span.name: number for number, child in enumerate(shown)}
    rows: list[Node | Fold] = []
    for number, child in enumerate(shown):
        rows.append(child)
        if last[child.span.name] == number and child.span.name in hidden:
            rows.append(Fold(tuple(hidden[child.span.name])))
    return rows


def _hidden(alike: list[Node], max_children: int) -> list[Node]:
    slowest = sorted(alike, key=lambda node: node.span.start_ns - node.span.end_ns)
    troubled = [node for node in slowest if node.troubled][:max_children]
    kept = {id(node) for node in troubled}
    room = min(_SLOWEST, max_children - len(troubled))
    kept |= {id(node) for node in [node for node in slowest if id(node) not in kept][:room]}
    return [node for node in alike if id(node) not in kept]
