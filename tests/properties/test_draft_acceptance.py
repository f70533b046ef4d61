"""What must hold of accepted drafts whatever the rule is: the target's distribution, and drafts and one more token."""

from __future__ import annotations

import pytest
import torch

from npudiff.device import targets
from npudiff.device.ascend.draft_acceptance import block_by_block, blocks, walked
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.implementation import Implementation
from npudiff.properties.draft_acceptance import (
    DRAFTS_AND_ONE,
    FIRST_TOKENS,
    DraftAcceptanceCase,
    component,
)

SEEDS = range(8)


def subject(function):
    return Subject(component, Implementation("draft_acceptance", "mine", function), targets.sim(None))


def judged(prop, function, seed, **changes):
    return prop.check(subject(function), DraftAcceptanceCase((3, 4), seed=seed, rule="any", **changes))


def by_blocks(level):
    """Accept the longest beginning whose share is at least a level, which is made of the random numbers up to it."""

    def function(inputs, target):
        tokens, start = torch.full((len(inputs.lengths), inputs.room + 1), -1, dtype=torch.int32), 0
        for request, length in enumerate(inputs.lengths):
            kept, left = blocks(inputs, slice(start, start + length))
            levels = level(inputs.uniform[start : start + length]).tolist()
            accepted = max([0, *(place for place in range(1, length + 1) if levels[place - 1] <= float(kept[place]))])
            tokens[request, :accepted] = inputs.draft_tokens[start : start + accepted]
            last = (
                inputs.bonus[request] if accepted == length else (left[accepted] / inputs.exponential[request]).argmax()
            )
            tokens[request, accepted] = last
            start += length
        return {"tokens": tokens}

    return function


@pytest.mark.slow
@pytest.mark.parametrize("drafts", ["probabilities", "tokens"])
def test_right_ones_have_the_targets_distribution(drafts):
    for seed in SEEDS:
        assert judged(FIRST_TOKENS, block_by_block, seed, drafts=drafts).holds, seed
        assert judged(FIRST_TOKENS, lambda inputs, target: walked(inputs), seed, drafts=drafts).holds, seed


@pytest.mark.slow
@pytest.mark.parametrize(
    "level", [lambda numbers: numbers.cumprod(0), lambda numbers: numbers], ids=["products", "as they are"]
)
def test_a_block_that_is_accepted_too_often_is_found(level):
    """products: vllm-ascend's rule. as they are: shares of beginnings that nothing makes smaller."""
    found = [judged(FIRST_TOKENS, by_blocks(level), seed) for seed in SEEDS]
    assert not all(one.holds for one in found[:4])
    assert sum(not one.holds for one in found) >= 4
    assert any("by chance that is rarer than 1e-12" in one.worst_output.problem for one in found if not one.holds)


def test_the_argument_of_the_most_likely_token_is_found():
    """Right of a greedy request, and no sample of any other."""

    def function(inputs, target):
        tokens = torch.full((len(inputs.lengths), inputs.room + 1), -1, dtype=torch.int32)
        tokens[:, 0] = inputs.target.argmax(dim=1)[: len(tokens)].to(torch.int32)
        return {"tokens": tokens}

    assert not judged(FIRST_TOKENS, function, 1).holds


@pytest.mark.parametrize("place", [0, 1])
def test_what_no_draft_has_in_front_of_the_last_token_is_found(place):
    def function(inputs, target):
        tokens = block_by_block(inputs, target)["tokens"]
        counts = (tokens != -1).sum(dim=1)
        tokens[counts > place + 1, place] = (tokens[counts > place + 1, place] + 1) % inputs.target.shape[1]
        return {"tokens": tokens}

    assert judged(DRAFTS_AND_ONE, block_by_block, 3, likeness="same").holds
    assert not judged(DRAFTS_AND_ONE, function, 3, likeness="same").holds


def test_another_bonus_is_found():
    def function(inputs, target):
        tokens = block_by_block(inputs, target)["tokens"]
        ends = torch.tensor(inputs.lengths)
        places = torch.arange(len(tokens))
        last = tokens[places, ends]
        tokens[places, ends] = torch.where(last >= 0, (last + 1) % inputs.target.shape[1], last)
        return {"tokens": tokens}

    assert not judged(DRAFTS_AND_ONE, function, 3, likeness="same", uniforms="small").holds


def test_nothing_is_said_of_single_tokens_by_another_rule():
    case = DraftAcceptanceCase((3, 0, 4), seed=1, rule="any")
    expected = component.reference(component.inputs(case))["tokens"]
    assert expected.bound.isinf().all(dim=1).tolist() == [True, False, True]
    assert EQUIVALENCE.check(subject(block_by_block), case).holds
