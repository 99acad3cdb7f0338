"""Other engines, those that are installed, on the same graph: no-op tasks in one process, nothing traced."""

from collections.abc import Iterator
from importlib.util import find_spec

import cascade as cs
from benchmarks import _graphs
from benchmarks._measure import Pair, Row, interleaved, timed, versus
from benchmarks._peers import PEERS
from benchmarks._process import call
from benchmarks._scale import Scale


def measure(peer: str, shape: str, size: int, rounds: int) -> list[Pair]:
    """Seconds per task of ours and of theirs, after a run of each that is not counted."""
    needs = _graphs.SHAPES[shape](size)
    theirs, target = PEERS[peer](needs), _graphs.workflow(needs)

    def subject() -> float:
        return timed(lambda: cs.run(target, log_level="ERROR")) / size

    def baseline() -> float:
        return timed(theirs) / size

    interleaved(subject, baseline, 1)
    return interleaved(subject, baseline, rounds)


def rows(scale: Scale) -> Iterator[Row]:
    installed = [peer for peer in PEERS if find_spec(peer)]
    for peer in installed:
        for shape, size in scale.peers:
            pairs = call(measure, peer=peer, shape=shape, size=size, rounds=scale.traced_rounds)
            yield versus(f"{shape} of {size:,}, against {peer}, per task", pairs, "µs", scale=1e6)
    if missing := [peer for peer in PEERS if peer not in installed]:
        yield Row(f"peers that are not installed: {', '.join(missing)}", "", "")
