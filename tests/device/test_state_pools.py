"""State pools as backends keep them, worked by hand; mutants: wrong where their bug is, found, and shrunk."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from npudiff.device.ascend import state_pools as ascend
from npudiff.device.mutants import state_pools as mutants
from npudiff.device.targets import sim
from npudiff.judge.judge import EQUIVALENCE, TraceExecutor
from npudiff.model.component import Subject
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.state_pools import component
from npudiff.properties.state_pools.case import StatePoolsCase
from npudiff.properties.state_pools.inputs import POISON, open_inputs, tokens_of
from npudiff.reference.state_pools import Decode, Evict, Extend, Fork, Free, Restore, Verify
from npudiff.run.defined import implementations_in
from npudiff.run.engine import run_job
from npudiff.run.plan import DEFAULT_EXAMPLES

RIGHT = implementations_in(ascend)
MUTANTS = [item for item in implementations_in(mutants) if item.origin == mutants.__name__]
RUNS = round(DEFAULT_EXAMPLES * component.history.runs)


def by_name(item):
    return item.name


def case(*steps, **sizes):
    return replace(StatePoolsCase(3, 3, key_heads=2, group=2, steps=steps), **sizes)


def job(item):
    checked = replace(item, constraints=item.constraints.checked(component.axes, item.name))
    return Job(Subject(component, checked, sim(None)), EQUIVALENCE, checked.constraints)


def walked(item, made):
    """The comparison of the step that fails, or of the worst one."""
    with sim(None).activate():
        return TraceExecutor(Subject(component, item, sim(None))).run_to(made)


def supported(item, made):
    """The case with what an implementation asks for in place of what it does not support."""
    (*_, box) = item.constraints.boxes
    wanted = {name: values[0] for name, values in box.items() if name in StatePoolsCase.__dataclass_fields__
              and getattr(made, name) not in values}  # fmt: skip
    return replace(made, **wanted)


@pytest.fixture(autouse=True)
def on_the_simulator():
    with sim(None).activate():
        yield


@pytest.mark.few(2)
@pytest.mark.parametrize("item", RIGHT, ids=by_name)
def test_a_right_implementation_holds(item):
    outcome = run_job(job(item), Budget(examples=6, seed=1, steps=20))
    assert outcome.failure is None, component.describe(outcome.failure.case)
    assert outcome.cases == 6
    assert outcome.steps >= 100
    assert 0.3 < outcome.worst_ratio < 1
    assert not outcome.not_applicable


LIFE = (
    Extend((0, 1), (5, 2)), Verify((1, 0), (1, 3), 1), Fork(0, 2), Verify((2, 0, 1), (2, 1, 3)), Decode((1, 0), 1),
    Evict(2), Verify((0,), (2,), 2), Extend((0, 3), (2, 66)), Free(1), Restore(2), Decode((), 2), Verify((2,), (2,)),
    Fork(2, 1), Extend((1, 2), (1, 70)),
)  # fmt: skip


@pytest.mark.parametrize("item", RIGHT, ids=by_name)
def test_every_step_follows_every_other(item):
    made = supported(item, case(*LIFE, requests=4))
    made.check()
    assert walked(item, made).holds


def opened(kind, made):
    pools = kind(open_inputs(made), sim(None))
    for number, step in enumerate(made.steps):
        match step:
            case Extend(requests, counts):
                pools.extend(requests, counts, tokens_of(made, number, sum(counts)))
            case Decode(requests, padded):
                pools.decode(requests, tokens_of(made, number, len(requests) + padded))
            case Verify(requests, accepted, padded):
                pools.verify(requests, tokens_of(made, number, (len(requests) + padded) * made.drafts))
                pools.accept(accepted)
    return pools


SGLANG = {"raw": True, "key_dim": 128, "rounding": "stages"}
VLLM = {"chunked": True, "rounding": "stages"}


def test_slots_of_requests_that_left_are_given_again_the_oldest_first():
    pools = opened(ascend.SglangPools, case(Extend((7, 4, 5), (1, 1, 1)), **SGLANG))
    assert (pools.slots, pools.unused) == ({7: 1, 4: 2, 5: 3}, [])
    pools.free(4)
    pools.evict(7)
    pools.fork(5, 9)
    pools.restore(7)
    assert pools.slots == {5: 3, 9: 2, 7: 1}
    assert not pools.host


def test_sglang_keeps_histories_at_the_end_of_lines_and_moves_them_back():
    made = case(Extend((0,), (4,)), Verify((0,), (2,)), **SGLANG)
    prompt, drafts = tokens_of(made, 0, 4).mixed, tokens_of(made, 1, 3).mixed
    pools = opened(ascend.SglangPools, replace(made, steps=made.steps[:1]))
    assert pools.lines.shape == (4, 5, made.channels)
    assert torch.equal(pools.lines[1, 2:], prompt[1:])
    assert bool((pools.lines[0] == POISON).all())
    pools = opened(ascend.SglangPools, made)
    assert torch.equal(pools.lines[1, 2:], torch.cat([prompt[-1:], drafts[:2]]))
    assert torch.equal(pools.pool[1], pools.scratch[1])


def test_vllm_ascend_keeps_all_states_of_a_draft_and_says_which_one_counts():
    made = case(Extend((0,), (4,)), Verify((0,), (2,)), **VLLM)
    prompt, drafts = tokens_of(made, 0, 4).mixed, tokens_of(made, 1, 3).mixed
    pools = opened(ascend.VllmPools, made)
    assert pools.accepted == {0: 2}
    assert torch.equal(pools.lines[1], torch.cat([prompt[-2:], drafts]))
    (state,) = pools.states([0])["states"]
    assert torch.equal(state, pools.pool[4])
    assert len({float(one.float().sum()) for one in pools.pool[3:6]}) == 3
    pools.settle([0])
    assert pools.accepted == {}
    assert torch.equal(pools.pool[3], state)
    assert torch.equal(pools.lines[1, :3], torch.cat([prompt[-1:], drafts[:2]]))


def test_prompts_steps_and_drafts_take_the_operators_of_a_backend(monkeypatch):
    called = []
    names = (
        "causal_conv1d",
        "recurrent_gated_delta_rule",
        "npu_chunk_gated_delta_rule",
        "npu_recurrent_gated_delta_rule",
    )
    for name in names:
        operator = getattr(torch.ops.npu, name)

        def watched(*arguments, _name=name, _operator=operator, **options):
            mode = f" {options['run_mode']}" if "run_mode" in options else ""
            called.append(_name + mode + " drafts" * (options.get("num_accepted_tokens") is not None))
            return _operator(*arguments, **options)

        monkeypatch.setattr(torch.ops.npu, name, watched)
    steps = (Extend((0,), (4,)), Decode((0,)), Verify((0,), (2,)))
    assert walked(ascend.sglang_state_pools, case(*steps, **SGLANG)).holds
    assert called == ["causal_conv1d 0", "causal_conv1d 1", "causal_conv1d 1 drafts", "recurrent_gated_delta_rule"]
    called.clear()
    assert walked(ascend.vllm_ascend_state_pools, case(*steps, **VLLM)).holds
    assert called == [
        "causal_conv1d 0", "npu_chunk_gated_delta_rule", "causal_conv1d 1", "npu_recurrent_gated_delta_rule drafts",
        "causal_conv1d 1 drafts", "npu_recurrent_gated_delta_rule drafts",
    ]  # fmt: skip


# Per mutant: a trace in which its bug shows, and one in which it does not.
ONE, TWO = Extend((0,), (5,)), Extend((0, 1), (5, 4))
PAIRS = {
    "state_slot_not_cleared": (
        case(TWO, Free(0), Extend((2, 3), (1, 2))),
        case(TWO, Free(0), Extend((2,), (1,)), Decode((2, 1), 1)),
    ),
    "new_request_has_a_state": (case(ONE), None),
    "padded_row_has_the_last_slot": (
        case(TWO, Decode((0,), 1), requests=2),
        case(TWO, Decode((0,), 1), Verify((0, 1), (1, 2), 1)),
    ),
    "padded_row_keeps_its_slot": (
        case(TWO, Decode((0, 1)), Decode((0,), 1)),
        case(TWO, Decode((0, 1)), Decode((0,)), Decode((1,), 1), Verify((0,), (1,), 1)),
    ),
    "drafts_begin_with_the_first_state": (
        case(ONE, Verify((0,), (2,)), Verify((0,), (1,))),
        case(ONE, Verify((0,), (1,)), Verify((0,), (2,)), Decode((0,)), Verify((0,), (1,))),
    ),
    "drafts_begin_behind_all_rows": (
        case(ONE, Verify((0,), (2,)), Verify((0,), (1,))),
        case(ONE, Verify((0,), (3,)), Verify((0,), (1,)), Verify((0,), (2,)), Decode((0,))),
    ),
    "steps_read_the_first_slot": (
        case(ONE, Verify((0,), (2,)), Decode((0,))),
        case(ONE, Verify((0,), (1,)), Decode((0,)), Verify((0,), (2,)), Verify((0,), (3,))),
    ),
    "line_not_rolled_back": (case(ONE, Verify((0,), (2,))), case(ONE, Verify((0,), (3,)), Decode((0,)))),
    "state_of_the_whole_draft": (
        case(ONE, Verify((0,), (2,))),
        case(ONE, Verify((0,), (3,)), Verify((0,), (0,)), Decode((0,))),
    ),
    "scratch_in_the_order_of_slots": (case(TWO, Verify((1, 0), (1, 1))), case(TWO, Verify((0, 1), (1, 2), 1))),
    "steps_read_the_beginning_of_a_line": (
        case(ONE, Decode((0,))),
        case(ONE, Verify((0,), (2,)), Extend((0,), (2,)), Fork(0, 1)),
    ),
    "fork_without_its_line": (case(ONE, Fork(0, 1)), case(ONE, Free(0), Extend((1,), (2,)))),
    "fork_has_the_same_slot": (case(ONE, Fork(0, 1), Decode((0,))), case(ONE, Fork(0, 1))),
    "short_chunk_forgets_rows": (case(ONE, Extend((0,), (2,))), case(ONE, Extend((0,), (3,)), Decode((0,)))),
    "restored_into_its_old_slot": (
        case(ONE, Evict(0), Restore(0)),
        case(ONE, Evict(0), Restore(0), requests=1),
    ),
    "host_copy_comes_late": (
        case(TWO, Evict(0), Decode((1,)), Extend((2,), (2,)), Free(1), Restore(0), requests=2),
        case(TWO, Evict(0), Decode((1,)), Restore(0)),
    ),
    "states_pass_through_bfloat16": (case(ONE, Extend((0,), (2,))), case(ONE, Decode((0,)), Verify((0,), (1,)))),
    "prompts_leave_states_turned": (case(ONE), None),
    "accepted_in_another_order": (
        case(TWO, Verify((1, 0), (1, 2))),
        case(TWO, Verify((0, 1), (1, 2)), Verify((1, 0), (3, 3))),
    ),
}  # fmt: skip


def test_every_mutant_has_its_pair():
    assert {item.name for item in MUTANTS} == set(PAIRS)
    assert len(MUTANTS) >= 8


@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_names_the_real_bug_or_the_place_that_does_it_right(item):
    assert re.search(r"https://github\.com/\S+/(pull|issues)/\d+: |\S+\.py \d+: ", item.wrong)
    assert item.summary.endswith(".")


@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_wrong_where_its_bug_is_and_right_elsewhere(item):
    wrong, right = PAIRS[item.name]
    of = next(one for one in RIGHT if one.name == item.mutant_of)
    for drafted, holds in ((wrong, False), (right, True)):
        if drafted is not None:
            made = supported(item, drafted)
            made.check()
            assert walked(item, made).holds is holds
            assert walked(of, made).holds


QUICK = {"state_slot_not_cleared", "padded_row_keeps_its_slot", "state_of_the_whole_draft", "steps_read_the_first_slot"}


def found_and_shrunk(item):
    outcome = run_job(job(item), Budget(examples=RUNS, seed=0))
    assert outcome.verdict is Verdict.WRONG
    smallest = outcome.failure.case
    assert len(smallest.steps) <= 4, component.describe(smallest)
    assert (smallest.key_heads, smallest.group, smallest.seed, smallest.value_dim) == (1, 1, 0, 16)
    assert max(smallest.requests, smallest.drafts) <= 3
    assert not outcome.flaky


@pytest.mark.few(1)
@pytest.mark.usefixtures("shrinks_to_its_end")
@pytest.mark.parametrize("item", [item for item in MUTANTS if item.name in QUICK], ids=by_name)
def test_it_is_found_within_the_default_budget_and_shrunk(item):
    found_and_shrunk(item)


@pytest.mark.slow
@pytest.mark.usefixtures("shrinks_to_its_end")
@pytest.mark.parametrize("item", [item for item in MUTANTS if item.name not in QUICK], ids=by_name)
def test_the_others_are_found_and_shrunk_as_well(item):
    found_and_shrunk(item)


@pytest.mark.slow
@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_found_whatever_the_seed_is(item):
    found = [run_job(job(item), Budget(examples=RUNS, seed=seed, shrink=False)).failure for seed in range(10)]
    assert None not in found


@pytest.mark.slow
@pytest.mark.parametrize("item", RIGHT, ids=by_name)
def test_no_false_alarm_in_10_000_steps(item, record_property):
    outcome = run_job(job(item), Budget(examples=450, seed=2, steps=20))
    record_property("worst_ratio", outcome.worst_ratio)
    print(f"{item.name}: {outcome.steps} steps, worst {outcome.worst_ratio:.3f} of the bound")
    assert outcome.failure is None, component.describe(outcome.failure.case)
    assert outcome.steps >= 10_000
