"""Layers over ranks against those of torch on one rank, whole numbers by hand, and devices that round everywhere."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.properties.tensor_parallel.case import TensorParallelCase
from npudiff.properties.tensor_parallel.inputs import build_inputs
from npudiff.reference.expert_weights import ExpertProduct
from npudiff.reference.inexact import Inexact
from npudiff.reference.sharded_linear import LinearCheckpoint, added, own_columns, own_inner, static_terms
from npudiff.reference.tensor_parallel import TensorParallelInputs, rank_part, rows_of_ranks, tensor_parallel

ROW = TensorParallelCase(5, ranks=2, layer="row")
COLUMN = replace(ROW, layer="column")
MLP = replace(ROW, layer="column_row", projections="gate_up", biased=True)
NORM = replace(ROW, layer="row_norm_column", projections="qkv", biased=True)
HAND = LinearCheckpoint(
    torch.tensor([[1, 2, 3, 4], [5, -6, 7, 0]], dtype=torch.int8), (2,), (1,), scale=torch.ones(2, 1)
)
STATES = torch.tensor([[1.0, -2.0, 4.0, 0.5]], dtype=torch.bfloat16)


def values(inputs):
    return {name: output.value for name, output in tensor_parallel(inputs).items()}


def linear(states, layer):
    """The dense layer on one rank, of a checkpoint of floats, in float64."""
    bias = None if layer.bias is None else layer.bias.double()
    return functional.linear(states, layer.weight.double(), bias)


def one(layer="row", form="whole", ranks=2, **changes):
    return TensorParallelInputs(layer, form, ranks, STATES, replace(HAND, **changes))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_divided_inner_axis_is_the_dense_layer_on_every_rank(ranks):
    given = build_inputs(replace(ROW, ranks=ranks, biased=True))
    dense = linear(given.states.double(), given.first)
    assert torch.allclose(values(given)["output"], dense.repeat(ranks, 1), atol=1e-12, rtol=0)


def test_divided_columns_are_those_of_each_projection():
    given = build_inputs(replace(COLUMN, projections="gate_up"))
    gate, up = linear(given.states.double(), given.first).chunk(2, dim=1)
    ranks = [torch.cat(parts, dim=1) for parts in zip(gate.chunk(2, dim=1), up.chunk(2, dim=1), strict=True)]
    assert torch.allclose(values(given)["output"], torch.cat(ranks), atol=1e-12, rtol=0)


def test_ranks_in_a_row_have_the_same_keys_and_values():
    given = build_inputs(replace(COLUMN, ranks=4, projections="shared_kv"))
    query, key, value = linear(given.states.double(), given.first).split((128, 32, 32), dim=1)
    ranks = [torch.cat([query[:, 32 * r : 32 * r + 32], key[:, s : s + 16], value[:, s : s + 16]], dim=1)
             for r, s in ((0, 0), (1, 0), (2, 16), (3, 16))]  # fmt: skip
    assert torch.allclose(values(given)["output"], torch.cat(ranks), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", ["whole", "sequence"])
def test_an_mlp_is_that_of_one_rank(form):
    given = build_inputs(replace(MLP, ranks=4, form=form))
    gate, up = linear(given.states.double(), given.first).chunk(2, dim=1)
    dense = linear(functional.silu(gate) * up, given.second)
    right = dense.repeat(4, 1) if form == "whole" else functional.pad(dense, (0, 0, 0, 3))
    assert torch.allclose(values(given)["output"], right, atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", ["whole", "sequence"])
def test_a_residual_and_a_norm_are_those_of_one_rank(form):
    given = build_inputs(replace(NORM, form=form))
    total = linear(given.states.double(), given.first) + given.residual.double()
    normed = functional.rms_norm(total, total.shape[1:], given.norm_weight.double(), given.epsilon)
    dense = linear(normed, given.second)
    found = values(given)
    whole = torch.cat([dense[:, own_columns(given.second, rank, 2)] for rank in range(2)])
    residual = total.repeat(2, 1) if form == "whole" else functional.pad(total, (0, 0, 0, 1))
    assert torch.allclose(found["output"], whole, atol=1e-12, rtol=0)
    assert torch.allclose(found["residual"], residual, atol=1e-12, rtol=0)


def test_own_tokens_are_the_rows_of_the_dense_layer_and_then_nothing_is_said():
    given = build_inputs(replace(ROW, ranks=4, form="own_tokens"))
    output = tensor_parallel(given)["output"]
    assert torch.allclose(output.value[:5], linear(given.states.double(), given.first), atol=1e-12, rtol=0)
    assert output.bound[:5].isfinite().all()
    assert output.bound[5:].isposinf().all()
    assert len(output.value) == 8


def test_static_integers_by_hand():
    """x / 0.5 + 3 is 5, -1, 11, 4; -3 times the sums of the weight are -30 and -18."""
    given = one(format="w8a8_static", input_scale=torch.tensor([0.5], dtype=torch.bfloat16),
                input_offset=torch.tensor([3], dtype=torch.int8),
                quant_bias=torch.tensor([-30 + 8, -18 - 2], dtype=torch.int32),
                deq_scale=torch.tensor([0.25, 0.5]))  # fmt: skip
    sums = torch.tensor([5 - 2 + 33 + 16 - 30 + 8, 25 + 6 + 77 - 18 - 2], dtype=torch.float64)
    right = sums * torch.tensor([0.25, 0.5])
    for ranks in (1, 2, 4):
        assert values(replace(given, ranks=ranks))["output"].tolist() == right.repeat(ranks, 1).tolist()


def test_each_rank_quantises_its_own_part_by_hand():
    """Steps of 1 / 127 and 100 / 127: an eighth is 15.875, so 16, and a half is 0.635, so 1."""
    given = replace(one(format="w8a8_dynamic"), states=torch.tensor([[0.125, -1.0, 100.0, 0.5]], dtype=torch.float16))
    parts = ([16 - 254, 80 + 762], [381 + 4, 889])
    apart = torch.tensor(parts[0], dtype=torch.float64) / 127 + torch.tensor(parts[1], dtype=torch.float64) * 100 / 127
    assert torch.allclose(values(given)["output"][0], apart, rtol=1e-6)
    together = torch.tensor([-2 + 381 + 4, 6 + 889], dtype=torch.float64) * 100 / 127
    assert torch.allclose(values(replace(given, ranks=1))["output"][0], together, rtol=1e-6)


def test_int4_is_what_its_scales_say_for_any_number_of_ranks():
    case = replace(ROW, format="w4a16", scales="group", width=64)
    dense = None
    for ranks, width in ((1, 256), (2, 128), (4, 64)):
        given = build_inputs(replace(case, ranks=ranks, width=width))
        matrix = given.first.weight.double() * given.first.scale.double().repeat_interleave(32, dim=1)
        dense = given.states.double() @ matrix.t()
        assert torch.allclose(values(given)["output"], dense.repeat(ranks, 1), atol=1e-12, rtol=0)


def test_parts_of_scale_bias_are_those_of_the_ranks():
    given = build_inputs(replace(ROW, format="w4a8", ranks=4)).first
    whole = 8 * (given.weight.double() * given.scale.double())
    for rank in range(4):
        part = whole[:, own_inner(given, rank, 4)].sum(dim=1)
        assert torch.allclose(given.scale_bias[:, 4 * rank : 4 * rank + 4].double().sum(dim=1), part, atol=1e-5)


def test_groups_are_dealt_whole_and_the_last_rank_has_the_shorter_one():
    """Of 32 elements: 3 * 64 + 72 are 9 groups of which the last has 8, for 3 ranks; and 8 groups for 3."""
    layer = LinearCheckpoint(torch.zeros(8, 264), (8,), (1,), group_size=32)
    assert [own_inner(layer, rank, 3) for rank in range(3)] == [slice(0, 96), slice(96, 192), slice(192, 264)]
    layer = LinearCheckpoint(torch.zeros(8, 256), (8,), (1,), group_size=32)
    assert [own_inner(layer, rank, 3) for rank in range(3)] == [slice(0, 96), slice(96, 192), slice(192, 256)]


def test_what_ranks_are_given():
    given = build_inputs(replace(MLP, tokens=3, ranks=2, form="sequence", padding="nan"))
    parts = [rank_part(given, rank) for rank in range(2)]
    assert torch.equal(torch.cat([part.states for part in parts])[:3], given.states)
    assert parts[1].states[1].isnan().all()
    assert [(part.rank, part.tokens, part.share) for part in parts] == [(0, 3, 2), (1, 3, 2)]
    assert parts[1].first is given.first
    assert (rows_of_ranks(given, "output"), rows_of_ranks(given, "residual")) == ((2, 2), (0, 0))
    rows = build_inputs(replace(NORM, form="sequence"))
    assert torch.equal(rank_part(rows, 1).states, rows.states[:, 16:])
    assert torch.equal(rank_part(rows, 1).residual, rows.residual)


def product(value):
    value = torch.tensor([[value]], dtype=torch.float64)
    return ExpertProduct(value, torch.zeros_like(value), torch.zeros_like(value))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_any_order_of_a_sum_stays_within_the_bound_and_some_come_near_it(dtype):
    worst = 0.0
    for numbers in Stream(3, "numbers").normal((100, 4), torch.float32) * torch.tensor([100.0, 30.0, 3.0, 1.0]):
        exact = list(numbers.to(dtype))
        sums = added([product(float(number)) for number in exact[:3]], exact[3].view(1), dtype)
        for order in itertools.permutations(exact):
            for total in ((order[0] + order[1]) + order[2]) + order[3], (order[0] + order[1]) + (order[2] + order[3]):
                worst = max(worst, float((total.double() - sums.value).abs() / sums.inexact.error))
    assert 0.3 < worst <= 1


def test_the_bound_of_a_sum_by_hand():
    """Two numbers are rounded once; of three, one sum between is no larger than the positive ones."""
    step, unit = 2.0**-25, 2.0**-11 + 2.0**-23
    assert float(added([product(3.0), product(-1.0)], None, torch.float16).inexact.error) == 2 * unit + step
    three = float(added([product(3.0), product(-1.0), product(0.5)], None, torch.float16).inexact.error)
    between = 3.5 * (1 + 4 * unit) * unit + step
    assert three == pytest.approx(between + (2.5 + between) * unit + step, rel=1e-12)
    assert float(added([product(3.0)], None, torch.float16).inexact.error) == 0


def test_nothing_is_said_where_a_sum_between_may_be_infinite():
    large = [product(60000.0), product(-60000.0), product(60000.0)]
    assert added(large, None, torch.float16).independent.isposinf().all()
    assert added(large, None, torch.bfloat16).independent.isfinite().all()
    assert added([product(60000.0), product(-60000.0)], None, torch.float16).independent.isfinite().all()


def test_static_integers_are_known_unless_halves_are_near():
    rows = Inexact(torch.tensor([0.26, 0.25, 100.0, -100.0]), torch.tensor([0.0, 0.0, 0.0, 0.0])).times(1.0)
    terms = static_terms(Inexact(rows.value.double(), rows.error.double()), 0.5, 0)
    assert terms.value.tolist() == [1.0, 0.5, 127.0, -128.0]
    assert terms.error.tolist() == [0.0, 0.5, 0.0, 0.0]
    loose = static_terms(Inexact(torch.tensor([3.0]).double(), torch.tensor([0.6]).double()), 1.0, 10)
    assert float(loose.value) == 13
    assert float(loose.error) == pytest.approx((0.6**2 + 0.5**2) ** 0.5, rel=1e-5)


def test_an_open_integer_has_the_room_of_two_values():
    """A quarter is half a step: 0 or 1, times a weight of 3, is 1.5 and off by 4 * sqrt(3) halves of that."""
    given = one(format="w8a8_static", input_scale=torch.tensor([0.5], dtype=torch.bfloat16),
                input_offset=torch.tensor([0], dtype=torch.int8), quant_bias=torch.zeros(2, dtype=torch.int32),
                deq_scale=torch.ones(2))  # fmt: skip
    states = torch.tensor([[0.0, 0.0, 0.25, 0.0]], dtype=torch.bfloat16)
    output = tensor_parallel(replace(given, ranks=1, states=states))["output"]
    assert output.value.tolist() == [[1.5, 3.5]]
    assert float(output.bound[0, 0]) == pytest.approx(4 * 3**0.5 * 1.5, rel=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_large_offsets_widen_the_bound_of_partial_sums_only(dtype):
    """What the offset adds to each rank's part cancels in the sum, but not its rounding."""
    case = replace(ROW, format="w8a8_static", dtype=dtype, hidden=64, width=128)
    small, large = (tensor_parallel(build_inputs(replace(case, offset=offset)))["output"] for offset in (0, 61))
    alone = tensor_parallel(build_inputs(replace(case, offset=61, ranks=1, width=256)))["output"]
    assert float(large.bound.mean()) > 3 * float(small.bound.mean())
    assert float(alone.bound.mean()) < float(small.bound.mean())


@pytest.mark.parametrize("case", [ROW, replace(ROW, ranks=4, recipe="cancelling", biased=True), COLUMN, MLP, NORM])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_device_that_rounds_wherever_it_may_is_within_the_bound(case, dtype):
    """The same with every product and sum in the dtype, ranks added one after the other."""
    given = build_inputs(replace(case, dtype=dtype, tokens=33))
    outputs = rounded_everywhere(given)
    assert 0.02 < compare(tensor_parallel(given), outputs).worst <= 1


def rounded_everywhere(given):
    ranks = range(given.ranks)

    def by_columns(states, layer, rank):
        own = own_columns(layer, rank, given.ranks)
        result = states @ layer.weight[own].t()
        return result if layer.bias is None else result + layer.bias[own]

    def by_inner(parts, layer):
        cuts = [own_inner(layer, rank, given.ranks) for rank in ranks]
        total = None
        for part, cut in zip(parts, cuts, strict=True):
            term = part @ layer.weight[:, cut].t()
            total = term if total is None else total + term
        return total if layer.bias is None else total + layer.bias

    none = given.states.new_empty(0, 1)
    if given.layer == "column":
        return {"output": torch.cat([by_columns(given.states, given.first, rank) for rank in ranks]), "residual": none}
    if given.layer == "column_row":
        rows = [by_columns(given.states, given.first, rank).chunk(2, dim=1) for rank in ranks]
        total = by_inner([functional.silu(gate) * up for gate, up in rows], given.second)
        return {"output": total.repeat(given.ranks, 1), "residual": none}
    total = by_inner([given.states[:, own_inner(given.first, rank, given.ranks)] for rank in ranks], given.first)
    if given.layer == "row":
        return {"output": total.repeat(given.ranks, 1), "residual": none}
    total = total + given.residual
    rstd = torch.rsqrt(total.float().square().mean(dim=1, keepdim=True) + given.epsilon)
    normed = (total.float() * rstd).to(total.dtype) * given.norm_weight
    output = torch.cat([by_columns(normed, given.second, rank) for rank in ranks])
    return {"output": output, "residual": total.repeat(given.ranks, 1)}


@pytest.mark.parametrize(("changes", "said"), [
    ({"format": "w2"}, "format w2 is not known"),
    ({"format": "w8a8_static"}, "no input_scale and no input_offset"),
    ({"format": "w8a8_dynamic", "scale": torch.ones(2, 2)}, r"scale must be \[2, 1\]"),
    ({"projections": (3,)}, "must have 2 columns"),
    ({"input_scale": torch.tensor([0.3])}, "power of two"),
])  # fmt: skip
def test_a_checkpoint_that_contradicts_itself_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        tensor_parallel(one(**changes))


def test_what_ranks_cannot_divide_is_refused():
    with pytest.raises(ValueError, match="equal parts of an inner axis of 4"):
        tensor_parallel(one(ranks=3, format="w8a8_dynamic"))
    with pytest.raises(ValueError, match="equal parts of 2 columns"):
        tensor_parallel(one("column", ranks=4, format="w8a8_dynamic"))
    with pytest.raises(ValueError, match="no layer column in the form own_tokens"):
        tensor_parallel(one("column", "own_tokens", format="w8a8_dynamic"))
    with pytest.raises(ValueError, match="has two layers"):
        tensor_parallel(one("column_row", format="w8a8_dynamic"))
    given = build_inputs(MLP)
    with pytest.raises(ValueError, match="inner axis of 32"):
        tensor_parallel(replace(given, second=replace(given.second, weight=given.second.weight[:, :16])))
    with pytest.raises(ValueError, match="states must have"):
        tensor_parallel(replace(given, states=given.states[:, :8]))
