from collections.abc import Callable
from typing import Any

import pytest

from tests.connectors.otel.tracing import Collector
from tests.runtime.test_memory import SHAPES, LiveValues, check_that_all_is_freed


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_finished_run_holds_nothing(shape: Callable[[LiveValues], Any], collector: Collector) -> None:
    capture = ["params", "arguments", "results"]
    check_that_all_is_freed(shape, collector.connector(capture=capture))
