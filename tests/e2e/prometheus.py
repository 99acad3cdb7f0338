"""Questions to a Prometheus."""

import json
import time
import urllib.parse
import urllib.request
from typing import Any

from stack.process import ServerError, until
from tests.lab.waiting import HANG

Labels = dict[str, str]


class Prometheus:
    """Its query API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def values(self, expr: str) -> list[tuple[Labels, float]]:
        """What an expression is now, without what is not a number."""
        found = self._get("query", {"query": expr})["result"]
        values = [(sample["metric"], float(sample["value"][1])) for sample in found]
        return [(labels, value) for labels, value in values if value == value]  # noqa: PLR0124 - NaN is not itself

    def wait_for(self, expr: str) -> list[tuple[Labels, float]]:
        """The values, once there are any."""
        until(lambda: bool(self.values(expr)), f"Prometheus knows {expr}")
        return self.values(expr)

    def wait_for_value(self, expr: str, expected: float) -> None:
        """Return once the expression has a single value, which is this one."""
        found = list[float]()

        def is_expected() -> bool:
            found[:] = [value for _, value in self.values(expr)]
            return found == [expected]

        try:
            until(is_expected, f"{expr} is {expected}")
        except ServerError as error:
            raise AssertionError(f"{error}; it is {found}") from None

    def wait_for_trace_ids(self, expr: str) -> set[str]:
        """The traces to which the exemplars of the expression's metrics lead, once there are any."""
        until(lambda: bool(self._trace_ids(expr)), f"{expr} has exemplars")
        return self._trace_ids(expr)

    def label_values(self, selector: str, label: str) -> set[str]:
        """The values of a label, as a dashboard's variable lists them."""
        return set(self._get(f"label/{label}/values", {"match[]": selector}))

    def rules(self) -> list[dict[str, Any]]:
        """The groups of rules that it has loaded."""
        groups: list[dict[str, Any]] = self._get("rules", {})["groups"]
        return groups

    def _get(self, path: str, query: dict[str, str]) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=HANG) as answer:  # noqa: S310 - our own Prometheus
            return json.load(answer)["data"]

    def _trace_ids(self, expr: str) -> set[str]:
        now = time.time()
        found = self._get("query_exemplars", {"query": expr, "start": str(now - 3600), "end": str(now + 60)})
        return {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}
