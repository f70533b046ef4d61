"""The reference of the choice of keys, by hand, against exact arithmetic, and what is said of ties."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.properties.sliding_attention.case import Request
from npudiff.properties.sparse_indexer import SparseIndexerCase, build_inputs
from npudiff.reference.sparse_indexer import best, sparse_indexer

PLAIN = SparseIndexerCase((Request(1, 200), Request(3, 121), Request(0, 5)), count=16, heads=8, padded_rows=1, seed=3)


def scores_in_float64(inputs, row, request, visible):
    """Scores from the definition, one key after the other."""
    size, scores = inputs.key.shape[1], []
    for position in range(visible):
        page = int(inputs.block_table[request, position // size])
        key = inputs.key[page, position % size, 0].double()
        products = (inputs.query[row].double() @ key).clamp(min=0)
        if inputs.query_scale is not None:
            products = products * inputs.query_scale[row].double()
            products = products * float(inputs.key_scale[page, position % size, 0])
        scores.append(float(inputs.weights[row].double() @ products))
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("form", ["16 bits", "int8"])
@pytest.mark.parametrize("recipe", ["gaussian", "needle", "alike"])
def test_the_best_are_chosen(form, recipe):
    inputs = build_inputs(replace(PLAIN, form=form, recipe=recipe))
    expected, row = sparse_indexer(inputs), 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for position in range(total - new, total):
            right = scores_in_float64(inputs, row, request, position + 1).topk(16).indices
            value = expected["chosen"].value[row]
            assert bool((value[right] >= 0.5).all())
            assert float(value.sum()) >= 16 or bool((value == 0.5).any())
            assert not bool(value[position + 1 :].any())
            row += 1
    assert expected["listed"].value[:row].tolist() == [[16, 16]] * row
    assert bool(expected["chosen"].bound[row:].isposinf().all())


@pytest.mark.parametrize(("form", "most"), [("16 bits", 0.002), ("int8", 0.02)])
def test_few_keys_are_unsure(form, most):
    """Of keys that no rule but the score chooses."""
    inputs = build_inputs(replace(PLAIN, requests=(Request(1, 2000), Request(2, 1500)), form=form, count=128))
    chosen = sparse_indexer(inputs)["chosen"]
    assert float((chosen.value[:3] == 0.5).float().mean()) < most


def test_all_that_a_row_sees_is_chosen_where_there_is_room():
    inputs = build_inputs(replace(PLAIN, count=512, padded_rows=0))
    expected = sparse_indexer(inputs)
    assert expected["chosen"].value.sum(dim=1).tolist() == [200, 119, 120, 121]
    assert expected["listed"].value[:, 0].tolist() == [200, 119, 120, 121]
    assert not bool(expected["chosen"].bound.any())


def test_sets_by_hand():
    numbers, exact = torch.tensor([5.0, 1.0, 3.0, 3.0, 4.0]).double(), torch.zeros(5).double()
    assert [part.tolist() for part in best(numbers, exact, 2)] == [[True, False, False, False, True]] * 2
    sure, maybe = best(numbers, exact, 3)  # either of the equal ones
    assert sure.tolist() == [True, False, False, False, True]
    assert maybe.tolist() == [True, False, True, True, True]
    sure, maybe = best(numbers, torch.full_like(numbers, 0.6), 1)
    assert sure.tolist() == [False] * 5
    assert maybe.tolist() == [True, False, False, False, True]


def test_equal_scores_of_silent_keys_are_chosen_by_any_rule():
    inputs = build_inputs(replace(PLAIN, recipe="silent"))
    chosen = sparse_indexer(inputs)["chosen"]
    assert bool((chosen.value[:4] == 0.5).any())
    assert float(chosen.bound[:4].max()) < 1  # twice in a set is an error


@pytest.mark.parametrize("seed", range(5))
def test_float32_stays_within_what_is_said(seed):
    inputs = build_inputs(replace(PLAIN, seed=seed, heads=64, count=40))
    expected, row = sparse_indexer(inputs), 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        position = torch.arange(total)
        page = inputs.block_table[request].long()[position // 16]
        keys = inputs.key[page, position % 16, 0].float()
        for last in range(total - new, total):
            scores = inputs.weights[row].float() @ (inputs.query[row].float() @ keys[: last + 1].t()).relu()
            value = expected["chosen"].value[row]
            listed = torch.zeros_like(value)
            listed[scores.topk(40).indices] = 1
            assert bool(((listed - value).abs() <= expected["chosen"].bound[row]).all())
            row += 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "at least one"),
        ({"weights": torch.zeros(5, 3)}, "weights must be"),
        ({"key": torch.zeros(3, 16, 2, 128)}, "keys are of one head"),
        ({"kv_lengths": (5,)}, "are not of 5 rows"),
        ({"key_scale": torch.ones(1)}, "int8 queries and keys"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sparse_indexer(replace(build_inputs(PLAIN), **changes))
