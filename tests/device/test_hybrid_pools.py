"""Hybrid pools as the backend keeps them, worked by hand; mutants: wrong where their bug is, found, and shrunk."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from npudiff.device.ascend import hybrid_pools as ascend
from npudiff.device.mutants import hybrid_pools as mutants
from npudiff.device.targets import sim
from npudiff.judge.judge import EQUIVALENCE, TraceExecutor
from npudiff.model.component import Subject
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.hybrid_pools import component
from npudiff.properties.hybrid_pools.case import HybridPoolsCase
from npudiff.properties.hybrid_pools.inputs import TokenSource, open_inputs
from npudiff.reference.hybrid_pools import (
    Allocate,
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    Preempt,
    Readmit,
    Share,
    in_words,
)
from npudiff.run.defined import implementations_in
from npudiff.run.engine import run_job
from npudiff.run.plan import DEFAULT_EXAMPLES

RIGHT = implementations_in(ascend)
MUTANTS = [item for item in implementations_in(mutants) if item.origin == mutants.__name__]
RUNS = round(DEFAULT_EXAMPLES * component.history.runs)


def by_name(item):
    return item.name


def case(*steps, full=8, sliding=8, window=3, requests=4, page=16, sharing=True):
    return HybridPoolsCase(page, full, sliding, window, requests, sharing, steps=steps)


def job(item):
    checked = replace(item, constraints=item.constraints.checked(component.axes, item.name))
    return Job(Subject(component, checked, sim(None)), EQUIVALENCE, checked.constraints)


def walked(item, made):
    """The comparison of the step that fails, or of the last one."""
    with sim(None).activate():
        return TraceExecutor(Subject(component, item, sim(None))).run_to(made)


class Pools(ascend.NativePools):
    """Pools with tokens whose number stands in all their keys and values."""

    def __init__(self, *, window=3, full=6, sliding=6, sharing=True):
        made = case(page=4, window=window, full=full, sliding=sliding, sharing=sharing)
        super().__init__(open_inputs(made), sim(None))
        self.source = TokenSource(made)

    def tokens(self, first, count):
        states = self.source.next(count).states
        for name in states.__dataclass_fields__:
            getattr(states, name)[:] = torch.arange(first, first + count).view(-1, 1, 1)
        return states


@pytest.fixture(autouse=True)
def on_the_simulator():
    with sim(None).activate():
        yield


def test_pages_are_taken_in_both_pools_and_mapped():
    pools = Pools()
    assert pools.allocate(7, pools.tokens(0, 3))
    assert pools.allocate(5, pools.tokens(10, 5))
    assert pools.extend(7, pools.tokens(3, 3))
    shot = pools.snapshot()
    assert {name: row.tolist() for name, row in shot.slots.items()} == {
        7: [4, 5, 6, 7, 16, 17],
        5: [8, 9, 10, 11, 12],
    }
    assert shot.mapping[4:18].tolist() == [*range(4, 13), 0, 0, 0, 16, 17]
    assert shot.block_table.tolist() == shot.sliding_block_table.tolist() == [[1, 4], [2, 3]]
    assert shot.free_pages.tolist() == shot.free_sliding_pages.tolist() == [5, 6]
    assert pools.full.key.view(-1, 64)[4:13, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 14]
    assert pools.sliding.value.view(-1, 64)[[16, 17], 5].tolist() == [4, 5]
    assert bool((pools.full.value.view(-1, 64)[13:16] == 4096).all())


def test_a_decode_takes_a_page_for_each_request_that_fills_one():
    pools = Pools()
    for request, count in ((0, 4), (1, 3), (2, 8)):
        assert pools.allocate(request, pools.tokens(0, count))
    assert pools.decode((2, 1, 0), pools.tokens(50, 3))
    slots = pools.snapshot().slots
    assert [slots[request][-1].item() for request in (2, 1, 0)] == [5 * 4, 2 * 4 + 3, 6 * 4]
    assert pools.sliding.key.view(-1, 64)[[20, 11, 24], 0].tolist() == [50, 51, 52]


def test_what_leaves_the_window_is_given_back_and_used_again():
    pools = Pools(sliding=3, full=6, sharing=False)
    pools.allocate(0, pools.tokens(0, 9))
    assert not pools.extend(0, pools.tokens(9, 4))
    pools.evict((0,))
    shot = pools.snapshot()
    assert shot.sliding_block_table.tolist() == [[0, 2, 3]]
    assert shot.mapping[4:8].tolist() == [0] * 4
    assert (shot.free_pages.tolist(), shot.free_sliding_pages.tolist()) == ([4, 5, 6], [1])
    assert pools.extend(0, pools.tokens(9, 4))
    assert pools.snapshot().sliding_block_table.tolist() == [[0, 2, 3, 1]]


def test_a_fork_copies_the_page_it_will_write_into_in_both_pools():
    pools = Pools()
    pools.allocate(0, pools.tokens(0, 6))
    assert pools.fork(0, 1)
    pools.decode((0, 1), pools.tokens(20, 2))
    slots = pools.snapshot().slots
    assert slots[0].tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert slots[1].tolist() == [4, 5, 6, 7, 12, 13, 14]
    for pool in (pools.full, pools.sliding):
        assert pool.key.view(-1, 64)[[8, 9, 10, 12, 13, 14], 0].tolist() == [4, 5, 20, 4, 5, 21]


def test_shared_pages_go_back_with_the_last_request_that_has_them():
    pools = Pools()
    pools.allocate(0, pools.tokens(0, 9))
    assert pools.share(0, 1, 2, pools.tokens(30, 1))
    pools.free(0)
    assert sorted(pools.snapshot().free_pages.tolist()) == [3, 5, 6]
    assert pools.snapshot().block_table.tolist() == [[1, 2, 4]]
    pools.free(1)
    shot = pools.snapshot()
    assert sorted(shot.free_pages.tolist()) == sorted(shot.free_sliding_pages.tolist()) == [1, 2, 3, 4, 5, 6]
    assert not shot.mapping.any()
    assert not pools.references.any()


def test_an_eviction_leaves_what_others_have():
    pools = Pools(window=1)
    pools.allocate(0, pools.tokens(0, 12))
    pools.share(0, 1, 1, pools.tokens(30, 1))
    pools.evict((0, 1))
    assert pools.snapshot().sliding_block_table.tolist() == [[1, 0, 3], [1, 4, 0]]


@pytest.mark.parametrize("pools", [{"full": 2, "sliding": 6}, {"full": 6, "sliding": 2}])
def test_what_does_not_fit_changes_nothing(pools):
    pools = Pools(**pools)
    pools.allocate(0, pools.tokens(0, 7))
    before = pools.snapshot()
    tokens = pools.tokens(10, 2)
    assert not pools.allocate(1, pools.tokens(0, 1))
    assert not pools.extend(0, tokens)
    assert not pools.share(0, 1, 1, tokens)
    assert not pools.fork(0, 1)
    pools.extend(0, pools.tokens(7, 1))
    assert not pools.decode((0,), pools.tokens(8, 1))
    after = pools.snapshot()
    for name in ("mapping", "free_pages", "free_sliding_pages", "block_table"):
        expected = getattr(before, name).clone()
        if name == "mapping":
            expected[11] = 11
        assert torch.equal(getattr(after, name), expected), name
    assert list(after.slots) == [0]
    assert pools.allocate(1, pools.tokens(0, 1)) is False
    pools.free(0)
    assert pools.allocate(1, pools.tokens(0, 8))


@pytest.mark.few(1)
@pytest.mark.parametrize("item", RIGHT, ids=by_name)
def test_a_right_implementation_holds(item):
    outcome = run_job(job(item), Budget(examples=8, seed=1, steps=25))
    assert outcome.failure is None, component.describe(outcome.failure.case)
    assert outcome.cases == 8
    assert outcome.steps >= 150
    assert 0.3 < outcome.worst_ratio < 1
    assert not outcome.not_applicable


def test_new_tokens_and_decodes_take_the_paths_of_a_backend(monkeypatch):
    layouts = []
    operator = torch.ops.npu.npu_fused_infer_attention_score_v2

    def watched(*arguments, **options):
        layouts.append((options["input_layout"], options["sparse_mode"], options["pre_tokens"]))
        return operator(*arguments, **options)

    monkeypatch.setattr(torch.ops.npu, "npu_fused_infer_attention_score_v2", watched)
    assert walked(ascend.fia_pools, case(Allocate(0, 5), Decode((0,)), window=3)).holds
    assert layouts == [("TND", 3, 2**31 - 1), ("TND", 4, 2), ("BSND", 0, 2**31 - 1), ("BSND", 4, 2)]


# Per mutant: a trace in which its bug shows, and one in which it does not.
SHARED = (Allocate(0, 33), Share(0, 1, 1, 2))
PAIRS = {
    "mapping_kept": (case(Allocate(0, 1), Free(0)), case(Allocate(0, 33), Fork(0, 1), Decode((0, 1)))),
    "evicts_at_the_window": (case(Allocate(0, 18), Evict((0,)), sharing=False), case(*SHARED, Evict((0, 1)))),
    "evicts_a_page_early": (case(Allocate(0, 33), Evict((0,))), case(*SHARED, Decode((0, 1)), Free(0))),
    "evicts_by_longest": (
        case(Allocate(0, 33), Allocate(1, 5), Evict((0, 1))),
        case(Allocate(0, 33), Allocate(1, 34), Evict((0, 1))),
    ),
    "extend_evicts_by_its_end": (case(Allocate(0, 20), Extend(0, 20)), case(Allocate(0, 5), Extend(0, 4), Evict((0,)))),
    "evicts_for_others": (case(*SHARED, Evict((0,))), case(*SHARED, Free(1), Evict((0,)))),
    "evicts_shared_prefixes": (
        case(Allocate(0, 20), Evict((0,))),
        case(Allocate(0, 20), Evict((0,)), sharing=False),
    ),
    "fork_without_copy": (case(Allocate(0, 5), Fork(0, 1)), case(Allocate(0, 16), Fork(0, 1), Decode((0, 1)))),
    "references_not_counted": (case(*SHARED, Free(0)), case(Allocate(0, 33), Allocate(1, 5), Free(0))),
    "partial_page_leaks": (case(Allocate(0, 17), Free(0)), case(Allocate(0, 16), Free(0), Allocate(0, 32), Free(0))),
    "failed_allocation_keeps_pages": (
        case(Allocate(0, 33), full=8, sliding=2),
        case(Allocate(0, 33), full=2, sliding=8),
    ),
    "pools_decode_new_page_late": (
        case(Allocate(0, 16), Decode((0,))),
        case(Allocate(0, 14), Decode((0,)), Extend(0, 1)),
    ),
    "decode_shares_last_slot": (case(Allocate(0, 5), Decode((0,))), case(Allocate(0, 16), Decode((0,)))),
    "pools_extend_skips_partial_page": (case(Allocate(0, 5), Extend(0, 1)), case(Allocate(0, 16), Extend(0, 1))),
    "sliding_written_at_full_slots": (
        case(Allocate(0, 1), Free(0), Allocate(0, 1), full=1, sliding=2),
        case(Allocate(0, 33), Decode((0,)), Free(0)),
    ),
    "sliding_lengths_filled": (case(Allocate(0, 2), window=3), case(Allocate(0, 3), Decode((0,)), window=3)),
    "evicted_pages_skipped": (case(Allocate(0, 33), Evict((0,))), case(Allocate(0, 18), Evict((0,)))),
    "table_row_kept": (
        case(Allocate(0, 5), Preempt(0), Readmit(0), full=2),
        case(Allocate(0, 5), Extend(0, 20), Preempt(0)),
    ),
}


def test_every_mutant_has_its_pair():
    assert {item.name for item in MUTANTS} == set(PAIRS)


@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_names_the_real_bug_or_the_place_that_does_it_right(item):
    assert re.search(r"https://github\.com/\S+/(pull|issues)/\d+: |\S+\.py \d+: ", item.wrong)
    assert item.summary.endswith(".")
    assert item.constraints == ascend.fia_pools.constraints


@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_wrong_where_its_bug_is_and_right_elsewhere(item):
    wrong, right = PAIRS[item.name]
    assert not walked(item, wrong).holds
    assert walked(item, right).holds
    for made in (wrong, right):
        assert walked(ascend.fia_pools, made).holds


BY_ATTENTION = {"sliding_lengths_filled", "sliding_written_at_full_slots"}
"""Mutants that leave every slot, page and table as it should be."""


SOME = [pytest.param(item, marks=() if item in MUTANTS[:3] else pytest.mark.slow) for item in MUTANTS]
"""All mutants, most of them as long measurements."""


@pytest.mark.few(1)
@pytest.mark.usefixtures("shrinks_to_its_end")
@pytest.mark.parametrize("item", SOME, ids=by_name)
def test_it_is_found_within_the_default_budget_and_shrunk(item):
    outcome = run_job(job(item), Budget(examples=RUNS, seed=0))
    assert outcome.verdict is Verdict.WRONG
    smallest, comparison = outcome.failure.case, outcome.failure.comparison
    words = [in_words(step) for step in smallest.steps]
    assert len(words) <= 5, words
    assert (smallest.page_size, smallest.kv_heads, smallest.group, smallest.head_dim, smallest.seed) == (
        16,
        1,
        1,
        64,
        0,
    )
    assert max(smallest.full_pages, smallest.sliding_pages) <= 3
    assert smallest.window <= 16
    assert (comparison.worst_output.name in ("full", "sliding")) is (item.name in BY_ATTENTION)
    assert not outcome.flaky


def hidden(item):
    """The same implementation, of which only answers and attention are seen."""

    def function(inputs, target):
        pools = item.function(inputs, target)
        pools.snapshot = lambda: None
        return pools

    return replace(item, function=function)


@pytest.mark.slow
@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_found_by_its_answers_and_attention_alone(item):
    assert run_job(job(hidden(item)), Budget(examples=3 * RUNS, seed=1, shrink=False)).failure is not None


@pytest.mark.slow
@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_found_whatever_the_seed_is(item):
    found = [run_job(job(item), Budget(examples=RUNS, seed=seed, shrink=False)).failure for seed in range(1, 6)]
    assert None not in found


@pytest.mark.slow
@pytest.mark.parametrize("item", RIGHT, ids=by_name)
def test_50_runs_of_200_steps_take_less_than_a_minute(item, record_property):
    outcome = run_job(job(item), Budget(examples=50, steps=200, seed=3))
    record_property("seconds", outcome.seconds)
    print(f"{item.name}: {outcome.cases} runs, {outcome.steps} steps in {outcome.seconds:.1f} s")
    assert outcome.failure is None
    assert outcome.cases == 50
    assert outcome.steps >= 10_000
    assert outcome.seconds <= 60


@pytest.mark.slow
@pytest.mark.parametrize("item", RIGHT, ids=by_name)
def test_no_false_alarm_in_20_000_steps(item, record_property):
    outcome = run_job(job(item), Budget(examples=400, seed=2, steps=60))
    record_property("worst_ratio", outcome.worst_ratio)
    print(f"{item.name}: {outcome.steps} steps, worst {outcome.worst_ratio:.3f} of the bound")
    assert outcome.failure is None, component.describe(outcome.failure.case)
    assert outcome.steps >= 20_000
