"""Spans lost in a burst with a reachable collector and the defaults of Cascade and of the SDK."""

from collections.abc import Iterator

from benchmarks import _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._measure import Row, amount
from benchmarks._process import call
from benchmarks._rounds import rounds
from benchmarks._scale import Scale


def rows(scale: Scale) -> Iterator[Row]:
    size = scale.burst
    for label, protocol in PROTOCOLS.items():
        found = rounds(scale, label)
        ours = [100 * (1 - one.task_spans / size) for one in found]
        sample = found[0].received["samples"]["noop"]
        theirs = []
        with Collector() as collector:
            for _ in range(scale.traced_rounds):
                endpoint = collector.endpoint(protocol)
                call(
                    _runs.emit,
                    size=size,
                    protocol=protocol,
                    endpoint=endpoint,
                    sample=sample,
                    queue=_runs.DEFAULT_QUEUE,
                )
                theirs.append(100 * (1 - int(collector.command("count")) / (size + 1)))
        name = f"lost in a burst of {size:,}, {label}, defaults"
        yield Row(name, amount(ours, "%"), amount(theirs, "%"), "", "0 %", not any(ours))
