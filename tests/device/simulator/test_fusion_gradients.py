"""``npu_fusion_attention_grad`` and the second version: against float64, rounding points, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fusion_draws import LAYOUTS, by_head, laid_out, normal
from npudiff.device.simulator import PROFILES, NotSimulated, OperatorRejected, use_profile
from npudiff.device.simulator.fused_attention import fusion_parts
from npudiff.device.simulator.fused_attention.rounding import half_away_from_zero
from npudiff.device.simulator.norms.unwritten import POISON_BYTE

BATCH, HEADS, ROWS, KEYS, SCALE = 2, 4, 5, 9, 0.17
FORWARD = {1: "npu_fusion_attention", 2: "npu_fusion_attention_v2"}
BACKWARD = {1: "npu_fusion_attention_grad", 2: "npu_fusion_attention_grad_v2"}


def parts(dtype=torch.float16, *, kv_heads=2, rows=ROWS, keys=KEYS, dim=32, value_dim=32):
    """Return queries, keys, values and gradients of the result, [B, N, S, D]."""
    return (
        normal(BATCH, HEADS, rows, dim, dtype=dtype),
        normal(BATCH, kv_heads, keys, dim, dtype=dtype, seed=1),
        normal(BATCH, kv_heads, keys, value_dim, dtype=dtype, seed=2),
        normal(BATCH, HEADS, rows, value_dim, dtype=dtype, seed=3),
    )


def both_ways(given, layout="BNSD", version=1, **more):
    """Run forward and backward; return the gradients of query, key and value as [B, N, S, D], and the rest."""
    query, key, value, dy = (laid_out(one, layout) for one in given)
    forward = getattr(torch.ops.npu, FORWARD[version])
    attention, maximum, total, *_ = forward(query, key, value, HEADS, layout, scale=SCALE, **more)
    kept = {"softmax_max": maximum, "softmax_sum": total, "attention_in": attention}
    backward = getattr(torch.ops.npu, BACKWARD[version])
    gradients = backward(query, key, value, dy, HEADS, layout, scale_value=SCALE, **kept, **more)
    heads = (HEADS, given[1].shape[1], given[1].shape[1])
    return [by_head(one, layout, count) for one, count in zip(gradients[:3], heads, strict=True)], gradients[3:]


def exact(given, visible=None, pse=None, *, added=False):
    """Return gradients in float64, and how far rounded weights may take them.

    Rounded: the weights, the gradients of scores, the attention that the forward call gave, and the results.
    """
    half = torch.finfo(given[0].dtype).eps / 2
    query, key, value, dy = (one.double() for one in given)
    group = query.shape[1] // key.shape[1]
    keys, values = (one.repeat_interleave(group, 1) for one in (key, value))
    bias = 0 if pse is None else pse.double()
    scores = query @ keys.mT
    scores = scores * SCALE + bias if added else (scores + bias) * SCALE
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    weights = scores.softmax(-1).nan_to_num(0)
    result = weights @ values
    change = dy @ values.mT - (dy * result).sum(-1, keepdim=True)
    changes = weights * change

    def folded(one):
        return one.unflatten(1, (-1, group)).sum(2)

    wanted = changes @ keys * SCALE, folded(changes.mT @ query) * SCALE, folded(weights.mT @ dy)
    slack = half + 1e-5
    uncertain = (
        weights * (change.abs() + (dy * result).abs().sum(-1, keepdim=True) + dy.abs() @ values.mT.abs()) * slack
    )
    bounds = (
        uncertain @ keys.abs() * SCALE,
        folded(uncertain.mT @ query.abs()) * SCALE,
        folded(weights.mT @ dy.abs()) * slack,
    )
    return wanted, [bound + half * one.abs() + 1e-7 for bound, one in zip(bounds, wanted, strict=True)]


def check(given, gradients, *args, **more):
    for name, one, wanted, bound in zip("qkv", gradients, *exact(given, *args, **more), strict=True):
        assert one.dtype == given[0].dtype
        assert ((one.double() - wanted).abs() <= bound).all(), f"d{name}"


def test_the_closed_formula_is_what_autograd_gives():
    given = [one.double() for one in parts(torch.float32)]
    leaves = [one.clone().requires_grad_() for one in given[:3]]
    result = torch.nn.functional.scaled_dot_product_attention(*leaves, scale=SCALE, enable_gqa=True)
    for one, wanted in zip(exact(parts(torch.float32))[0], torch.autograd.grad(result, leaves, given[3]), strict=True):
        torch.testing.assert_close(one, wanted)


@pytest.mark.few(24)
@pytest.mark.parametrize("version", FORWARD)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sizes", [{}, {"kv_heads": 4, "value_dim": 16}, {"kv_heads": 1, "rows": 1}], ids=str)
def test_layouts_without_a_mask(version, layout, dtype, sizes):
    given = parts(dtype, **sizes)
    gradients, rest = both_ways(given, layout, version)
    check(given, gradients)
    assert all(one is None for one in rest[:-1])
    assert (rest[-1].shape, rest[-1].dtype) == ((0,), torch.float32)


def template():
    return torch.ones(2048, 2048, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("version", FORWARD)
@pytest.mark.parametrize(("mode", "shift", "before"), [(2, 0, KEYS), (3, KEYS - ROWS, KEYS), (4, KEYS - ROWS, 3)])
def test_hidden_keys_get_nothing(version, mode, shift, before):
    given = parts()
    offset = torch.arange(KEYS) - torch.arange(ROWS).unsqueeze(1) - shift
    visible = (offset <= 0) & (offset >= -before)
    tokens = "tockens" if version == 1 else "tokens"
    band = {f"pre_{tokens}": before, f"next_{tokens}": 0} if mode == 4 else {}
    gradients, _ = both_ways(given, "BSND", version, atten_mask=template(), sparse_mode=mode, **band)
    check(given, gradients, visible)
    unseen = ~visible.any(0)
    assert unseen.any() == (mode != 3)
    assert not gradients[1][:, :, unseen].any()
    assert not gradients[2][:, :, unseen].any()


def test_rows_that_see_nothing_give_nothing():
    given = parts()
    mask = torch.zeros(BATCH, 1, ROWS, KEYS, dtype=torch.bool)
    mask[1, 0, 2] = True
    gradients, _ = both_ways(given, atten_mask=mask, inner_precise=2)
    check(given, gradients, ~mask)
    assert not gradients[0][1, :, 2].any()


@pytest.mark.parametrize("added", [False, True])
def test_pse_is_scaled_or_added_by_profile_or_type(added):
    given, pse = parts(), normal(1, HEADS, ROWS, KEYS, seed=7) * 3
    profile = dataclasses.replace(PROFILES["9.0"], fusion_pse="added" if added else "scaled")
    with use_profile(profile):
        first, rest = both_ways(given, pse=pse)
        second, _ = both_ways(given, pse=pse, version=2, pse_type=1 - added)
        other, _ = both_ways(given, pse=pse, version=2, pse_type=int(added))
    check(given, first, None, pse, added=added)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    assert (rest[0].view(torch.uint8) == POISON_BYTE).all()  # documented as not in use
    assert rest[0].shape == pse.shape


def in_one_piece(given):
    """Return the sequences of a batch behind one another, [T, N, D]."""
    return [one.transpose(1, 2).flatten(0, 1).contiguous() for one in given]


@pytest.mark.parametrize("softmax_layout", ["", "TND"])
def test_sequences_in_one_piece_are_batches(softmax_layout):
    given = parts()
    query, key, value, dy = (torch.cat([one, normal(3, *one.shape[1:], seed=5)]) for one in in_one_piece(given))
    more = {"actual_seq_qlen": [ROWS, 2 * ROWS], "actual_seq_kvlen": [KEYS, 2 * KEYS], "softmax_layout": softmax_layout}
    more |= {"atten_mask": template(), "sparse_mode": 3}
    attention, maximum, total, *_ = torch.ops.npu.npu_fusion_attention(
        query, key, value, HEADS, "TND", scale=SCALE, **more
    )
    kept = {"softmax_max": maximum, "softmax_sum": total, "attention_in": attention}
    gradients = torch.ops.npu.npu_fusion_attention_grad(
        query, key, value, dy, HEADS, "TND", scale_value=SCALE, **kept, **more
    )
    wanted, _ = both_ways(given, atten_mask=template(), sparse_mode=3)
    for one, batched in zip(gradients[:3], in_one_piece(wanted), strict=True):
        assert torch.equal(one[:-3], batched)
        assert not one[-3:].any()


def test_strides_do_not_matter_and_results_are_contiguous():
    query, key, value, dy = in_one_piece(parts())
    ends = {"actual_seq_qlen": [ROWS, 2 * ROWS], "actual_seq_kvlen": [KEYS, 2 * KEYS]}
    kept = {name: normal(2 * ROWS, HEADS, 8, dtype=torch.float32).abs() + 20 for name in ("softmax_max", "softmax_sum")}
    results = []
    for transposed in (False, True):
        given = [query, key, value, dy, *kept.values()]
        if transposed:
            given = [one.transpose(0, 1).contiguous().transpose(0, 1) for one in given]
        *tensors, maximum, total = given
        more = {"softmax_max": maximum, "softmax_sum": total, "attention_in": tensors[3]}
        results.append(torch.ops.npu.npu_fusion_attention_grad(*tensors, HEADS, "TND", **more, **ends)[:3])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
        assert other.is_contiguous()


def test_rows_in_pieces_add_up(monkeypatch):
    given = parts(rows=13)
    monkeypatch.setattr(fusion_parts, "_SCORES", 5 * HEADS * KEYS)
    gradients, _ = both_ways(given)
    check(given, gradients)


def single(sums, *, query=0.0, key=0.0, dy=1.0):
    """Return a call of one row and one key for each head, whose weight is one through a number of ``sums``."""
    shape = (1, len(sums), 1, 16)
    first = torch.zeros(shape, dtype=torch.float16)
    first[..., 0] = 1
    softmax = torch.zeros(1, len(sums), 1, 8), sums.view(1, -1, 1, 1).expand(1, -1, 1, 8).contiguous()
    return torch.ops.npu.npu_fusion_attention_grad(
        first * query,
        first * key,
        first,
        first * dy,
        len(sums),
        "BNSD",
        scale_value=0.3,
        softmax_max=softmax[0],
        softmax_sum=softmax[1],
        attention_in=torch.zeros_like(first),
    )


SUMS = torch.linspace(1, 40, 120)


def rounded(values):
    return half_away_from_zero(values, torch.float16)


def test_weights_are_rounded_before_they_are_multiplied():
    wanted = rounded(rounded(1 / SUMS).float() * 3)
    assert not torch.equal(wanted, rounded(3 / SUMS))
    assert torch.equal(single(SUMS, dy=3)[2][0, :, 0, 0], wanted)


@pytest.mark.parametrize("place", [0, 1])
def test_gradients_of_scores_are_rounded_before_they_are_multiplied_and_scaled_after(place):
    result = single(SUMS, dy=5, **{"key" if place == 0 else "query": 3})[place]
    changes = rounded(1 / SUMS * 5).float()
    wanted = rounded(changes * 3 * 0.3)
    assert not torch.equal(wanted, rounded(5 / SUMS * 3 * 0.3))
    assert not torch.equal(wanted, rounded(rounded(5 / SUMS * 0.3).float() * 3))
    assert torch.equal(result[0, :, 0, 0], wanted)


def test_the_numbers_of_the_forward_call_are_used_as_they_are():
    """Half the sum makes weights that add up to two; nothing is computed anew from the scores."""
    once, twice = single(SUMS), single(SUMS / 2)
    assert torch.equal(twice[2], once[2] * 2)


def call(version=1, **more):
    query, key, value, dy = parts()
    attention, maximum, total, *_ = torch.ops.npu.npu_fusion_attention(query, key, value, HEADS, "BNSD")
    kept = {"softmax_max": maximum, "softmax_sum": total, "attention_in": attention}
    arguments = {"dy": dy, "input_layout": "BNSD"} | kept | more
    return getattr(torch.ops.npu, BACKWARD[version])(query, key, value, head_num=HEADS, **arguments)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"softmax_max": None}, "softmax_max"),
        ({"softmax_sum": None}, "softmax_sum"),
        ({"attention_in": None}, "attention_in"),
        ({"dy": normal(BATCH, HEADS, ROWS, 16)}, "dy"),
        ({"dy": normal(BATCH, HEADS, ROWS, 32, dtype=torch.bfloat16)}, "dy"),
        ({"softmax_sum": torch.ones(BATCH, HEADS, ROWS, 1)}, "softmax_sum"),
        ({"softmax_max": torch.ones(BATCH, HEADS, ROWS, 8, dtype=torch.float16)}, "softmax_max"),
        ({"input_layout": "BNS"}, "The input_layout should be BSH/SBH/BNSD/BSND/TND"),
    ],
)
@pytest.mark.parametrize("version", BACKWARD)
def test_what_is_refused(version, more, said):
    with pytest.raises(OperatorRejected, match=said) as caught:
        call(version, **more)
    assert caught.value.operator == BACKWARD[version]


@pytest.mark.parametrize(
    ("version", "more"),
    [
        (2, {"query_rope": normal(BATCH, HEADS, ROWS, 16)}),
        (2, {"key_rope": normal(BATCH, HEADS, KEYS, 16)}),
        (2, {"pse_type": 2, "pse": normal(BATCH, HEADS)}),
        (2, {"q_start_idx": [1]}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_what_is_not_simulated(version, more):
    with pytest.raises(NotSimulated, match=next(iter(more))):
        call(version, **more)


def test_an_empty_list_is_no_prefix():
    """So the derivative of torch_npu's own operators may hand it on."""
    for one, other in zip(call(), call(prefix=[]), strict=True):
        assert one is None or torch.equal(one, other)
