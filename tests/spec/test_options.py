"""Options of a task: what `cs.task` accepts, and which tasks have the options of another one."""

import copy
import functools
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

import cascade as cs
from cascade.adapters.caching import FileExistenceCache
from cascade.graph.build import build_graph
from cascade.graph.model import Node, NodeWithOptions
from cascade.spec.caching import NO_CACHE
from cascade.spec.retry import MAX_DELAY, RetryPolicy
from cascade.spec.task import Task


class Cache(FileExistenceCache):
    """A cache whose copies are equal."""

    def __eq__(self, other: object) -> bool:
        return type(other) is Cache

    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


CACHE = Cache("none")


def is_busy(error: Exception) -> bool:
    return "busy" in str(error)


def load(path: str = "") -> str:
    return path


ALL: dict[str, Any] = {
    "name": "fetch",
    "retries": 3,
    "retry_delay": 1.0,
    "backoff": 2.0,
    "max_delay": 60,
    "jitter": 0.1,
    "retry_on": (ConnectionError, is_busy),
    "timeout": 30,
    "cache": CACHE,
    "constraints": {"cpu": 2},
    "label": "one",
    "tags": ["etl", "nightly"],
    "threaded": False,
}
declare: Any = cs.task(**ALL)
POLICY = RetryPolicy(3, 1.0, 2.0, 60, 0.1, (ConnectionError, is_busy))


def node_of(lazy: Any) -> Node:
    return build_graph(lazy).nodes[0]


def fields_of(lazy: Any) -> tuple[Any, ...]:
    node = node_of(lazy)
    amounts = None if node.constraints is None else node.constraints.requirements
    return node.retry_policy, node.timeout, node.cache_policy, amounts, node.label, node.tags, node.threaded


EXPECTED = (POLICY, 30, CACHE, {"cpu": 2}, "one", ("etl", "nightly"), False)


@declare  # type: ignore[untyped-decorator]
def module_task(path: str = "") -> str:
    return path


class Store:
    @declare  # type: ignore[untyped-decorator]
    def read(self, path: str = "") -> str:
        return path

    @classmethod
    @declare  # type: ignore[untyped-decorator]
    def of_class(cls, path: str = "") -> str:
        return path

    @staticmethod
    @declare  # type: ignore[untyped-decorator]
    def static(path: str = "") -> str:
        return path


BOUND_BY_CLASSMETHOD = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="since Python 3.13, classmethod does not bind a task"
)


@pytest.mark.parametrize(
    "task",
    [
        cs.task(**ALL)(load),
        cs.task(load, **ALL),
        Task(load, **ALL),
        Store().read,
        pytest.param(Store().of_class, marks=BOUND_BY_CLASSMETHOD),
        pytest.param(Store.of_class, marks=BOUND_BY_CLASSMETHOD),
        Store.static,
        cs.task(cs.task(load, **ALL)),
        cs.task(functools.partial(cs.task(load, **ALL), path="a")),
        copy.copy(module_task),
        copy.deepcopy(module_task),
        pickle.loads(pickle.dumps(Task(load, **ALL))),  # noqa: S301 - its own bytes
        cs.task(cs.task(load), **ALL),
    ],
    ids=range(13),
)
def test_calls_and_maps_have_the_options_of_their_task(task: Any) -> None:
    assert task.name == "fetch"
    assert fields_of(task()) == EXPECTED
    assert fields_of(task.map(path=["a"])) == (*EXPECTED[:-1], False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))])  # noqa: S301 - own bytes
def test_a_copy_of_a_task_without_a_cache_has_none(copied: Callable[[Any], Any]) -> None:
    assert node_of(copied(Task(load, cache=False))()).cache_policy is NO_CACHE


def test_a_task_of_a_task_replaces_single_options() -> None:
    base = cs.task(load, **ALL)
    other = cs.task(base, name="other", retries=1, tags=(), constraints={}, timeout=5, threaded=True)
    assert other.name == "other"
    assert fields_of(other()) == (RetryPolicy(1), 5, CACHE, {}, "one", (), True)
    assert fields_of(base()) == EXPECTED, "the original is unchanged"
    assert fields_of(cs.task(base, retries=0, cache=False, label="")()) == (
        *(None, 30, NO_CACHE, {"cpu": 2}, "", ("etl", "nightly"), False),
    )


def test_the_default_options_of_retries_are_those_of_a_policy() -> None:
    assert (
        node_of(cs.task(load, retries=2)()).retry_policy == RetryPolicy(2) == RetryPolicy(2, 0.0, 1.0, MAX_DELAY, 0.0)
    )


CHAINS: list[tuple[Callable[[Any], Any], int, Any]] = [
    (lambda lazy: lazy.with_retry(1), 0, RetryPolicy(1)),
    (lambda lazy: lazy.with_retry(0), 0, None),
    (lambda lazy: lazy.with_timeout(5), 1, 5),
    (lambda lazy: lazy.with_timeout(None), 1, None),
    (lambda lazy: lazy.with_cache(None), 2, NO_CACHE),
    (lambda lazy: lazy.with_constraints(gpu=1), 3, {"gpu": 1}),
    (lambda lazy: lazy.with_constraints(), 3, {}),
    (lambda lazy: lazy.with_label("two"), 4, "two"),
    (lambda lazy: lazy.with_label(None), 4, ""),
    (lambda lazy: lazy.with_tags("a", "b", "a"), 5, ("a", "b")),
    (lambda lazy: lazy.with_tags(), 5, ()),
]


@pytest.mark.parametrize("make", [lambda task: task(), lambda task: task.map(path=["a"])], ids=["call", "map"])
@pytest.mark.parametrize(("chain", "index", "value"), CHAINS, ids=range(len(CHAINS)))
def test_a_chain_method_overrides_one_option(
    make: Callable[[Any], Any], chain: Callable[[Any], Any], index: int, value: Any
) -> None:
    expected = list(EXPECTED)
    expected[index] = value
    lazy = chain(make(cs.task(load, **ALL)))
    assert fields_of(lazy) == tuple(expected)
    assert fields_of(copy.copy(lazy)) == tuple(expected)
    expected = [None, None, None, None, None, (), None]
    expected[index] = value
    assert fields_of(chain(make(cs.task(load)))) == tuple(expected), "and of a task without options"


def test_the_chain_methods_of_a_copy_leave_the_original() -> None:
    lazy = cs.task(load)().with_tags("a")
    copy.copy(lazy).with_tags("b").with_label("x")
    assert fields_of(lazy)[4:6] == (None, ("a",))


def test_a_call_of_a_task_with_options_weighs_as_much_as_another_one() -> None:
    with_options, without = module_task("a"), cs.task(load)("a")
    assert vars(with_options).keys() == vars(without).keys()
    assert type(node_of(without)) is Node
    assert not hasattr(node_of(without), "__dict__")
    assert type(node_of(with_options)) is NodeWithOptions
    assert node_of(with_options).retry_policy is node_of(module_task("b")).retry_policy, "it is made once"
    assert "options" not in vars(cs.task(load))


def test_an_amount_of_a_task_may_be_an_input() -> None:
    task = cs.task(load, constraints=cs.with_constraints(gpu=cs.Param("gpus", default=1)))
    assert [edge.arg_name for edge in build_graph(task()).edges] == ["gpu"]
    assert cs.run(task("a"), system_resources={"gpu": 1}, log_level="OFF") == "a"
    with pytest.raises(ValueError, match="exceeds total system capacity"):
        cs.run(task("a"), params={"gpus": 2}, system_resources={"gpu": 1}, log_level="OFF")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"retrys": 3},
            TypeError,
            "task() has no option 'retrys'; did you mean 'retries'? The options are backoff, cache, ",
        ),
        ({"zzz": None}, TypeError, "task() has no option 'zzz'; The options"),
        ({"retries": "3"}, TypeError, "task(): retries must be an integer from 0, the number of retries"),
        ({"retries": True}, TypeError, "task(): retries must be an integer from 0"),
        ({"retries": -1}, ValueError, "task(): retries must be an integer from 0"),
        (
            {"retries": 3, "retry_delay": -1},
            ValueError,
            "task(): retry_delay must be a finite number of seconds from 0",
        ),
        ({"retries": 3, "retry_delay": 9, "max_delay": 5}, ValueError, "task(): retry_delay=9 exceeds max_delay=5"),
        ({"retries": 3, "backoff": "2"}, TypeError, "task(): backoff must be a finite number from 0"),
        ({"retries": 3, "jitter": 2}, ValueError, "task(): jitter must be a share from 0 to 1"),
        ({"retries": 3, "retry_on": KeyboardInterrupt}, TypeError, "task(): retry_on must have exception classes and"),
        ({"retries": 3, "retry_on": []}, ValueError, "task(): retry_on is empty"),
        *(
            ({name: ALL[name]}, TypeError, f"task(): {name}= has no effect without retries=; add the number of retries")
            for name in ("retry_delay", "backoff", "max_delay", "jitter", "retry_on")
        ),
        ({"timeout": 0}, ValueError, "task(): timeout must be a finite number of seconds above 0"),
        ({"timeout": "30"}, TypeError, "task(): timeout must be a finite number of seconds above 0"),
        ({"cache": "dir"}, TypeError, "task(): cache must be a cs.DiskCache"),
        ({"cache": FileExistenceCache}, TypeError, "task(): cache must be a cs.DiskCache"),
        ({"cache": True}, TypeError, "task(): cache must be a cs.DiskCache"),
        (
            {"constraints": 2},
            TypeError,
            "task(): constraints must be amounts by resource name, such as {'cpu': 2}, got a int",
        ),
        ({"constraints": {1: 2}}, TypeError, "task(): constraints must be amounts by resource name"),
        ({"label": 5}, TypeError, "label must be a text or a function that returns one, got int"),
        ({"tags": "etl"}, TypeError, "tags must be several texts, got 'etl'"),
    ],
)
def test_an_invalid_option_is_refused_at_its_declaration(options: Any, error: type[Exception], text: str) -> None:
    for declare in (lambda: cs.task(**options), lambda: cs.task(load, **options), lambda: Task(load, **options)):
        with pytest.raises(error) as caught:
            declare()
        assert str(caught.value).startswith(text)


def test_an_option_that_is_none_is_not_given() -> None:
    assert cs.task(load, **dict.fromkeys(ALL)).options is None
    assert cs.task(load, **dict.fromkeys(ALL)).name == "load"
