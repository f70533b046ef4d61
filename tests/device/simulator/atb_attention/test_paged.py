"""Attention of ATB over pages: values against float64 over gathered keys, what is read and written, what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from npudiff.device.simulator import (
    PROFILES,
    DeviceFault,
    NotSimulated,
    OperatorRejected,
    UndefinedBehaviour,
    use_profile,
)

DTYPES = (torch.bfloat16, torch.float16)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


@pytest.fixture
def decode(atb):
    """A good call of _npu_paged_attention as keywords, and its sequences."""

    def make(lengths=(5, 40, 16), *, heads=6, kv_heads=2, dim=32, value_dim=32, dtype=torch.bfloat16):
        keys = [atb.normal(size, kv_heads, dim, dtype=dtype, seed=size) for size in lengths]
        values = [atb.normal(size, kv_heads, value_dim, dtype=dtype, seed=size + 99) for size in lengths]
        key_cache, table = atb.paged(keys)
        call = {
            "query": atb.normal(len(lengths), heads, dim, dtype=dtype),
            "key_cache": key_cache,
            "value_cache": atb.paged(values)[0],
            "num_kv_heads": kv_heads,
            "num_heads": heads,
            "scale_value": 0.17,
            "block_table": table,
            "context_lens": atb.int32(lengths),
            "out": torch.full((len(lengths), heads, value_dim), 9.0, dtype=dtype),
        }
        return call, keys, values

    return make


def check(lab, out, query, key, value, visible, scale, relative=0.0):
    """Compare one sequence, all [tokens, heads, dim], with float64."""
    by_head = [tensor.transpose(0, 1) for tensor in (query, key, value)]
    wanted, bound, _ = lab.exact(*by_head, visible, scale=scale)
    group = query.shape[1] // key.shape[1]
    spread = by_head[2].double().abs().amax(1, keepdim=True).repeat_interleave(group, 0)
    error = (out.transpose(0, 1).double() - wanted).abs()
    assert (error <= bound + relative * spread).all(), (error - bound).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "value_dim"), [(6, 2, 32), (4, 4, 32), (4, 1, 20), (4, 0, 32)])
def test_decode_is_attention_over_the_gathered_keys(lab, atb, decode, dtype, heads, kv_heads, value_dim):
    call, keys, values = decode(heads=heads, kv_heads=kv_heads or heads, value_dim=value_dim, dtype=dtype)
    call["num_kv_heads"] = kv_heads
    assert atb.ops._npu_paged_attention(**call) is None
    for row, key, value in zip(range(3), keys, values, strict=True):
        visible = torch.ones(1, len(key), dtype=torch.bool)
        check(lab, call["out"][row : row + 1], call["query"][row : row + 1], key, value, visible, 0.17)


def test_decode_agrees_with_torchs_attention(atb, decode):
    call, keys, values = decode()
    atb.ops._npu_paged_attention(**call)
    for out, query, key, value in zip(call["out"], call["query"], keys, values, strict=True):
        parts = [tensor.double().transpose(0, 1)[None] for tensor in (query[None], key, value)]
        wanted = torch.nn.functional.scaled_dot_product_attention(*parts, scale=0.17, enable_gqa=True)[0, :, 0]
        torch.testing.assert_close(out.double(), wanted, rtol=2**-7, atol=2**-7)


def test_a_sequence_without_keys_and_tokens_behind_the_last_keep_what_they_have(atb, decode):
    call, *_ = decode()
    call["context_lens"] = atb.int32([0, 40])
    atb.ops._npu_paged_attention(**call)
    assert (call["out"][[0, 2]] == 9).all()
    assert (call["out"][1] != 9).all()
    with changed(atb_empty_context="zero"):
        atb.ops._npu_paged_attention(**call)
    assert (call["out"][0] == 0).all()
    assert (call["out"][2] == 9).all()


def test_a_workspace_is_bytes_and_changes_nothing(atb, decode):
    call, *_ = decode()
    workspace = atb.ops._npu_paged_attention_get_workspace(**call)
    assert workspace.dtype == torch.uint8
    assert (call["out"] == 9).all()
    atb.ops._npu_paged_attention(**call)
    first = call["out"].clone()
    atb.ops._npu_paged_attention(**call, workspace=workspace)
    assert torch.equal(call["out"], first)


def test_inputs_with_gaps_are_copied_and_outputs_with_gaps_refused(atb, decode):
    call, *_ = decode()
    atb.ops._npu_paged_attention(**call)
    gaps = dict(call, out=torch.empty_like(call["out"]))
    for name in ("query", "key_cache", "value_cache", "block_table"):
        gaps[name] = torch.stack([call[name], call[name]], -1)[..., 0]
        assert not gaps[name].is_contiguous()
    atb.ops._npu_paged_attention(**gaps)
    assert torch.equal(gaps["out"], call["out"])
    gaps["out"] = torch.stack([call["out"], call["out"]], -1)[..., 0]
    with pytest.raises(OperatorRejected, match="out was not contiguous"):
        atb.ops._npu_paged_attention(**gaps)


REFUSED = {
    "num_heads": [0, 5],
    "num_kv_heads": [-1, 1],
    "query": [torch.zeros(3, 6, 32), torch.zeros(3, 6, 16, dtype=torch.bfloat16), torch.zeros(3, 192).bfloat16()],
    "key_cache": [torch.zeros(4, 16, 2, 32), torch.zeros(4, 16, 64).bfloat16(), torch.zeros(4, 16, 3, 32).bfloat16()],
    "value_cache": [torch.zeros(4, 16, 2, 32).bfloat16(), torch.zeros(8, 16, 2, 32)],
    "block_table": [torch.zeros(3, 3, dtype=torch.int64), torch.zeros(9, dtype=torch.int32)],
    "context_lens": [torch.ones(3, dtype=torch.int64), torch.ones(3, 1, dtype=torch.int32), torch.tensor([-1]).int()],
    "out": [torch.zeros(3, 6, 32), torch.zeros(3, 6, 16).bfloat16(), torch.zeros(2, 6, 32).bfloat16()],
}


@pytest.mark.parametrize("form", ["_npu_paged_attention", "_npu_paged_attention_get_workspace"])
@pytest.mark.parametrize(("name", "given"), [(name, given) for name, values in REFUSED.items() for given in values])
def test_what_atb_refuses(atb, decode, form, name, given):
    call, *_ = decode()
    with pytest.raises(OperatorRejected):
        getattr(atb.ops, form)(**call | {name: given})
    assert (call["out"] == 9).all()


@pytest.mark.parametrize(
    ("dim", "value_dim", "block_size", "taken"),
    [
        (128, 128, 128, True), (128, 128, 144, False), (64, 64, 256, True), (64, 64, 272, False),
        (256, 256, 64, True), (256, 256, 128, True), (256, 256, 256, True), (256, 256, 192, False),
        (288, 96, 128, True), (288, 96, 144, False), (576, 576, 128, True), (592, 96, 16, False),
        (128, 64, 512, True),
    ],
)  # fmt: skip
def test_head_dims_and_block_sizes(atb, dim, value_dim, block_size, taken):
    call = {
        "query": torch.zeros(1, 1, dim).half(),
        "key_cache": torch.zeros(1, block_size, 1, dim).half(),
        "value_cache": torch.zeros(1, block_size, 1, value_dim).half(),
        "num_kv_heads": 1, "num_heads": 1, "scale_value": 1.0,
        "block_table": atb.int32([[0]]), "context_lens": atb.int32([1]), "out": torch.ones(1, 1, value_dim).half(),
    }  # fmt: skip
    if taken:
        atb.ops._npu_paged_attention(**call)
        assert (call["out"] == 0).all()
    else:
        with pytest.raises(OperatorRejected, match=r"block size|head dim"):
            atb.ops._npu_paged_attention(**call)


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("context_lens", [5, 49, 16], r"block_table\[1\] has 3 blocks of 16, and the sequence 49 tokens"),
        ("context_lens", [5, 40, 16, 1], "context_lens has 4 sequences, and query 3 tokens"),
        ("block_table", [[1, 2, 3]], "block_table has 1 rows, and sequence 1 reads its own"),
        ("block_table", [[99, 0, 0]] * 3, r"block_table\[0, 0\] is 99, and the cache has 11 blocks"),
        ("block_table", [[-1, 0, 0]] * 3, r"block_table\[0, 0\] is -1"),
    ],
)
def test_reads_outside_a_tensor_are_faults(atb, decode, name, number, message):
    call, *_ = decode()
    call[name] = atb.int32(number)
    with pytest.raises(DeviceFault, match=message):
        atb.ops._npu_paged_attention(**call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value_dim", [512, 64])
def test_mla_takes_values_from_the_front_of_the_keys(lab, atb, decode, dtype, value_dim):
    call, keys, _ = decode(heads=4, kv_heads=1, dim=576, dtype=dtype)
    del call["value_cache"]
    call |= {"mla_vheadsize": value_dim, "scale_value": 0.04, "out": torch.zeros(3, 4, value_dim, dtype=dtype)}
    atb.ops._npu_paged_attention_mla(**call)
    for row, key in enumerate(keys):
        visible = torch.ones(1, len(key), dtype=torch.bool)
        window = slice(row, row + 1)
        check(lab, call["out"][window], call["query"][window], key, key[..., :value_dim], visible, 0.04)
    for name, given in (
        ("num_kv_heads", 0), ("mla_vheadsize", 577), ("mla_vheadsize", 0), ("out", torch.zeros(3, 4, 576, dtype=dtype)),
        ("context_lens", atb.int32([1]).long()), ("num_heads", 5),
    ):  # fmt: skip
        with pytest.raises(OperatorRejected):
            atb.ops._npu_paged_attention_mla(**call | {name: given})


@pytest.mark.parametrize(("heads", "value_dim", "taken"), [(16, 512, True), (8, 512, False), (16, 256, False)])
def test_mla_has_blocks_of_256_for_two_numbers_of_heads(atb, heads, value_dim, taken):
    query, cache = torch.zeros(1, heads, 576).half(), torch.zeros(1, 256, 1, 576).half()
    tables = atb.int32([[0]]), atb.int32([200])
    out = torch.ones(1, heads, value_dim).half()
    if taken:
        atb.ops._npu_paged_attention_mla(query, cache, 1, heads, 1.0, *tables, value_dim, out)
        assert (out == 0).all()
    else:
        with pytest.raises(OperatorRejected, match="block size 256"):
            atb.ops._npu_paged_attention_mla(query, cache, 1, heads, 1.0, *tables, value_dim, out)


COUNTS, LENGTHS = (3, 0, 1, 20), (5, 4, 17, 20)


@pytest.fixture
def prefill(atb):
    """A good call of _npu_flash_attention_qlens, without mask."""

    def make(dtype):
        keys = [atb.normal(size, 2, 32, dtype=dtype, seed=size) for size in LENGTHS]
        values = [atb.normal(size, 2, 32, dtype=dtype, seed=size + 99) for size in LENGTHS]
        key_cache, table = atb.paged(keys)
        call = {
            "query": atb.normal(sum(COUNTS), 4, 32, dtype=dtype),
            "key_cache": key_cache,
            "value_cache": atb.paged(values)[0],
            "block_table": table,
            "seq_len": atb.int32(COUNTS),
            "context_lens": atb.int32(LENGTHS),
            "num_kv_heads": 2,
            "num_heads": 4,
            "scale_value": 0.17,
            "out": torch.full((sum(COUNTS), 4, 32), 9.0, dtype=dtype),
        }
        return call, keys, values

    return make


def template(dtype):
    """As sglang makes it: 1 in bfloat16, -inf in float16."""
    hiding = 1.0 if dtype == torch.bfloat16 else -math.inf
    return torch.zeros(128, 128, dtype=dtype).masked_fill(torch.ones(128, 128).triu(1).bool(), hiding)


def check_causal(lab, call, keys, values, loss=None):
    start = 0
    for count, key, value in zip(COUNTS, keys, values, strict=True):
        window = slice(start, start + count)
        start += count
        if not count:
            continue
        visible = torch.ones(count, len(key), dtype=torch.bool).tril(len(key) - count)
        query = call["query"].view(-1, 4, 32)[window]
        relative = 0.0 if loss is None else loss(query.transpose(0, 1), key.transpose(0, 1), 0.17)
        check(lab, call["out"].view(-1, 4, 32)[window], query, key, value, visible, 0.17, relative)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("joined", [False, True])
def test_a_prefill_behind_a_prefix_is_causal(lab, atb, prefill, dtype, joined):
    call, keys, values = prefill(dtype)
    if joined:
        call |= {name: call[name].flatten(1) for name in ("query", "out")}
        call |= {name: call[name].flatten(2) for name in ("key_cache", "value_cache")}
    assert atb.ops._npu_flash_attention_qlens(**call, mask=template(dtype)) is None
    check_causal(lab, call, keys, values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_templates_of_another_content_are_told(atb, prefill, dtype):
    call, *_ = prefill(dtype)
    good = template(dtype)
    inclusive = torch.where(torch.ones(128, 128).triu(0).bool(), good[0, 1], 0)
    other = torch.ones(128, 128).triu(1).to(dtype) * (-10000 if dtype == torch.bfloat16 else 1)
    seen = good.clone()
    seen[5, 3] = -1  # a number below the diagonal that hides nothing
    for mask in (good.T.contiguous(), torch.zeros_like(good), inclusive, other, seen):
        with pytest.raises(UndefinedBehaviour, match="above the diagonal and 0 elsewhere"):
            atb.ops._npu_flash_attention_qlens(**call, mask=mask)
    for mask in (good[:64, :64], good.float(), torch.ones(2048, 2048).triu(1).to(dtype)):
        with pytest.raises(OperatorRejected, match="mask"):
            atb.ops._npu_flash_attention_qlens(**call, mask=mask)


@pytest.mark.parametrize(
    ("name", "given", "error"),
    [
        ("seq_len", [3, 0, 1], OperatorRejected), ("context_lens", [5, 4, 17], OperatorRejected),
        ("seq_len", [3, 0, 2, 20], DeviceFault), ("context_lens", [2, 4, 17, 20], UndefinedBehaviour),
        ("context_lens", [5, 4, 17, 40], DeviceFault),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["qlens", "splitfuse"])
def test_lengths_of_chunks_that_do_not_fit(atb, prefill, form, name, given, error):
    call, *_ = prefill(torch.bfloat16)
    call[name] = atb.int32(given)
    function = {"qlens": atb.ops._npu_flash_attention_qlens, "splitfuse": atb.ops._npu_paged_attention_splitfuse}[form]
    mask = template(torch.bfloat16) if form == "qlens" else torch.zeros(24, 40).bfloat16()
    with pytest.raises(error):
        function(**call, mask=mask)


def additive(dtype, width=24):
    """Return the mask of op-plugin's test: a row per token, -10000 behind its key."""
    rows = []
    for count, length in zip(COUNTS, LENGTHS, strict=True):
        rows.append(torch.full((count, width), -10000.0).triu(1 + length - count))
    return torch.cat(rows).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scores", ["float16", "float32"])
def test_chunks_are_attended_under_a_mask_of_all_tokens(lab, atb, prefill, dtype, scores):
    call, keys, values = prefill(dtype)
    with changed(atb_float16_scores=scores):
        assert atb.ops._npu_paged_attention_splitfuse(**call, mask=additive(dtype)) is None
    rounded = dtype == torch.float16 and scores == "float16"
    check_causal(lab, call, keys, values, atb.lost_in_halves if rounded else None)


def test_what_a_mask_adds_is_added(lab, atb, prefill):
    """A mask that is no mask: numbers that change the scores, and do not hide."""
    call, keys, values = prefill(torch.bfloat16)
    bias = atb.normal(24, 24, seed=3)
    atb.ops._npu_paged_attention_splitfuse(**call, mask=bias)
    query, out = (call[name][4:].double().transpose(0, 1) for name in ("query", "out"))
    key, value = (one[3].double().repeat_interleave(2, 1).transpose(0, 1) for one in (keys, values))
    scores = query @ key.transpose(1, 2) * 0.17 + bias[4:, :20].double()
    torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.zeros(23, 24).bfloat16(), OperatorRejected), (torch.zeros(24, 19).bfloat16(), OperatorRejected),
        (torch.zeros(24, 24), OperatorRejected), (torch.zeros(1, 24, 24).bfloat16(), NotSimulated),
    ],
)  # fmt: skip
def test_masks_of_chunks_that_do_not_fit(atb, prefill, mask, error):
    call, *_ = prefill(torch.bfloat16)
    with pytest.raises(error, match="mask"):
        atb.ops._npu_paged_attention_splitfuse(**call, mask=mask)


@pytest.mark.parametrize("dim", [24, 144])
def test_head_dims_behind_a_prefix(atb, dim):
    query, cache = torch.zeros(1, 1, dim).bfloat16(), torch.zeros(1, 16, 1, dim).bfloat16()
    lengths = atb.int32([[0]]), template(torch.bfloat16), atb.int32([1]), atb.int32([1])
    with pytest.raises(OperatorRejected, match=f"head dim {dim}"):
        atb.ops._npu_flash_attention_qlens(query, cache, cache, *lengths, 1, 1, 1.0, torch.empty_like(query))
