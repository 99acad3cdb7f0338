"""Client of the query API of Prometheus."""

import json
import time
import urllib.parse
import urllib.request
from typing import Any

from stack.process import ServerError, until
from tests.lab.waiting import HANG

Labels = dict[str, str]


class Prometheus:
    """Client of the query API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def values(self, expr: str) -> list[tuple[Labels, float]]:
        """Return the current values of an expression without NaN."""
        found = self._get("query", {"query": expr})["result"]
        values = [(sample["metric"], float(sample["value"][1])) for sample in found]
        return [(labels, value) for labels, value in values if value == value]  # noqa: PLR0124 - NaN differs from itself

    def wait_for(self, expr: str) -> list[tuple[Labels, float]]:
        """Return the values of an expression as soon as there are any."""
        until(lambda: bool(self.values(expr)), f"Prometheus has {expr}")
        return self.values(expr)

    def wait_for_value(self, expr: str, expected: float) -> None:
        """Wait until the expression has exactly the expected value."""
        found = list[float]()

        def is_expected() -> bool:
            found[:] = [value for _, value in self.values(expr)]
            return found == [expected]

        try:
            until(is_expected, f"{expr} is {expected}")
        except ServerError as error:
            raise AssertionError(f"{error}; it is {found}") from None

    def wait_for_trace_ids(self, expr: str) -> set[str]:
        """Return the trace ids of the exemplars of the expression's metrics, as soon as there are any."""
        until(lambda: bool(self._trace_ids(expr)), f"{expr} has exemplars")
        return self._trace_ids(expr)

    def label_values(self, selector: str, label: str) -> set[str]:
        """Return the values of a label, as in a dashboard's variable."""
        return set(self._get(f"label/{label}/values", {"match[]": selector}))

    def rules(self) -> list[dict[str, Any]]:
        """Return the loaded groups of rules."""
        groups: list[dict[str, Any]] = self._get("rules", {})["groups"]
        return groups

    def _get(self, path: str, query: dict[str, str]) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=HANG) as response:  # noqa: S310 - the Prometheus of the tests
            return json.load(response)["data"]

    def _trace_ids(self, expr: str) -> set[str]:
        now = time.time()
        found = self._get("query_exemplars", {"query": expr, "start": str(now - 3600), "end": str(now + 60)})
        return {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}
