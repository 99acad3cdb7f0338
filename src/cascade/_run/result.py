"""`RunResult`: the outcome of a run, with its identity, counts, failures and telemetry."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

from cascade.connectors.report import ConnectorReport
from cascade.runtime.exceptions import traceback_of
from cascade.spec.failure import Failure
from cascade.telemetry.sanitize import error_text

T = TypeVar("T")

Status = Literal["Succeeded", "Failed", "Cancelled"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RunResult(Generic[T]):
    """The end of a run. It has no truth value: compare `status`, or test whether `error` is None.

    A result can be pickled if its value, its error and its failures can. A copy has no traceback.

    Attributes:
        value: The value of the target; None if the run has none.
        error: The exception that `unwrap` raises; None if there is none.
        status: "Succeeded", "Failed" or "Cancelled", as in the last message of the run. A run that exceeds its timeout has
            failed, with a `TimeoutError`. A run whose `strict` connector has lost telemetry has succeeded: it has its value,
            and a `TelemetryLostError`.
        run_id: The id of the run.
        trace_id: The id of its trace: that of the caller, if the run has joined one.
        trace_url: The link to its trace, from CASCADE_TRACE_URL. None without this variable, and without a connector.
        duration: Seconds from the start to the end of the run, without the connection of the connector.
        counts: The number of tasks by outcome, as in the attributes `cascade.run.tasks.*`: `completed`, `failed`,
            `cancelled`, `skipped`, `cached` (a part of `skipped`), `retried` and `held_back`. A map counts in addition to its
            items. Tasks of nested runs are not counted.
        failures: The failures after which the run continued.
        telemetry: For each connector, its numbers of sent, lost and retried messages during the run, and its state at the
            end. The keys are the names in CASCADE_CONNECTOR, or names of classes without "Connector" in lower case. Runs
            at the same time count the messages of a common connector together.
    """

    value: T | None
    error: BaseException | None
    status: Status
    run_id: str
    trace_id: str
    trace_url: str | None
    duration: float
    counts: Mapping[str, int]
    failures: tuple[Failure, ...] = ()
    telemetry: Mapping[str, ConnectorReport] = field(default_factory=dict)
    _traceback: TracebackType | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.error is not None:  # each raise adds frames to the traceback of the error itself
            object.__setattr__(self, "_traceback", traceback_of(self.error))

    def unwrap(self) -> T:
        """Return the value, or raise the error with the traceback of the run.

        Raises:
            BaseException: The error of the run, unchanged.
        """
        error, trace = self.error, self._traceback
        if error is None:
            value: Any = self.value
            return value  # type: ignore[no-any-return]
        del self  # the traceback of the error refers to this frame
        try:
            raise BaseException.with_traceback(error, trace)
        finally:
            del error, trace

    def __bool__(self) -> bool:
        raise TypeError(
            "A RunResult has no truth value: compare result.status with 'Succeeded', or test whether result.error is None"
        )

    def __repr__(self) -> str:
        error = "" if self.error is None else f": {error_text(self.error)}"
        return f"<RunResult {self.run_id} {self.status} in {self.duration:.2f} s{error}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_traceback": None}
