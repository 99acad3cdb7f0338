"""No secret leaves in a message, on the terminal, or in the log in JSON."""

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

import cascade as cs
from cascade._loggers import get_logger
from cascade.spec.lazy_types import MappedLazyResult
from cascade.testing import MemoryConnector

S = "hunter2X9"
LONG = f"postgres://app:{S}longpassword@db.internal/app"


class Capturing(MemoryConnector):
    capture = frozenset({"params", "arguments", "results"})


def messages(target: Any, *, fails: bool = False, **options: Any) -> str:
    """All messages of a run, as JSON."""
    connector = Capturing()
    if fails:
        with pytest.raises(Exception, match=r".*"):
            cs.run(target, connector=connector, log_level="OFF", **options)
    else:
        cs.run(target, connector=connector, log_level="OFF", **options)
    return json.dumps(connector.payloads)


def arguments(target: Any, **options: Any) -> list[Any]:
    found = json.loads(messages(target, **options))
    return [p["body"]["metadata"]["arguments"] for p in found if "arguments" in p["body"].get("metadata", {})]


def boom(place: int) -> Any:
    raise RuntimeError("x" * (1_990 - place) + " " + LONG)


def _sync(place: int) -> Any:
    return cs.task(boom)(place)


def _in_loop(place: int) -> Any:
    return cs.task(boom, threaded=False)(place)


def _async(place: int) -> Any:
    @cs.task
    async def fails(place: int) -> None:
        boom(place)

    return fails(place)


def _item(place: int) -> Any:
    return cs.task(boom).map(place=[place])


def _retry(place: int) -> Any:
    return cs.task(boom)(place).with_retry(1)


def _resource(place: int) -> Any:
    @cs.resource
    def broken() -> Iterator[int]:
        boom(place)
        yield 1

    return cs.task(lambda value: value, name="uses")(cs.inject(broken))


def _nested(place: int) -> Any:
    return cs.task(lambda: cs.run(cs.task(boom)(place), log_level="OFF"), name="outer")()


SHAPES = [_sync, _in_loop, _async, _item, _retry, _resource, _nested]


@pytest.mark.parametrize("place", [0, 5, 15, 20, 25, 30, 60])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_error_is_masked_before_it_is_cut(shape: Callable[[int], Any], place: int) -> None:
    assert "hunt" not in messages(shape(place), fails=True)


@pytest.mark.parametrize("shape", [_sync, _item, _retry])
@pytest.mark.parametrize("log_format", ["human", "json"])
def test_an_error_is_masked_on_the_terminal(
    shape: Callable[[int], Any], log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError):
        cs.run(shape(10), log_format=log_format)
    shown = capsys.readouterr().err
    assert "RuntimeError: xxx" in shown
    assert "hunt" not in shown


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_params_are_masked_on_the_terminal(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    use = cs.task(lambda *args: None, name="use")
    params = {"api_token": S, "url": f"https://u:{S}@h/", "login": {"password": S}, "pin": 1234, "user": "bob"}
    cs.run(use(*map(cs.Param, params)), params=params, log_format=log_format)
    shown = capsys.readouterr().err
    assert S not in shown
    assert "1234" not in shown
    assert "bob" in shown


def test_positional_arguments_are_masked_by_the_parameter() -> None:
    @cs.task
    def login(user: str, password: str, /, token: str, *keys: str, api_key: str = "", **more: str) -> None: ...

    found = arguments(login("bob", S, S, "k", api_key=S, secret=S))
    assert found == [{"0": "bob", "1": "***", "2": "***", "3": "k", "api_key": "***", "secret": "***"}]


def test_further_positional_arguments_are_masked_by_the_name_of_args() -> None:
    @cs.task
    def login(user: str, *passwords: str) -> None: ...

    assert arguments(login("bob", S, S)) == [{"0": "bob", "1": "***", "2": "***"}]


class Client:
    def login(self, user: str, password: str) -> None: ...

    @staticmethod
    def check(password: str) -> None: ...


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda: cs.task(Client().login)("bob", S), {"0": "bob", "1": "***"}),
        (lambda: cs.task(Client.check, name="check")(S), {"0": "***"}),
        (lambda: cs.task(functools.partial(Client().login, "bob"), name="login")(S), {"0": "***"}),
        (
            lambda: cs.task(lambda user, password: None, name="login")("bob", password=S),
            {"0": "bob", "password": "***"},
        ),
    ],
)
def test_methods_and_partials_are_masked(call: Callable[[], Any], shown: Any) -> None:
    assert arguments(call()) == [shown]


def test_inputs_with_a_secret_name_are_masked_whatever_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DB_PASSWORD", S)

    @cs.task
    def use(first: str, second: Any, third: str, fourth: str) -> None: ...

    target = use(cs.Env("DB_PASSWORD"), [cs.Param("api_token")], third=cs.Param("pin"), fourth=cs.Param("user"))
    found = messages(target, params={"api_token": S, "pin": S, "user": "bob"})
    assert S not in found
    assert arguments(target, params={"api_token": S, "pin": S, "user": "bob"}) == [
        {"0": "***", "1": "***", "third": "***", "fourth": "bob"}
    ]


def test_results_of_tasks_with_a_secret_name_are_masked() -> None:
    @cs.task
    def get_token() -> str:
        return S

    @cs.task
    def use(value: str) -> str:
        return "done"

    assert S not in messages(use(get_token()))


@pytest.mark.parametrize("keyword", ["password", "value"])
def test_items_of_a_map_are_masked(keyword: str) -> None:
    @cs.task
    def by_keyword(password: str) -> None: ...

    @cs.task
    def by_position(value: str, /) -> None: ...

    if keyword == "password":
        assert S not in messages(by_keyword.map(password=[S, S]))
    assert S not in messages(by_position.map(value=cs.Param("api_tokens")), params={"api_tokens": [S, S]})


def test_items_of_a_factory_are_masked_by_their_source() -> None:
    @cs.task
    def use(value: str) -> None: ...

    def factory(item: str) -> Any:
        return use(item)

    target: Any = MappedLazyResult(factory, {"item": cs.Param("api_tokens")})
    assert S not in messages(target, params={"api_tokens": [S]})


@dataclass
class Login:
    user: str
    password: str


class Pair(NamedTuple):
    user: str
    token: str


@pytest.mark.parametrize(
    "value",
    [
        Login("bob", S),
        Pair("bob", S),
        repr(Login("bob", S)),
        {"headers": [("Authorization", f"Custom {S}")]},
        ["mysql", "--password", S],
        f"mysql -p{S}",
        "y" * 985 + " " + LONG,
    ],
    ids=lambda value: "",
)
def test_values_are_masked_by_what_is_in_them(value: Any) -> None:
    use = cs.task(lambda value: value, name="use")
    assert "hunt" not in messages(use(value))


def test_names_are_masked() -> None:
    target = cs.task(lambda: None, name=f"load postgres://u:{S}@h/db")()
    found = messages(target)
    assert S not in found
    assert "load postgres://***@h/db" in found


def test_a_command_of_the_shell_is_masked() -> None:
    target = cs.shell(f"echo --password {S} >&2; exit 3")  # type: ignore[attr-defined,unused-ignore]
    assert S not in messages(target, fails=True)


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_a_name_of_a_secret_hides_no_message_about_it(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    @cs.resource(name="auth_token")
    def auth_token() -> Iterator[int]:
        raise LookupError("no such file")
        yield 1

    uses = cs.task(lambda value: value, name="fetch_password")(cs.inject(auth_token))
    with pytest.raises(LookupError):
        cs.run(uses, log_format=log_format)
    skipped = cs.task(lambda: 1, name="get_token")().run_if(cs.task(lambda: False, name="is_wanted")())
    with pytest.raises(cs.DependencyMissingError):
        cs.run(cs.task(lambda value: value, name="uses")(skipped), log_format=log_format)
    shown = capsys.readouterr().err
    assert "***" not in shown
    assert shown.count("LookupError: no such file") >= 2
    assert "get_token" in shown


def test_a_name_of_a_secret_hides_no_warning_about_it() -> None:
    with lines("cascade.tests") as printed:
        get_logger("cascade.tests").warning("Resource '%s': its %s still runs %g s", "auth_token", "setup", 1.5)
        get_logger("cascade.tests").warning("%s could not connect: %s", "Token", OSError(f"password={S}"))
        get_logger("cascade.tests").warning(f"the answer: password={S}")
    assert printed == [
        "Resource 'auth_token': its setup still runs 1.5 s",
        "Token could not connect: password=***",
        "the answer: password=***",
    ]


@contextmanager
def lines(name: str) -> Iterator[list[str]]:
    """The output of a handler of the program for the records of a logger."""
    printed: list[str] = []

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            printed.append(self.format(record))

    handler = Printing()
    logging.getLogger(name).addHandler(handler)
    try:
        yield printed
    finally:
        logging.getLogger(name).removeHandler(handler)


def test_warnings_are_masked_and_printable() -> None:
    class Broken(MemoryConnector):
        async def connect(self) -> None:
            raise OSError(f"\x1b]0;owned\x07\n✅ Run finished\u202e of https://u:{S}@h/")

    with lines("cascade") as printed:
        cs.run(cs.task(lambda: 1, name="one")(), connector=Broken(), log_level="OFF")
    assert len(printed) == 1
    assert printed[0].endswith(r"OSError: \x1b]0;owned\x07\n✅ Run finished\u202e of https://***@h/")


def test_a_traceback_in_a_warning_is_masked_and_its_further_lines_are_indented() -> None:
    class Cache:
        def check(self, task_id: str, inputs: dict[str, Any]) -> None: ...

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
            error = ValueError(f"\x1b[2J password={S}\n✅ Run finished")
            error.add_note("❌ a note")
            raise error

    with lines("cascade") as printed:
        cs.run(cs.task(lambda: 1, name="a\x1bb")().with_cache(Cache()), log_level="OFF")
    (shown,) = printed
    assert "\x1b" not in shown
    assert S not in shown
    assert "The cache of task" in shown
    assert r"ValueError: \x1b[2J password=***" in shown
    assert [line for line in shown.splitlines() if line.startswith(("✅", "❌"))] == []
    assert "    ✅ Run finished" in shown.splitlines()
