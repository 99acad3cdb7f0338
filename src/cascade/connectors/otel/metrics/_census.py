"""How many attribute sets there may be: names come from user code, and a backend pays for each."""

from collections import Counter, defaultdict
from typing import Any

from cascade.connectors.otel.metrics._catalogue import Metric
from cascade.telemetry import attributes as a
from cascade.telemetry.limits import MAX_VALUE_BYTES
from cascade.telemetry.safe import text

Key = tuple[Any, ...]
"""A metric, and the values of its attributes in their order; the metric alone for what is over the limits."""

MAX_NAMES = 200
MAX_TARGETS = 200
MAX_ERROR_TYPES = 50
MAX_SETS = 1000
"""Of one metric; a request with as many for each still has less than the 4 MiB that gRPC servers take by default."""

_LIMITS = {a.TASK_NAME: MAX_NAMES, a.RUN_TARGET: MAX_TARGETS, a.ERROR_TYPE: MAX_ERROR_TYPES}


class Census:
    """Knows the attribute sets so far, and admits new ones while there is room. Not thread-safe."""

    def __init__(self) -> None:
        self._sets: Counter[Metric] = Counter()
        self._values: dict[str, set[str]] = defaultdict(set)

    def admit(self, key: Key) -> Key:
        """The key itself, or the overflow's if one more is too many. To be asked once for each key that is admitted."""
        metric: Metric = key[0]
        limited = [pair for pair in zip(metric.attributes, key[1:], strict=False) if pair[0] in _LIMITS]
        if self._sets[metric] >= MAX_SETS or any(self._is_too_many(*pair) for pair in limited):
            return (metric,)
        self._sets[metric] += 1
        for name, value in limited:
            self._values[name].add(value)
        return key

    def _is_too_many(self, name: str, value: str | None) -> bool:
        known = self._values[name]
        return value not in known and len(known) >= _LIMITS[name]


def attributes_of(key: Key) -> dict[str, Any]:
    """The attributes of a key that was admitted.

    The overflow's is the one that the metrics SDK specification has for it.
    """
    metric, *values = key
    if metric.attributes and not values:
        return {a.METRIC_OVERFLOW: True}
    pairs = zip(metric.attributes, values, strict=True)
    return {name: text(str(value), MAX_VALUE_BYTES) for name, value in pairs if value is not None}
