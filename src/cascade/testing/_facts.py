"""Short texts about a span."""

from collections import Counter
from collections.abc import Iterable

from cascade.telemetry.parts import PART_EVENT
from cascade.testing._timeline import duration
from cascade.testing.spans import ReceivedEvent, ReceivedSpan

MAX_EVENTS = 3
"""Events shown of a span."""

_INDEX, _LABEL = "cascade.map.index", "cascade.task.label"
_ATTEMPT = "cascade.task.attempt"
_QUIET_KINDS = {"INTERNAL", "UNSPECIFIED"}
_MAX_MESSAGE = 60
_MAX_NAMES = 2


def label(span: ReceivedSpan) -> str:
    """The span's name, with the label or the index of a map's item, and the number of an attempt."""
    name = span.name or "(no name)"
    shown = span.attributes.get(_LABEL, span.attributes.get(_INDEX))
    index = "" if shown is None else f"[{shown}]"
    number = span.attributes.get(_ATTEMPT)
    counts = number is not None and (is_attempt(span) or number not in {0, 1})
    return f"{name}{index} #{number}" if counts else f"{name}{index}"


def facts(span: ReceivedSpan, *, is_root: bool, attempts: int) -> list[str]:
    """Short remarks on a span, the important ones first."""
    found = [
        _error(span),
        counted(attempts - 1, "retry") if attempts > 1 else "",
        _reason(span),
        "" if is_root or span.kind in _QUIET_KINDS else span.kind.lower(),
    ]
    return [fact for fact in found if fact]


def is_wait(span: ReceivedSpan) -> bool:
    return span.name.endswith(" wait")


def is_skipped(span: ReceivedSpan) -> bool:
    return any(key.endswith("result") and value == "skip" for key, value in span.attributes.items())


def is_attempt(span: ReceivedSpan) -> bool:
    return span.name.endswith(" attempt")


def told_events(span: ReceivedSpan) -> list[ReceivedEvent]:
    """The events whose content is not on the span's own line. Parts are drawn below their run or map."""
    known = {PART_EVENT, "exception"} if span.status == "ERROR" else {PART_EVENT}
    return [event for event in span.events if event.name not in known]


def event_text(event: ReceivedEvent, span: ReceivedSpan) -> str:
    """An event's name, when it was, and its attributes."""
    attributes = dict(event.attributes)
    attributes.pop("exception.stacktrace", None)
    if event.name == "exception":
        said = _exception(attributes.get("exception.type"), attributes.get("exception.message"))
    else:
        said = " ".join(f"{key}={value}" for key, value in attributes.items())
    return f"{event.name}  +{duration(event.time_ns - span.start_ns)}  {said}".rstrip()


def consumed(names: Iterable[str]) -> str:
    """Which spans a span is linked to, by name if they are few: `"← load, clean"`."""
    counts = Counter(names)
    if not counts:
        return ""
    if len(counts) > _MAX_NAMES:
        return f"← {counted(counts.total(), 'span')}"
    return "← " + ", ".join(name if count == 1 else f"{count:,} x {name}" for name, count in counts.items())


def counted(count: int, noun: str) -> str:
    """`"1 retry"`, `"1,204 spans"`."""
    plural = f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _error(span: ReceivedSpan) -> str:
    if span.status != "ERROR":
        return ""
    raised = next((event.attributes for event in span.events if event.name == "exception"), {})
    kind = span.attributes.get("error.type") or raised.get("exception.type") or "ERROR"
    return f"✗ {_exception(kind, span.status_message or raised.get('exception.message'))}"


def _exception(kind: object, message: object) -> str:
    kind, text = str(kind or ""), str(message or "")
    text = text.removeprefix(f"{kind}: ")
    text = text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…"
    return f"{kind}: {text}" if text and text != kind else kind


def _reason(span: ReceivedSpan) -> str:
    reasons = (value for key, value in span.attributes.items() if key.startswith("cascade.") and key.endswith("reason"))
    reason = str(next(reasons, ""))
    if not is_skipped(span) or span.name.endswith(" skipped"):
        return reason
    return f"skipped: {reason}".removesuffix(": ")
