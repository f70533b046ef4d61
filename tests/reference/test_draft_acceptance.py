"""The reference of acceptance of drafts, by hand, and what it is for: the target's distribution."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from npudiff.device.ascend.draft_acceptance import side_by_side
from npudiff.properties.draft_acceptance import DraftAcceptanceCase, build_inputs
from npudiff.reference.draft_acceptance import DraftAcceptanceInputs, draft_acceptance

TARGET = [0.5, 0.3, 0.2]


def step(**changes):
    """Two drafted tokens of one request, 0 and then 1."""
    given = {
        "draft_tokens": torch.tensor([0, 1], dtype=torch.int32),
        "target": torch.tensor([TARGET, TARGET]),
        "draft": torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]),
        "bonus": torch.tensor([2], dtype=torch.int32),
        "uniform": torch.tensor([0.6, 0.3]),
        "exponential": torch.tensor([[1.0, 1.0, 1.0]]),
        "greedy": torch.tensor([False]),
        "lengths": (2,),
        "room": 3,
    }
    return draft_acceptance(DraftAcceptanceInputs(**{**given, **changes}))["tokens"]


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, [0, 1, 2, -1]),  # 0.5 / 0.8 is 0.625, and 0.3 / 0.8 is 0.375
        ({"uniform": torch.tensor([0.7, 0.3])}, [1, -1, -1, -1]),  # short of 0.2 of token 1, and 0.1 of token 2
        ({"uniform": torch.tensor([0.6, 0.4])}, [0, 0, -1, -1]),  # short of 0.4 of token 0
        ({"uniform": torch.tensor([0.7, 0.3]), "exponential": torch.tensor([[1.0, 3.0, 1.0]])}, [2, -1, -1, -1]),
        ({"draft": None}, [1, -1, -1, -1]),  # 0.5 is less than 0.6, and token 0 is not drawn again
        ({"draft": None, "uniform": torch.tensor([0.4, 0.2])}, [0, 1, 2, -1]),
        ({"draft_tokens": torch.tensor([-1, 1])}, [1, -1, -1, -1]),
        ({"greedy": torch.tensor([True])}, [0, 0, -1, -1]),
        ({"greedy": torch.tensor([True]), "draft_tokens": torch.tensor([0, 0])}, [0, 0, 2, -1]),
        ({"greedy": torch.tensor([True]), "draft_tokens": torch.tensor([-1, 0])}, [0, -1, -1, -1]),
    ],
)
def test_by_hand(changes, tokens):
    expected = step(**changes)
    assert expected.value.tolist() == [tokens]
    assert not bool(expected.bound.any())


def test_a_request_without_a_draft_has_its_bonus():
    expected = step(
        draft_tokens=torch.zeros(0, dtype=torch.int32), target=torch.zeros(0, 3), draft=None, uniform=torch.zeros(0),
        lengths=(0,),
    )  # fmt: skip
    assert expected.value.tolist() == [[2, -1, -1, -1]]


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({"uniform": torch.tensor([0.625, 0.3])}, 0),  # nearer than float32 tells
        ({"uniform": torch.tensor([0.6, 0.375])}, 1),
        ({"greedy": torch.tensor([True]), "target": torch.tensor([[0.4, 0.4, 0.2]] * 2)}, 0),
    ],
)
def test_what_rounding_decides_is_left_open_from_there_on(changes, free):
    bound = step(**changes).bound[0]
    assert bound.isinf().tolist() == [place >= free for place in range(4)]


def test_a_recovered_token_is_open_where_two_are_as_good():
    bound = step(uniform=torch.tensor([0.7, 0.3]), exponential=torch.tensor([[1.0, 2.0, 1.0]])).bound[0]
    assert bound.isinf().tolist() == [True, False, False, False]  # and a token there is behind which nothing comes


@pytest.mark.parametrize("likeness", ["near", "far", "same", "one token"])
@pytest.mark.parametrize("drafts", ["probabilities", "tokens"])
def test_little_is_left_open(likeness, drafts):
    case = DraftAcceptanceCase((3, 2, 0, 4) * 20, likeness=likeness, drafts=drafts, seed=5)
    assert float(draft_acceptance(build_inputs(case))["tokens"].bound.isinf().float().mean()) < 0.02


@pytest.mark.parametrize("pair", range(6))
def test_the_first_token_has_the_distribution_of_the_target(pair):
    """Whatever the draft's is. By Hoeffding a right one is further off in one of a billion runs; seeds are fixed."""
    count, size = 60_000, 5
    generator = torch.Generator().manual_seed(pair)
    target = torch.rand(size, generator=generator) ** (1 + pair)
    draft = torch.rand(size, generator=generator) ** (6 - pair)
    draft[pair % size] = 0  # the draft model never has it
    target, draft = target / target.sum(), draft / draft.sum()
    tokens = torch.multinomial(draft, count, replacement=True, generator=generator)
    inputs = DraftAcceptanceInputs(
        draft_tokens=tokens.to(torch.int32),
        target=target.expand(count, -1),
        draft=draft.expand(count, -1),
        bonus=torch.zeros(count, dtype=torch.int32),
        uniform=torch.rand(count, generator=generator),
        exponential=torch.empty(count, size).exponential_(generator=generator),
        greedy=torch.zeros(count, dtype=torch.bool),
        lengths=(1,) * count,
        room=1,
    )
    first = side_by_side(inputs)["tokens"][:, 0].long()
    share = torch.bincount(first, minlength=size) / count
    assert float((share - target).abs().max()) < math.sqrt(math.log(2 * size / 1e-9) / (2 * count))
    some = slice(0, 500)
    shorter = replace(
        inputs, draft_tokens=inputs.draft_tokens[some], target=inputs.target[some], draft=inputs.draft[some],
        bonus=inputs.bonus[some], uniform=inputs.uniform[some], exponential=inputs.exponential[some],
        greedy=inputs.greedy[some], lengths=(1,) * 500,
    )  # fmt: skip
    expected = draft_acceptance(shorter)["tokens"]
    right = (side_by_side(shorter)["tokens"].double() == expected.value) | expected.bound.isinf()
    assert bool(right.all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bonus": torch.zeros(2, dtype=torch.int32)}, "bonus must be"),
        ({"lengths": (1,)}, "are not of 2 rows"),
        ({"room": 1}, "of at most 1 each"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        step(**changes)
