"""Mutants: each is wrong where its bug is, right elsewhere, found, and shrunk to the smallest case."""

from __future__ import annotations

import re
import statistics

import pytest

from device import ascend, mutants, targets
from npudiff.compare import same_bits
from npudiff.component import ImplementationRaised, Subject
from npudiff.engine import run_job
from npudiff.plan import Request as RunRequest
from npudiff.plan import make_plan
from properties import sliding_attention, swa_mask
from properties.sliding_attention.case import Request, SlidingAttentionCase
from properties.swa_mask import SwaMaskCase

MUTANTS = [getattr(mutants, name) for name in mutants.__all__]
COMPONENTS = {"sliding_attention": sliding_attention.component, "swa_mask": swa_mask.component}


def case(query, kv, window, page_size=16, **changes):
    return SlidingAttentionCase((Request(query, kv),), window, page_size, **changes)


DIMS = {"head_dim": 192, "value_head_dim": 128, "page_size": 128}

# Per mutant: the adapter that it was made from, a case in which its bug shows, and cases in which it does not.
PAIRS = {
    "decode_pre_tokens": (ascend.fia_decode_mask, case(1, 10, 3), [case(1, 10, 10), case(1, 10, None)]),
    "decode_left_context_512": (
        ascend.fia_decode_mask,
        case(1, 10, 3),
        [case(1, 600, 512), case(1, 500, 4096), case(1, 600, None)],
    ),
    "decode_one_key_many": (ascend.fia_decode_mask, case(1, 10, 9), [case(1, 10, 10), case(1, 10, None)]),
    "decode_one_key_few": (ascend.fia_decode_mask, case(1, 10, 10), [case(1, 10, 11), case(1, 10, None)]),
    "extend_one_key_many": (ascend.fia_extend_tnd, case(3, 10, 9), [case(3, 10, 10), case(3, 10, None)]),
    "extend_one_key_few": (ascend.fia_extend_tnd, case(3, 10, 10), [case(3, 10, 11), case(3, 10, None)]),
    "decode_block_size_128": (ascend.fia_decode_mask, case(1, 250, 3, 256, spare_pages=1), [case(1, 300, 3, 128)]),
    "extend_value_as_key_dim": (ascend.fia_extend_tnd, case(3, 10, 3, **DIMS), [case(3, 10, 3)]),
    "extend_wrong_pool": (
        ascend.fia_extend_tnd,
        case(3, 10, 3, hybrid=True),
        [case(3, 10, 3), case(3, 10, None, hybrid=True)],
    ),
    "mask_left_context_512": (
        ascend.swa_mask_eager,
        SwaMaskCase((10,), 3),
        [SwaMaskCase((600,), 512), SwaMaskCase((600,), None)],
    ),
    "mask_minus_one": (ascend.swa_mask_eager, SwaMaskCase((10,), None), [SwaMaskCase((10, 3), 3)]),
    "mask_without_tail": (ascend.swa_mask_eager, SwaMaskCase((10,), 3, 1), [SwaMaskCase((10, 10), 3)]),
}

# Where kv_length is 131072 and window 4096, these bugs exist; the rest cannot show there.
AT_LENGTH = [
    "decode_pre_tokens",
    "decode_left_context_512",
    "decode_one_key_many",
    "decode_one_key_few",
    "extend_one_key_many",
    "extend_one_key_few",
    "decode_block_size_128",
    "extend_value_as_key_dim",
]
SMALLEST_PAGE = {"extend_value_as_key_dim": 128}
SMALLEST_LENGTH = {"decode_one_key_few": 1, "decode_block_size_128": 1, "extend_value_as_key_dim": 1,
                   "extend_wrong_pool": 1}  # fmt: skip


# A call whose shapes never fit: the operator refuses it, which is a finding too.
REJECTED = ("extend_value_as_key_dim",)


def by_name(item):
    return item.name


def run(item, drawn):
    component, target = COMPONENTS[item.component], targets.sim(None)
    assert item.constraints.reason_against(component.values(drawn)) is None
    with target.activate():
        return Subject(component, item, target).run(component.inputs(drawn))


def found(name, seed, where=()):
    """Look for one mutant as a run of all would, and return its outcome."""
    plan = make_plan(RunRequest(target="sim", seed=seed, where=where))
    (job,) = [job for job in plan.mutants if job.subject.implementation.name == name]
    assert plan.budget(job).examples == 100
    return run_job(job, plan.budget(job))


def test_every_mutant_has_its_pair():
    assert {item.name for item in MUTANTS} == set(PAIRS)


@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_names_the_real_bug(item):
    assert re.search(r"https://github\.com/\S+/pull/\d+|\S+\.py \d+", item.wrong)
    assert item.summary.endswith(".")


@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_supports_what_the_adapter_does_from_which_it_was_made(item):
    assert item.constraints == PAIRS[item.name][0].constraints


@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_wrong_where_its_bug_is(item):
    adapter, drawn, _ = PAIRS[item.name]
    right = run(adapter, drawn)
    try:
        wrong = run(item, drawn)
    except ImplementationRaised as error:
        assert item.name in REJECTED, error  # noqa: PT017 - see there
        return
    assert not same_bits(right, wrong, "").holds


@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_right_where_its_bug_is_not(item):
    adapter, _, elsewhere = PAIRS[item.name]
    for drawn in elsewhere:
        assert same_bits(run(adapter, drawn), run(item, drawn), "").holds, drawn


def assert_smallest(outcome):
    name, smallest = outcome.job.subject.implementation.name, outcome.failure.case
    assert len(smallest.requests) == 1
    assert (smallest.kv_heads, smallest.group) == (1, 1)
    assert smallest.page_size == SMALLEST_PAGE.get(name, 16)
    assert (smallest.padded_rows, smallest.sinks, smallest.recipe, smallest.seed) == (0, False, "gaussian", 0)
    assert smallest.hybrid is (name == "extend_wrong_pool")
    return smallest.requests[0]


@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_found_within_the_default_budget_and_shrunk(item):
    outcome = found(item.name, seed=0)
    assert outcome.failure is not None
    assert outcome.shrink_seconds <= 5
    if item.component == "sliding_attention":
        assert assert_smallest(outcome) == Request(1, SMALLEST_LENGTH.get(item.name, 2))
    else:
        assert len(outcome.failure.case.kv_lengths) == 1
        assert outcome.failure.case.capacity <= 2


@pytest.mark.slow
@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_found_whatever_the_seed_is(item):
    assert [found(item.name, seed).failure is not None for seed in range(1, 6)] == [True] * 5


@pytest.mark.slow
def test_nearly_every_seed_finds_the_mutant_that_is_hardest_to_find():
    assert sum(found("mask_minus_one", seed).failure is not None for seed in range(100, 140)) == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_LENGTH)
def test_it_is_found_at_the_end_of_a_long_history(name, record_property):
    outcomes = [found(name, seed, ("kv_length=131072", "window=4096")) for seed in range(5)]
    assert all(outcome.failure is not None for outcome in outcomes)
    for outcome in outcomes:
        assert assert_smallest(outcome) == Request(1, 131_072)
    seconds = statistics.median(outcome.shrink_seconds for outcome in outcomes)
    record_property("median_shrink_seconds", seconds)
    print(f"{name}: median from failure to minimal {seconds:.2f} s")
    assert seconds <= 5


@pytest.mark.slow
def test_shrinking_takes_seconds(record_property):
    outcomes = [found(item.name, seed) for seed in range(3) for item in MUTANTS]
    times = sorted(outcome.shrink_seconds for outcome in outcomes if outcome.failure is not None)
    record_property("median_shrink_seconds", statistics.median(times))
    print(f"from failure to minimal: median {statistics.median(times):.2f} s, longest {times[-1]:.2f} s")
    assert statistics.median(times) <= 5
