from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.inexact import Inexact
from npudiff.reference.moe_finalize import MoeFinalizeInputs, moe_finalize, weighted_sum

ROWS = torch.tensor([[1.0, -2.0], [4.0, 0.5], [8.0, 16.0], [-1.0, 3.0]])
PLACES = torch.tensor([[2, 0], [-1, 3]], dtype=torch.int32)
WEIGHTS = torch.tensor([[0.5, 2.0], [7.0, -1.0]])
GIVEN = MoeFinalizeInputs(ROWS, PLACES, WEIGHTS, None)


def large(dtype, tokens=40, top_k=6, width=64, residual=True):
    states = Stream(5, "rows").normal((tokens * top_k, width), torch.float32).to(dtype)
    src_to_dst_row = torch.tensor(Stream(5, "places").permutation(tokens * top_k), dtype=torch.int32).view(
        tokens, top_k
    )
    weights = Stream(5, "weights").normal((tokens, top_k), torch.float32).to(dtype)
    added = Stream(5, "skip").normal((tokens, width), torch.float32).to(dtype) if residual else None
    return MoeFinalizeInputs(states, src_to_dst_row, weights, added)


def test_two_tokens_by_hand():
    assert moe_finalize(GIVEN)["output"].value.tolist() == [[4 + 2, 8 - 4], [1, -3]]
    added = replace(GIVEN, residual=torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    assert moe_finalize(added)["output"].value.tolist() == [[16, 24], [31, 37]]


def test_what_no_place_names_is_nothing():
    rows = ROWS.clone()
    rows[1] = torch.nan
    assert torch.equal(
        moe_finalize(replace(GIVEN, expanded_rows=rows))["output"].value, moe_finalize(GIVEN)["output"].value
    )
    nobody = replace(GIVEN, src_to_dst_row=torch.full((2, 2), -1, dtype=torch.int32))
    assert bool((moe_finalize(nobody)["output"].value == 0).all())


def test_it_is_a_matrix_of_weights_times_the_rows():
    given = large(torch.float64, residual=False)
    matrix = torch.zeros(40, 240, dtype=torch.float64).scatter(1, given.src_to_dst_row.long(), given.weights)
    right = matrix @ given.expanded_rows
    assert torch.allclose(moe_finalize(given)["output"].value, right, atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("chain", ["once", "stages"])
def test_correct_devices_stay_within_the_bound(dtype, chain):
    given = large(dtype)
    rows = given.expanded_rows[given.src_to_dst_row.long()]
    products = rows * given.weights.unsqueeze(2)
    if chain == "once":
        products = rows.float() * given.weights.float().unsqueeze(2)
    total = products.float().sum(dim=1)
    actual = (total + given.residual.float()).to(dtype) if chain == "once" else total.to(dtype) + given.residual
    assert 0.03 < compare(moe_finalize(given), {"output": actual}).worst <= 1


def test_the_bound_is_a_part_of_the_products():
    given = large(torch.bfloat16)
    expected = moe_finalize(given)["output"]
    products = (
        (given.expanded_rows[given.src_to_dst_row.long()].double() * given.weights.double().unsqueeze(2))
        .abs()
        .sum(dim=1)
    )
    assert float((expected.bound / (products + given.residual.double().abs())).median()) < 2.1 * 2.0**-8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": WEIGHTS[:1]}, r"weights must be \[2, 2\], got \[1, 2\]"),
        ({"residual": torch.ones(2, 3)}, r"residual must be \[2, 2\], got \[2, 3\]"),
        ({"src_to_dst_row": PLACES + 1}, r"places must lie in -1\.\.3"),
        ({"src_to_dst_row": PLACES - 1}, r"places must lie in -1\.\.3"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        moe_finalize(replace(GIVEN, **changed))


def test_a_rank_without_a_single_row_and_a_weight_that_nobody_uses():
    """All copies are elsewhere: the result is the residual, whatever stands in place of the weights."""
    nowhere = torch.full((2, 2), -1, dtype=torch.int32)
    residual = torch.ones(2, 3, dtype=torch.bfloat16)
    weights = torch.full((2, 2), torch.nan, dtype=torch.bfloat16)
    output = moe_finalize(MoeFinalizeInputs(residual[:0], nowhere, weights, residual))["output"]
    assert torch.equal(output.value, residual.double())
    assert bool(output.bound.isfinite().all())


def test_errors_of_copies_of_one_expert_add_up_and_those_of_others_do_not():
    rows = Inexact(torch.zeros(1, 2, 1, dtype=torch.float64), torch.zeros(1, 2, 1, dtype=torch.float64))
    weights = Inexact.exact(torch.tensor([[1.0, 1.0]]))
    brought = torch.tensor([[[3.0], [4.0]]], dtype=torch.float64)

    def error(*experts):
        ids = torch.tensor([experts]) if experts else None
        return weighted_sum(rows, weights, None, torch.float32, brought, ids).error.item()

    assert error(5, 5) == pytest.approx(7.0)
    assert error(5, 6) == error() == pytest.approx(5.0)


def test_what_is_not_known_of_one_copy_is_not_known_of_its_token_alone():
    rows = Inexact(torch.ones(2, 2, 1, dtype=torch.float64), torch.zeros(2, 2, 1, dtype=torch.float64))
    brought = torch.tensor([[[torch.inf], [0.0]], [[0.0], [0.0]]], dtype=torch.float64)
    error = weighted_sum(
        rows, Inexact.exact(torch.ones(2, 2)), None, torch.float32, brought, torch.tensor([[0, 1]] * 2)
    ).error
    assert error.isposinf().flatten().tolist() == [True, False]
