"""``npu_fusion_attention``: values, maxima and sums against float64, masks and bands, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from itertools import accumulate, pairwise

import pytest
import torch

from fusion_draws import LAYOUTS, by_head, laid_out, normal
from npudiff.device.simulator import (
    PROFILES,
    DeviceFault,
    NotSimulated,
    OperatorRejected,
    UndefinedBehaviour,
    use_profile,
)
from npudiff.device.simulator.fused_attention.rounding import half_away_from_zero
from npudiff.device.simulator.norms.unwritten import POISON_BYTE

BATCH, ROWS, KEYS, SCALE = 2, 5, 9, 0.17


def attention(*args, **kwargs):
    return torch.ops.npu.npu_fusion_attention(*args, **kwargs)


@pytest.fixture
def batches():
    """Queries, keys and values [B, N, S, D]."""

    def make(dtype=torch.float16, *, heads=4, kv_heads=2, rows=ROWS, keys=KEYS, dim=32, value_dim=32):
        return (
            normal(BATCH, heads, rows, dim, dtype=dtype),
            normal(BATCH, kv_heads, keys, dim, dtype=dtype, seed=1),
            normal(BATCH, kv_heads, keys, value_dim, dtype=dtype, seed=2),
        )

    return make


def call(parts, layout="BNSD", **more):
    query, key, value = (laid_out(part, layout) for part in parts)
    result = attention(query, key, value, parts[0].shape[1], layout, **{"scale": SCALE} | more)
    return by_head(result[0], layout, parts[0].shape[1]), *result[1:]


def check(lab, parts, result, visible):
    """Compare outputs [B, N, S, ...] with float64; ``visible`` is [B, rows, keys]."""
    for batch, (query, key, value) in enumerate(zip(*parts, strict=True)):
        out, maximum, total = (tensor[batch] for tensor in result[:3])
        wanted, bound, _ = lab.exact(query, key, value, visible[batch], scale=SCALE)
        assert ((out.double() - wanted).abs() <= bound).all()
        check_softmax(query, key, visible[batch], maximum, total)


def check_softmax(query, key, visible, maximum, total):
    scores = query.double() @ key.double().repeat_interleave(len(query) // len(key), 0).transpose(1, 2) * SCALE
    scores = scores.masked_fill(~visible, -math.inf)
    largest = scores.amax(-1, keepdim=True).expand(-1, -1, 8)
    torch.testing.assert_close(maximum.double(), largest, rtol=1e-5, atol=1e-5)
    sums = (scores - scores.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True).expand(-1, -1, 8)
    torch.testing.assert_close(total.double(), sums, rtol=2e-5, atol=0)


def everything(rows=ROWS, keys=KEYS):
    return torch.ones(BATCH, rows, keys, dtype=torch.bool)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sizes", [{}, {"kv_heads": 4, "value_dim": 16}, {"kv_heads": 1, "rows": 1}], ids=str)
def test_layouts_without_a_mask(lab, batches, layout, dtype, sizes):
    parts = batches(dtype, **sizes)
    result = call(parts, layout)
    check(lab, parts, result, everything(parts[0].shape[2]))
    assert result[3].shape == (0,)
    assert result[3].dtype == dtype
    assert result[4:] == (0, 0, BATCH * 4 * parts[0].shape[2] * KEYS)


def test_the_layout_may_be_written_small(batches):
    query, key, value = batches()
    assert torch.equal(attention(query, key, value, 4, "bnsd")[0], attention(query, key, value, 4, "BNSD")[0])


def test_it_agrees_with_torchs_attention(batches):
    parts = batches()
    doubled = [part.double() for part in parts]
    wanted = torch.nn.functional.scaled_dot_product_attention(*doubled, scale=SCALE, enable_gqa=True)
    torch.testing.assert_close(call(parts)[0].double(), wanted, rtol=2**-9, atol=2**-9)


def template():
    return torch.ones(2048, 2048, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(
    ("mode", "tokens", "low", "high"),
    [(2, (0, 0), None, 0), (3, (0, 0), None, KEYS - ROWS), (4, (2, 1), KEYS - ROWS - 2, KEYS - ROWS + 1)],
)
def test_templates_are_bands(lab, batches, mode, tokens, low, high):
    """``j - i`` from ``low`` to ``high`` is seen."""
    parts = batches()
    options = {"sparse_mode": mode, "pre_tockens": tokens[0], "next_tockens": tokens[1]}
    result = call(parts, atten_mask=template(), **options)
    visible = everything().tril(high)
    check(lab, parts, result, visible if low is None else visible.triu(low))
    without = call(parts, **options)
    assert torch.equal(without[0], call(parts)[0])  # without a mask modes and tokens have no effect


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
@pytest.mark.parametrize("shape", [(), (1, 1), (BATCH, 1), (BATCH, 4)])
@pytest.mark.parametrize("mode", [0, 1])
def test_masks_of_keys(lab, batches, dtype, shape, mode):
    parts = batches()
    drawn = torch.rand(*shape, ROWS, KEYS, generator=torch.Generator().manual_seed(4)) < 0.4
    drawn[..., 0] = False  # no row is hidden
    result = call(parts, atten_mask=drawn.to(dtype), sparse_mode=mode)
    full = drawn.expand(BATCH, 4, ROWS, KEYS)
    for head in range(4):
        one = [part[:, head if part is parts[0] else head // 2][:, None] for part in parts]
        check(lab, one, [tensor[:, head : head + 1] for tensor in result[:3]], ~full[:, head])


def test_a_mask_that_shows_what_tokens_hide_is_told(batches):
    parts, mask = batches(), torch.ones(ROWS, KEYS, dtype=torch.bool).triu(1)
    plain = call(parts, atten_mask=mask)
    assert torch.equal(call(parts, atten_mask=mask, next_tockens=0)[0], plain[0])
    with pytest.raises(UndefinedBehaviour, match="outside of pre_tockens 1 and next_tockens 0"):
        call(parts, atten_mask=mask, next_tockens=0, pre_tockens=1)


@pytest.mark.parametrize("forced", [False, True])
def test_rows_that_see_nothing(batches, forced):
    """The mean of all values, or 0 where invalid rows are looked for."""
    parts = batches(torch.float32)
    mask = torch.zeros(ROWS, KEYS, dtype=torch.bool)
    mask[2] = True
    out, maximum, total, *_ = call(parts, atten_mask=mask, inner_precise=2 * forced)
    mean = parts[2].mean(2).repeat_interleave(2, 1)
    torch.testing.assert_close(out[:, :, 2], torch.zeros_like(mean) if forced else mean)
    lowest, largest = torch.finfo(torch.float32).min, torch.finfo(torch.float32).max
    assert (maximum[:, :, 2] == lowest).all()
    assert (total[:, :, 2] == (largest if forced else KEYS)).all()


def test_more_queries_than_keys_force_rows_to_zero(batches):
    parts = batches(rows=KEYS, keys=ROWS)
    out = call(parts, atten_mask=template(), sparse_mode=3)[0]
    assert (out[:, :, : KEYS - ROWS] == 0).all()
    assert out[:, :, KEYS - ROWS :].count_nonzero() == BATCH * 4 * ROWS * 32


@pytest.mark.parametrize("shape", [(BATCH, 4, ROWS), (1, 4, ROWS), (BATCH, 4, 1)])
@pytest.mark.parametrize("kind", ["scaled", "added"])
def test_pse_is_added_to_the_products(batches, shape, kind):
    parts = batches(torch.float32)
    pse = normal(*shape, KEYS, dtype=torch.float32, seed=8)
    with use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", fusion_pse=kind)):
        out, maximum, *_ = call(parts, pse=pse)
    query, key, value = (part.double() for part in parts)
    key, value = (part.repeat_interleave(2, 1) for part in (key, value))
    products = query @ key.transpose(2, 3)
    scores = (products + pse.double()) * SCALE if kind == "scaled" else products * SCALE + pse.double()
    torch.testing.assert_close(out.double(), scores.softmax(-1) @ value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maximum[..., 0].double(), scores.amax(-1), rtol=1e-5, atol=1e-5)


COUNTS, LENGTHS = (1, 2, 0, 3), (3, 4, 2, 5)


@pytest.fixture
def packed():
    def make(dtype=torch.float16, *, padding=0):
        return {
            "query": normal(sum(COUNTS) + padding, 4, 32, dtype=dtype),
            "key": normal(sum(LENGTHS) + padding, 2, 32, dtype=dtype, seed=1),
            "value": normal(sum(LENGTHS) + padding, 2, 32, dtype=dtype, seed=2),
            "head_num": 4,
            "input_layout": "TND",
            "scale": SCALE,
            "actual_seq_qlen": list(accumulate(COUNTS)),
            "actual_seq_kvlen": list(accumulate(LENGTHS)),
        }

    return make


@pytest.mark.parametrize("softmax_layout", ["", "TND"])
@pytest.mark.parametrize("causal", [False, True])
def test_sequences_in_one_piece(lab, packed, softmax_layout, causal):
    arguments = packed()
    more = {"atten_mask": template(), "sparse_mode": 3} if causal else {}
    out, maximum, total, *_, numels = attention(**arguments, softmax_layout=softmax_layout, **more)
    assert numels == 4 * sum(count * length for count, length in zip(COUNTS, LENGTHS, strict=True))
    starts, key_starts = (pairwise((0, *arguments[name])) for name in ("actual_seq_qlen", "actual_seq_kvlen"))
    for (start, stop), (first, last) in zip(starts, key_starts, strict=True):
        if start == stop:
            continue
        query, key, value = (
            arguments[name][window].transpose(0, 1)
            for name, window in (
                ("query", slice(start, stop)), ("key", slice(first, last)), ("value", slice(first, last)),
            )
        )  # fmt: skip
        visible = torch.ones(stop - start, last - first, dtype=torch.bool)
        visible = visible.tril((last - first) - (stop - start)) if causal else visible
        wanted, bound, _ = lab.exact(query, key, value, visible, scale=SCALE)
        assert ((out[start:stop].transpose(0, 1).double() - wanted).abs() <= bound).all()
        parts = [tensor[start:stop] for tensor in (maximum, total)]
        shaped = [part.transpose(0, 1) if softmax_layout else part.reshape(4, -1, 8) for part in parts]
        check_softmax(query, key, visible, *shaped)


def test_tokens_behind_the_last_sequence_are_zero_only_if_lengths_end_with_zeros(packed):
    arguments = packed(padding=3)
    plain = attention(**arguments)
    poison = torch.full((2,), POISON_BYTE, dtype=torch.uint8).view(torch.float16)
    assert (plain[0][sum(COUNTS) :] == poison).all()
    for name in ("actual_seq_qlen", "actual_seq_kvlen"):
        arguments[name] = [*arguments[name], 0, 0]
    padded = attention(**arguments)
    for one, other in zip(padded[:3], plain[:3], strict=True):
        assert torch.equal(one[: sum(COUNTS)], other[: sum(COUNTS)])
        assert (one[sum(COUNTS) :] == 0).all()


def test_a_sequence_without_keys_gives_zeros(packed):
    arguments = packed() | {"actual_seq_kvlen": [3, 3, 3, 8]}
    out, maximum, total, *_ = attention(**arguments)
    for tensor in (out, maximum, total):
        assert (tensor[1:3] == 0).all()
        assert tensor[3:].count_nonzero()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"actual_seq_qlen": [1, 3, 2, 6]}, UndefinedBehaviour, "decreases at 2"),
        ({"actual_seq_qlen": [1, 3, 3, 7]}, DeviceFault, "ends at 7, and there are 6 tokens"),
        ({"actual_seq_kvlen": [3, 7, 9]}, OperatorRejected, "must be the same and cannot be empty"),
        ({"actual_seq_kvlen": None}, OperatorRejected, "must be the same and cannot be empty"),
        ({"sparse_mode": 5}, OperatorRejected, r"must be in range of \[0,5\) or \(5,8\], but got 5"),
        ({"atten_mask": torch.zeros(3, 4, dtype=torch.bool)}, OperatorRejected, "atten_mask"),
        ({"atten_mask": torch.zeros(2, 5, dtype=torch.bool)}, OperatorRejected, "atten_mask"),
        ({"atten_mask": torch.zeros(1, 1, 3, 5, dtype=torch.bool)}, OperatorRejected, "atten_mask"),
        ({"pse": torch.zeros(1, 4, 3, 5).half()}, NotSimulated, "pse"),
    ],
)  # fmt: skip
def test_what_is_refused_of_sequences_in_one_piece(packed, more, error, message):
    with pytest.raises(error, match=message):
        attention(**packed() | more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"head_num": 0}, "head_num must > 0, but got 0"),
        ({"head_num": 8}, "head_num"),
        ({"query": torch.zeros(5, 4)}, "should be 3 or 4 dimensional, but got 2-dimensional"),
        ({"key": torch.zeros(5)}, "input key should be 3 or 4 dimensional, but got 1-dimensional"),
        ({"keep_prob": 0.0}, r"keep_prob value must be in range of \(0, 1\], but got 0"),
        ({"keep_prob": 1.5}, r"keep_prob value must be in range of \(0, 1\], but got 1.5"),
        ({"softmax_layout": "NTD"}, "only supported softmax_layout=TND"),
        ({"softmax_layout": "TND"}, "softmax_layout=TND only supported when input_layout_str=TND"),
        ({"sparse_mode": 7}, r"must be in range of \[0,6\], but got 7"),
        ({"input_layout": "NSD"}, r"should be BSH/SBH/BNSD/BSND/TND\(case-insensitive\)"),
        ({"input_layout": "BSH"}, "rank 3"),
        ({"key": torch.zeros(BATCH, 3, KEYS, 32).half()}, "head_num"),
        ({"key": torch.zeros(BATCH, 2, KEYS, 16).half()}, "key"),
        ({"key": torch.zeros(BATCH, 2, KEYS, 32)}, "key"),
        ({"key": torch.zeros(1, 2, KEYS, 32).half()}, "key"),
        ({"value": torch.zeros(BATCH, 2, KEYS + 1, 32).half()}, "value"),
        ({"value": torch.zeros(BATCH, 2, KEYS, 48).half()}, "value"),
        ({"pse": torch.zeros(BATCH, 4, ROWS, KEYS)}, "pse"),
        ({"pse": torch.zeros(BATCH, 1, ROWS, KEYS).half()}, "pse"),
        ({"padding_mask": torch.zeros(1)}, "padding_mask"),
        ({"atten_mask": torch.zeros(ROWS, KEYS)}, "atten_mask"),
        ({"atten_mask": torch.zeros(ROWS, KEYS + 1, dtype=torch.bool)}, "atten_mask"),
        ({"atten_mask": torch.zeros(1, 4, ROWS, KEYS, dtype=torch.bool)}, "atten_mask"),
        ({"atten_mask": torch.zeros(ROWS, KEYS, dtype=torch.bool), "sparse_mode": 3}, "atten_mask"),
    ],
)  # fmt: skip
def test_what_is_refused(batches, more, message):
    query, key, value = batches()
    arguments = {"query": query, "key": key, "value": value, "head_num": 4, "input_layout": "BNSD"}
    with pytest.raises(OperatorRejected, match=message):
        attention(**arguments | more)


def test_what_is_not_simulated(batches):
    with pytest.raises(NotSimulated, match="pse"):
        call(batches(), pse=torch.zeros(1, 4, 3, KEYS).half())
    parts = (normal(ROWS, 4, 32), *(normal(KEYS, 2, 32) for _ in range(2)))
    ends = {"actual_seq_qlen": [ROWS], "actual_seq_kvlen": [KEYS]}
    with pytest.raises(NotSimulated, match="sparse_mode was 7"):
        attention(*parts, 4, "TND", atten_mask=template(), sparse_mode=7, **ends)


def test_a_template_of_another_content_is_told(batches):
    for mask in (~template(), torch.zeros_like(template()), torch.ones_like(template())):
        with pytest.raises(UndefinedBehaviour, match=r"must be torch\.triu"):
            call(batches(), atten_mask=mask, sparse_mode=2)


def test_casts_round_half_away_from_zero_in_both_dtypes():
    ties = torch.tensor([1 + 2**-8, -1 - 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 - 2**-20, math.inf, math.nan])
    rounded = half_away_from_zero(ties, torch.bfloat16)
    assert rounded[:5].tolist() == [1 + 2**-7, -1 - 2**-7, 1 + 2**-6, 1.0, math.inf]
    assert rounded[5].isnan()
    assert half_away_from_zero(torch.tensor([1 + 2**-11]), torch.float16).item() == 1 + 2**-10
    assert half_away_from_zero(ties, torch.float32) is ties
