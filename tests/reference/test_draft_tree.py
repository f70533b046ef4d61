"""The reference of trees of drafts: sglang's published examples, trees by hand, and matrix powers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from draws import drawn
from npudiff.model.constraints import Constraints
from npudiff.properties.draft_tree import (
    NOT_DRAFTED,
    SHAPES,
    Draft,
    DraftTreeCase,
    build_inputs,
    chosen,
    component,
    searched,
)
from npudiff.reference.draft_tree import DraftTreeInputs, draft_tree


def trees(**changes):
    """Two trees of six nodes: 0 {1 {2}, 3 {4 {5}}} and 0 {1 {2 {3}}, 4 {5}}.

    The search goes on from candidates 0 and 1, then from 4, whose children are 6 and 7, and 2, which has 8 and 9.
    """
    given = {
        "parent_list": torch.tensor([[-1, 0, 1, 4, 2]] * 2),
        "selected_index": torch.tensor([[0, 2, 1, 4, 6], [0, 2, 8, 1, 4]]),
        "verified": torch.tensor([2, 1]),
        "candidates": torch.tensor([[0, 1, 2, 3, 4, 5], [7, 8, 9, 10, 11, 12]]),
        "target_predict": torch.tensor([[3, 18, 18, 4, 5, 18], [11, 18, 18, 18, 12, 18]]),
        "topk": 2,
        "depth": 3,
        "draft_token_num": 6,
        "mask_mode": "full",
    }
    return DraftTreeInputs(**{**given, **changes})


def values(inputs):
    return {name: one.value.tolist() for name, one in draft_tree(inputs).items()}


def test_sglangs_example_of_a_build():
    """What github.com/sgl-project/sglang/pull/3373 prints; of its scores the seven best are selected."""
    parents = [[-1, 0, 1, 2, 3, 4, 8, 9, 10, 20, 24, 21, 28], [-1, 0, 1, 2, 3, 4, 5, 6, 7, 24, 28, 20, 21]]
    found = values(
        DraftTreeInputs(
            parent_list=torch.tensor(parents),
            selected_index=torch.tensor([[0, 1, 4, 8, 20, 24, 36], [0, 4, 5, 6, 7, 24, 36]]),
            verified=torch.tensor([5, 10]),
            candidates=torch.zeros(2, 8).long(),
            target_predict=torch.ones(2, 8).long(),
            topk=4,
            depth=4,
            draft_token_num=8,
            mask_mode="full",
        )
    )
    assert found["positions"] == [5, 6, 6, 7, 7, 8, 8, 9, 10, 11, 12, 12, 12, 12, 13, 14]
    assert found["next_token"] == [[1, 3, 4, 5, 6, 7, -1, -1], [1, 2, -1, 6, -1, -1, 7, -1]]
    assert found["next_sibling"] == [[-1, 2, -1, -1, -1, -1, -1, -1], [-1, -1, 3, 4, 5, -1, -1, -1]]


def test_sglangs_example_of_a_verification():
    """That of ``test_eagle_utils.py`` of sgl-kernel."""
    expected = draft_tree(trees())
    assert expected["accept_index"].value.tolist() == [[0, 3, 4, 5], [6, 10, 11, -1]]
    assert expected["accepted"].value.tolist() == [3, 2]
    predicted = expected["predicted"]
    said = predicted.value.masked_fill(predicted.bound.isinf(), -1)
    assert said.tolist() == [3, -1, -1, 4, 5, 18, 11, -1, -1, -1, 12, 18]


def test_links_positions_and_masks_by_hand():
    found = values(trees())
    assert found["positions"] == [2, 3, 4, 3, 4, 5, 1, 2, 3, 4, 2, 3]
    assert found["next_token"] == [[1, 2, -1, 4, 5, -1], [1, 2, 3, -1, 5, -1]]
    assert found["next_sibling"] == [[-1, 3, -1, -1, -1, -1], [-1, 4, -1, -1, -1, -1]]
    first = ["11100000", "11110000", "11111000", "11100100", "11100110", "11100111"]
    second = ["1100000", "1110000", "1111000", "1111100", "1100010", "1100011"]
    assert "".join(str(int(one)) for one in found["mask"]) == "".join(first + second)
    drafts = values(trees(mask_mode="qlen_only"))["mask"]
    assert "".join(str(int(one)) for one in drafts) == "".join([row[2:] for row in first] + [row[1:] for row in second])


@pytest.mark.parametrize(
    ("tokens", "target", "way"),
    [
        ([0, 1, 2, 3, 4, 5], [9, 9, 9, 9, 9, 9], [0]),
        ([0, 1, 2, 1, 4, 5], [1, 4, 9, 4, 5, 9], [0, 1]),  # siblings are equal, and the first one is accepted
        ([0, 1, 2, 3, 4, 5], [3, 9, 9, 2, 9, 9], [0, 3]),  # token 2 is no child of node 3
        ([0, 1, 2, 3, 4, 5], [4, 9, 9, 9, 5, 9], [0]),  # nor is token 4 one of the root
        ([3, 3, 3, 3, 3, 3], [3, 3, 3, 3, 3, 3], [0, 1, 2]),
    ],
)
def test_acceptance_follows_children_alone(tokens, target, way):
    given = trees(candidates=torch.tensor([tokens] * 2), target_predict=torch.tensor([target, [100] * 6]))
    expected = draft_tree(given)
    assert expected["accept_index"].value[0].tolist() == (way + [-1] * 4)[:4]
    assert expected["accept_index"].value[1].tolist() == [6, -1, -1, -1]
    assert expected["accepted"].value.tolist() == [len(way) - 1, 0]
    assert (expected["predicted"].bound == 0).nonzero().flatten().tolist() == [*way, 6]


@pytest.mark.parametrize("case", drawn(component, Constraints(), 60, 3))
def test_masks_are_powers_of_the_matrix_of_parents(case):
    """And positions their sums; links lead to each node once, and what is accepted is what the target would say."""
    inputs = build_inputs(replace(case, mask_mode="qlen_only"))
    found = {name: one.value for name, one in draft_tree(inputs).items()}
    for request, length in enumerate(inputs.verified.tolist()):
        count = inputs.draft_token_num
        parent = torch.eye(count, dtype=torch.float64)
        for node in range(count):
            child = int(found["next_token"][request, node])
            while child >= 0:
                assert child > node
                assert int(parent[child].sum()) == 1  # nobody's child before
                parent[child, node] = 1
                child = int(found["next_sibling"][request, child])
        rows = slice(request * count, (request + 1) * count)
        sees = torch.linalg.matrix_power(parent, count) > 0
        assert torch.equal(sees, found["mask"].view(-1, count, count)[request])
        assert (found["positions"][rows] - length).tolist() == (sees.sum(dim=1) - 1).tolist()
        way = [int(one) - rows.start for one in found["accept_index"][request] if one >= 0]
        said = [int(inputs.target_predict[request, node]) for node in way]
        assert [int(inputs.candidates[request, node]) for node in way[1:]] == said[:-1]
        children = parent[:, way[-1]].nonzero().flatten().tolist()
        assert said[-1] not in [int(inputs.candidates[request, node]) for node in children if node != way[-1]]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_what_they_are_called(shape):
    case = DraftTreeCase((Draft(3, shape),), topk=4, depth=5, draft_token_num=9, seed=2)
    search = searched(case, 0)
    taken = chosen(case, 0, search)
    assert len(taken) == 8
    assert all(search.above[one] in (-1, *taken) for one in taken)
    steps = [search.step[one] for one in taken]
    families = [sum(search.above[one] == parent for one in taken) for parent in {search.above[one] for one in taken}]
    best = sorted(range(len(search.scores)), key=lambda one: -search.scores[one])[:8]
    assert {"scored": taken == sorted(best), "chain": max(steps) == 4, "star": sorted(steps) == [0] * 4 + [1] * 4,
            "bushy": families.count(4) >= 1, "random": True}[shape]  # fmt: skip


def test_matches_reach_every_outcome():
    accepted = {matches: set() for matches in ("first", "last", "random", "none")}
    for matches, seen in accepted.items():
        for seed in range(20):
            case = DraftTreeCase((Draft(3, "chain", matches),), topk=2, depth=4, draft_token_num=7, seed=seed)
            inputs = build_inputs(case)
            seen.add(int(draft_tree(inputs)["accepted"].value))
            assert int(inputs.candidates.max()) < NOT_DRAFTED
    assert accepted["none"] == {0}
    assert 0 not in accepted["first"] | accepted["last"]
    assert {0, 4} <= accepted["random"] | accepted["first"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verified": torch.tensor([2, -1])}, "must not be negative"),
        ({"verified": torch.tensor([2.0, 1.0])}, "verified must be int64"),
        ({"selected_index": torch.tensor([[0, 2, 1, 4, 6]])}, r"selected_index must be int64 \(2, 5\)"),
        ({"selected_index": torch.tensor([[0, 2, 1, 4, 10]] * 2)}, r"lies in 0\.\.9"),
        ({"selected_index": torch.tensor([[0, 2, 1, 4, -1]] * 2)}, r"lies in 0\.\.9"),
        ({"selected_index": torch.tensor([[0, 2, 1, 2, 6]] * 2)}, "selected twice"),
        ({"selected_index": torch.tensor([[0, 2, 1, 5, 6]] * 2)}, "request 0: 4, the parent of 6, is not selected"),
        ({"selected_index": torch.tensor([[0, 6, 1, 2, 4]] * 2)}, "4, the parent of 6, is not selected before it"),
        ({"parent_list": torch.tensor([[-1, 0, 4, 4, 2]] * 2)}, "4, the parent of 4, is not selected before it"),
        ({"parent_list": torch.tensor([[-1, 0, 1, 4]] * 2)}, "parent_list must be"),
        ({"candidates": torch.zeros(2, 5).long()}, "candidates must be"),
        ({"mask_mode": "packed"}, "a mask packed"),
        ({"topk": 0}, "topk 0"),
        ({"depth": 0}, "depth 0"),
    ],
)
def test_what_is_no_tree_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        draft_tree(trees(**changes))


def test_a_way_longer_than_the_depth_is_refused():
    """Candidate 4 of the last step hangs on candidate 2, which is of that step, too."""
    given = {name: torch.zeros(1, 4).long() for name in ("candidates", "target_predict")}
    given |= {"selected_index": torch.tensor([[0, 2, 4]]), "verified": torch.tensor([1]), "draft_token_num": 4}
    with pytest.raises(ValueError, match="a way of 3 candidates in a tree of depth 2"):
        draft_tree(trees(parent_list=torch.tensor([[-1, 0, 2]]), depth=2, **given))
