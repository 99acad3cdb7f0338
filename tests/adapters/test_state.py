from cascade.adapters.state import InMemoryStateBackend


def test_results_and_skips_are_kept_apart() -> None:
    state = InMemoryStateBackend(run_id="r")
    assert not state.has_result("a")
    state.put_result("a", None)
    state.mark_skipped("b", "Pruned")
    assert (state.has_result("a"), state.get_result("a"), state.get_skip_reason("a")) == (True, None, None)
    assert (state.has_result("b"), state.get_skip_reason("b")) == (False, "Pruned")
