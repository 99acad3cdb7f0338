import threading

import cascade as cs
from cascade.context import scoped
from cascade.spec.input import EnvSpec, ParamSpec


def test_inputs_are_registered_where_they_are_declared() -> None:
    cs.Param("p", default=1, type=int, description="a number")
    cs.Env("E", default="x")
    assert cs.get_current_context().get_all_specs() == [ParamSpec("p", 1, "a number", int), EnvSpec("E", "x")]


def test_the_first_registration_of_a_name_wins() -> None:
    cs.Param("p", default=1)
    cs.Param("p", default=2)
    assert cs.get_current_context().input_specs["p"].default == 1


def test_the_context_is_one_for_all_threads_and_tasks() -> None:
    seen: list[object] = [cs.run(cs.task(cs.get_current_context, name="look")())]
    thread = threading.Thread(target=lambda: seen.append(cs.get_current_context()))
    thread.start()
    thread.join()
    assert all(context is cs.get_current_context() for context in seen)


def test_a_scoped_context_is_separate() -> None:
    with scoped() as context:
        cs.Param("inner")
        assert list(context.input_specs) == ["inner"]
    assert "inner" not in cs.get_current_context().input_specs


def test_a_param_is_a_lazy_result() -> None:
    lazy = cs.Param("p")
    assert (lazy.task.name, lazy.kwargs) == ("_get_param_value", {"name": "p"})
    assert (cs.Env("E").task.name, cs.Env("E").kwargs) == ("_get_env_var", {"name": "E"})
