"""The branches of fused attention by themselves: npu_prompt_flash_attention and npu_incre_flash_attention."""

import dataclasses
import math

import pytest
import torch

from npudiff.device.simulator import PROFILES, NotSimulated, OperatorRejected, use_profile

OPS = torch.ops.npu
QUERIES, KEYS = [5, 7], [9, 600]
LAYOUTS = ["BSH", "BSND", "BNSD", "BNSD_BSND", "TND"]


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def prompt(lab, sequences, layout, **more):
    """Call with the packed sequences; the output is per sequence, [heads, rows, dim]."""
    given = lab.pack(sequences, layout, version=1, fill=0.0)
    given["scale_value"] = given.pop("scale")
    given |= more
    tensors = [given.pop(name) for name in ("query", "key", "value")]
    output = OPS.npu_prompt_flash_attention(*tensors, **given)
    lengths = [query.shape[1] for query in sequences.queries]
    if layout == "BSH":
        layout, output = "BSND", output.unflatten(2, (sequences.heads, -1))
    return lab.unpack(output, layout, lengths)


def visible(mode, queries, keys, before=None, after=0):
    """Return bool [queries, keys]: what each query sees in a sparse mode."""
    row, key = torch.arange(queries).unsqueeze(1), torch.arange(keys)
    shift = keys - queries
    shown = torch.ones(queries, keys, dtype=torch.bool)
    if mode == 2:
        return key <= row
    if mode == 3:
        return key <= row + shift
    if mode == 4:
        return (key <= row + shift + after) & (key >= row + shift - before)
    return shown


def judged(lab, found, sequences, shown, slack=0.0):
    """Assert that outputs are attention in float64 over what ``shown(queries, keys)`` says is visible."""
    for output, query, key, value in zip(found, sequences.queries, sequences.keys, sequences.values, strict=True):
        seen = shown(query.shape[1], key.shape[1])
        expected, bound, _ = lab.exact(query, key, value, seen, scale=sequences.scale)
        magnitude = lab.exact(query, key, value.abs(), seen, scale=sequences.scale)[0]
        live = seen.any(1)
        error = (output.double() - expected).abs() - bound - slack * magnitude
        assert (error[:, live] <= 0).all()
        assert output.shape == expected.shape


# Scores up to 36 are rounded to float16 twice, which moves a probability by up to 36 / 8 * 2^-11 and 2^-12 more; the
# steps behind them round six times.
HALVES = 2.0**-8


@pytest.mark.few(6)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("choice", ["float16", "float32"])
def test_without_a_mask_every_key_is_seen(lab, layout, dtype, choice):
    sequences = lab.ragged(QUERIES, KEYS, dtype=dtype)
    with changed(prompt_float16=choice):
        found = prompt(lab, sequences, layout)
    halves = choice == "float16" and dtype == torch.float16
    judged(lab, found, sequences, lambda queries, keys: visible(0, queries, keys), HALVES if halves else 0.0)


def test_float16_rounds_behind_both_products_where_speed_is_asked_for(lab):
    sequences = lab.ragged(QUERIES, KEYS, dtype=torch.float16)
    exact, fast = (prompt(lab, sequences, "BNSD", sparse_mode=mode) for mode in (10, 0))
    with changed(prompt_float16="float32"):
        chosen = prompt(lab, sequences, "BNSD")
    assert all(torch.equal(*pair) for pair in zip(exact, chosen, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(exact, fast, strict=True))
    assert all((one == one.half()).all() for one in fast)


@pytest.mark.parametrize("mode", [2, 3, 4])
@pytest.mark.parametrize("exact", [0, 10])
def test_sparse_modes_and_their_exact_twins(lab, mode, exact):
    sequences = lab.ragged([5, 7], [9, 12])
    more = {"pre_tokens": 3, "next_tokens": 1} if mode == 4 else {}
    found = prompt(lab, sequences, "BSND", sparse_mode=mode + exact, atten_mask=lab.template(), **more)
    judged(lab, found, sequences, lambda queries, keys: visible(mode, queries, keys, before=3, after=1))


def test_a_full_mask_ends_at_the_querys_own_position_by_default(lab):
    """next_tokens is 0 here, and no limit in fused attention: key tiles behind a query's position are left out."""
    sequences = lab.ragged([4], [900], dtype=torch.bfloat16)
    mask = torch.zeros(1, 4, 900, dtype=torch.bool)
    limited, free = (
        prompt(lab, sequences, "BNSD", atten_mask=mask, **more) for more in ({}, {"next_tokens": 2**31 - 1})
    )
    judged(lab, free, sequences, lambda queries, keys: visible(0, queries, keys))
    assert not torch.equal(limited[0], free[0])


def test_one_query_is_treated_like_several(lab):
    """Sparse mode 2 shows it the first key; the branch of one query ignores the mode."""
    sequences = lab.ragged([1, 1], [9, 12])
    found = prompt(lab, sequences, "BNSD", sparse_mode=2, atten_mask=lab.template())
    judged(lab, found, sequences, lambda queries, keys: visible(2, queries, keys))


def test_lengths_say_which_rows_count(lab):
    sequences = lab.ragged([5, 7], [9, 12])
    for output, length in zip(prompt(lab, sequences, "BNSD"), (5, 7), strict=True):
        assert output.shape[1] == length
    given = lab.pack(sequences, "BNSD", version=1, fill=0.0)
    output = OPS.npu_prompt_flash_attention(
        *(given[name] for name in ("query", "key", "value")), num_heads=4, num_key_value_heads=2, input_layout="BNSD",
        actual_seq_lengths=[5, 7], scale_value=0.1,
    )  # fmt: skip
    assert not output[0, :, 5:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_shift_is_added_in_float32(lab, dtype):
    sequences = lab.ragged([5], [9], dtype=dtype)
    shift = torch.randn(1, 4, 5, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    (found,) = prompt(lab, sequences, "BNSD", pse_shift=shift)
    with changed(prompt_float16="float32"):
        assert torch.equal(prompt(lab, sequences, "BNSD", pse_shift=shift)[0], found)
    query, key, value = (part[0].double() for part in (sequences.queries, sequences.keys, sequences.values))
    scores = query @ key.repeat_interleave(2, 0).transpose(1, 2) * sequences.scale + shift[0].double()
    expected = scores.softmax(-1) @ value.repeat_interleave(2, 0)
    assert ((found.double() - expected).abs() < torch.finfo(dtype).eps * 4).all()


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
@pytest.mark.parametrize("block_size", [0, 16])
@pytest.mark.parametrize("masked", [False, True])
def test_incremental_is_the_one_query_branch_of_fused_attention(lab, layout, block_size, masked):
    sequences = lab.ragged([1, 1, 1], [9, 600, 33])
    given = lab.pack(sequences, layout, version=1, block_size=block_size, fill=0.0)
    if masked:
        width = given["block_table"].shape[1] * block_size if block_size else 600
        given["atten_mask"] = torch.arange(width).remainder(3).eq(1).expand(3, 1, width).contiguous()
    expected, _ = lab.call(given, version=1, lse=False, inner_precise=1)
    given["scale_value"] = given.pop("scale")
    del given["actual_seq_lengths"]
    given["actual_seq_lengths"] = given.pop("actual_seq_lengths_kv")
    tensors = [given.pop(name) for name in ("query", "key", "value")]
    found = OPS.npu_incre_flash_attention(*tensors, **given)
    assert torch.equal(found, expected)
    assert found.isfinite().all()


def test_incremental_takes_integers_and_gives_them(lab):
    sequences = lab.ragged([1, 1], [9, 33], dtype=torch.float16)
    given = lab.pack(sequences, "BNSD", version=1, fill=0.0)
    tensors = [given["query"], *(given[name].mul(20).round().clamp(-128, 127).char() for name in ("key", "value"))]
    more = {"num_heads": 4, "num_key_value_heads": 2, "input_layout": "BNSD", "scale_value": 0.125}
    lengths = {"actual_seq_lengths": [9, 33]}
    scales = torch.full((2, 2, 1, 64), 0.05).half()
    found = OPS.npu_incre_flash_attention(*tensors, antiquant_scale=scales, **more, **lengths)
    expected = OPS.npu_incre_flash_attention(
        tensors[0], *(one.half() * scales[0, 0, 0, 0] for one in tensors[1:]), **more, **lengths
    )
    assert (found - expected).abs().max() < 2e-3
    assert expected.abs().max() > 0.1
    quantised = OPS.npu_incre_flash_attention(*given_plain(lab, sequences), quant_scale2=torch.tensor([30.0]), **more)
    assert quantised.dtype == torch.int8


def given_plain(lab, sequences):
    given = lab.pack(sequences, "BNSD", version=1, fill=0.0)
    return [given[name] for name in ("query", "key", "value")]


def test_both_refuse_what_the_other_has(lab):
    sequences = lab.ragged([2], [9])
    plain = given_plain(lab, sequences)
    heads = {"num_heads": 4, "num_key_value_heads": 2, "scale_value": 0.125}
    refused = [
        (OPS.npu_incre_flash_attention, {"input_layout": "BNSD"}, "query was of shape .*one query per sequence"),
        (OPS.npu_incre_flash_attention, {"input_layout": "BNSD_BSND"}, "input_layout was 'BNSD_BSND'"),
        (OPS.npu_incre_flash_attention, {"input_layout": ""}, "input_layout is empty"),
        (OPS.npu_prompt_flash_attention, {"input_layout": ""}, "input_layout is empty"),
        (OPS.npu_prompt_flash_attention, {"input_layout": "BNSD_NBSD"}, "input_layout was 'BNSD_NBSD'"),
        (
            OPS.npu_prompt_flash_attention,
            {"input_layout": "BNSD", "sparse_mode": 9},
            "sparse_mode was 9; allowed: 0 to",
        ),
        (OPS.npu_prompt_flash_attention, {"input_layout": "BNSD", "sparse_mode": 3}, "atten_mask was None"),
        (
            OPS.npu_prompt_flash_attention,
            {"input_layout": "BNSD", "deq_scale1": torch.ones(1)},
            "deq_scale1 was given; allowed: None for a 16-bit query",
        ),
    ]
    for operator, more, message in refused:
        with pytest.raises(OperatorRejected, match=message):
            operator(*plain, **heads | more)
    one = given_plain(lab, lab.ragged([1], [9]))
    with pytest.raises(NotSimulated, match="kv_padding_size was given"):
        OPS.npu_incre_flash_attention(*one, **heads, input_layout="BNSD", kv_padding_size=torch.ones(1).long())
    OPS.npu_prompt_flash_attention(*plain, **heads, input_layout="BNSD", padding_mask=torch.ones(1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes_without_data(lab, layout):
    sequences = lab.ragged(QUERIES, [9, 20])
    given = lab.pack(sequences, layout, version=1, fill=0.0)
    given["scale_value"] = given.pop("scale")
    tensors = [given.pop(name) for name in ("query", "key", "value")]
    for more in ({}, {"quant_scale2": torch.ones(1)} if layout != "TND" else {}):
        eager = OPS.npu_prompt_flash_attention(*tensors, **given, **more)
        moved = {name: one.to("meta") for name, one in more.items()}
        inferred = OPS.npu_prompt_flash_attention(*(one.to("meta") for one in tensors), **given, **moved)
        assert (inferred.shape, inferred.dtype) == (eager.shape, eager.dtype)


def test_scale_is_that_of_the_caller(lab):
    sequences = lab.ragged([3], [5])
    (one,) = prompt(lab, sequences, "BNSD", scale_value=0.0)
    mean = sequences.values[0].double().mean(1, keepdim=True).repeat_interleave(2, 0)
    assert (one.double() - mean).abs().max() < 2**-7 * max(1.0, float(mean.abs().max())) * math.sqrt(2)
