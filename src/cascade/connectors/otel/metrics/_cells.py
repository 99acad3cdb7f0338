"""The aggregation: plain numbers, because the SDK's, with exemplars, would cost each task ten times as much."""

import math
from bisect import bisect_left

from cascade.connectors.otel.metrics._catalogue import BOUNDS
from cascade.connectors.otel.metrics._census import Census, Key

Example = tuple[float, int, str, str]
"""An exemplar: a value, when it was measured, and the ids of its trace and span, in hex. No class: that costs more."""


class Histogram:
    """Durations in seconds: how many per bucket, and the latest example of each."""

    __slots__ = ("counts", "examples", "largest", "smallest", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.examples: dict[int, Example] = {}
        self.total = 0.0
        self.smallest = math.inf
        self.largest = -math.inf

    def record(self, value: float, example: Example | None) -> None:
        bucket = bisect_left(BOUNDS, value)
        self.counts[bucket] += 1
        self.total += value
        if value < self.smallest:  # noqa: PLR1730 - a call of min() for each task costs more than all of this
            self.smallest = value
        if value > self.largest:  # noqa: PLR1730
            self.largest = value
        if example is not None:
            self.examples[bucket] = example

    def absorb(self, other: "Histogram") -> None:
        self.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        self.examples |= other.examples
        self.total += other.total
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)


class Cells:
    """All measurements of a period, by key. What is over the census's limits is in its overflow."""

    __slots__ = ("_census", "counts", "histograms")

    def __init__(self) -> None:
        self._census = Census()
        self.histograms: dict[Key, Histogram] = {}
        self.counts: dict[Key, int] = {}

    def __bool__(self) -> bool:
        return bool(self.histograms or self.counts)

    def histogram(self, key: Key) -> Histogram:
        found = self.histograms.get(key)
        if found is None:
            found = self.histograms.setdefault(self._census.admit(key), Histogram())
        return found

    def add(self, key: Key, more: int = 1) -> None:
        if key not in self.counts:
            key = self._census.admit(key)
        self.counts[key] = self.counts.get(key, 0) + more

    def absorb(self, other: "Cells") -> None:
        for key, histogram in other.histograms.items():
            self.histogram(key).absorb(histogram)
        for key, more in other.counts.items():
            self.add(key, more)

    def forget_examples(self) -> None:
        for histogram in self.histograms.values():
            histogram.examples = {}
