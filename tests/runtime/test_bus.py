import pytest

from cascade.runtime.bus import MessageBus
from cascade.runtime.events import Event, RunStarted, TaskEvent, TaskExecutionFinished, TaskSkipped


def test_a_handler_of_a_base_class_receives_subclasses_in_order_of_subscription() -> None:
    bus, seen = MessageBus(), list[object]()
    bus.subscribe(Event, lambda e: seen.append("event"))
    bus.subscribe(TaskSkipped, lambda e: seen.append("skipped"))
    bus.subscribe(TaskEvent, lambda e: seen.append("task"))
    bus.publish(TaskSkipped())
    assert seen == ["event", "skipped", "task"]
    bus.publish(RunStarted())
    assert seen == ["event", "skipped", "task", "event"]


def test_a_subscription_filters_by_failure_and_by_item() -> None:
    bus, seen = MessageBus(), list[str]()
    bus.subscribe(TaskEvent, lambda e: seen.append(f"{e.task_name} of all"))
    bus.subscribe(TaskEvent, lambda e: seen.append(f"{e.task_name} of items"), of_items=True)
    bus.subscribe(TaskEvent, lambda e: seen.append(f"{e.task_name} of others"), of_items=False, failures_only=True)
    bus.publish(TaskExecutionFinished(task_name="item", map_id="m", status="Failed"))
    bus.publish(TaskExecutionFinished(task_name="task", status="Failed"))
    bus.publish(TaskExecutionFinished(task_name="good", status="Succeeded"))
    assert seen == ["item of all", "item of items", "task of all", "task of others", "good of all"]


def test_a_later_subscription_receives_the_next_events() -> None:
    bus, seen = MessageBus(), list[object]()
    bus.publish(RunStarted())
    bus.subscribe(RunStarted, seen.append)
    bus.publish(event := RunStarted())
    assert seen == [event]


def test_the_first_exception_of_a_handler_is_logged_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    bus, seen = MessageBus(), list[object]()

    def broken(event: Event) -> None:
        raise ValueError("my bug")

    bus.subscribe(Event, broken)
    bus.subscribe(Event, seen.append)
    for _ in range(3):
        bus.publish(RunStarted())
    assert len(seen) == 3
    assert len(caplog.records) == 1
    assert "my bug" in caplog.text


async def test_a_drain_is_awaited_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    bus, drained = MessageBus(), list[str]()

    async def broken(run_id: str) -> None:
        raise OSError

    async def fine(run_id: str) -> None:
        drained.append(run_id)

    bus.on_drain(broken)
    bus.on_drain(fine)
    await bus.drain("r")
    assert drained == ["r"]
    assert "last events of run r" in caplog.text


def test_events_compare_by_value_and_every_field_has_a_default() -> None:
    assert RunStarted(event_id="1", timestamp=2.0) == RunStarted(event_id="1", timestamp=2.0)
    assert TaskSkipped().reason == "Unknown"
