"""What the operators compute, against float64 and against torch's own attention."""

import math

import pytest
import torch
from torch.nn.functional import pad, scaled_dot_product_attention

QUERY_LENGTHS = [1, 5, 140]  # one query, few, more than a row tile
KEY_LENGTHS = [1, 37, 1100]  # one key, no full block, row and key tiles that cross each other


def visible(mode, queries, keys, pre=0, following=0):
    """Say row by row who sees whom, in the words of the documentation's table."""
    seen = torch.zeros(queries, keys, dtype=torch.bool)
    for i in range(queries):
        position = i + keys - queries
        band = (position - pre, position + following)
        first, last = {0: (0, keys), 2: (0, i), 3: (0, position), 4: band}[mode]
        seen[i, max(0, first) : last + 1] = True
    return seen


def assert_right(actual, expected, bound):
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    ratio = ((actual.double() - expected).abs() / bound).max()
    assert ratio <= 1, f"error over bound {ratio:.3g}"


def check(lab, sequences, arguments, layout, seen, *, version=2):
    lengths = [q.shape[1] for q in sequences.queries]
    output, lse = lab.call(arguments, version=version)
    if layout == "BSH":
        output, layout = output.unflatten(-1, (sequences.heads, -1)), "BSND"
    parts, lses = lab.unpack(output, layout, lengths), lab.unpack_lse(lse, layout, lengths)
    for index, part in enumerate(parts):
        query, key, value = sequences.queries[index], sequences.keys[index], sequences.values[index]
        expected, bound, expected_lse = lab.exact(query, key, value, seen[index], scale=sequences.scale)
        assert_right(part, expected, bound)
        torch.testing.assert_close(lses[index].double(), expected_lse, rtol=1e-5, atol=2e-5)
    return output, lse


@pytest.mark.few(50)
@pytest.mark.parametrize("paging", [None, (128, 3), (16, 3), (128, 4), (48, 4)])
@pytest.mark.parametrize(("mode", "pre", "following"), [(0, 0, 0), (3, 0, 0), (4, 16, 0), (4, 3, 2), (4, 450, 0)])
@pytest.mark.parametrize("layout", ["TND", "BSND", "BNSD", "BSH"])
def test_layouts_modes_and_paging_agree_with_float64(lab, *, layout, mode, pre, following, paging):
    version = 1 if layout in ("BSH", "BNSD") else 2
    sequences = lab.ragged(QUERY_LENGTHS, KEY_LENGTHS)
    block_size, rank = paging or (0, 3)
    arguments = lab.pack(sequences, layout, version=version, block_size=block_size, rank=rank, fill=9.0)
    arguments |= {"sparse_mode": mode, "pre_tokens": pre, "next_tokens": following}
    if mode:
        arguments["atten_mask"] = lab.template(torch.bool)
    seen = [visible(mode, q, k, pre, following) for q, k in zip(QUERY_LENGTHS, KEY_LENGTHS, strict=True)]
    check(lab, sequences, arguments, layout, seen, version=version)


@pytest.mark.parametrize("layout", ["BSND", "BNSD"])
def test_left_up_causal_counts_from_the_first_key(lab, layout):
    sequences = lab.ragged(QUERY_LENGTHS, KEY_LENGTHS)
    arguments = lab.pack(sequences, layout, fill=9.0) | {"sparse_mode": 2, "atten_mask": lab.template()}
    arguments |= {"pre_tokens": -9, "next_tokens": 0}  # without effect
    seen = [visible(2, q, k) for q, k in zip(QUERY_LENGTHS, KEY_LENGTHS, strict=True)]
    check(lab, sequences, arguments, layout, seen)


@pytest.mark.few(16)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (8, 2), (6, 1), (64, 1)])
@pytest.mark.parametrize(("dim", "value_dim"), [(16, 16), (64, 64), (128, 128), (192, 128), (256, 256)])
def test_heads_dims_and_dtypes(lab, *, dtype, heads, kv_heads, dim, value_dim):
    sizes = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "value_dim": value_dim, "dtype": dtype}
    sequences = lab.ragged([3, 7], [20, 550], **sizes)
    arguments = lab.pack(sequences, "BNSD", fill=9.0) | {"sparse_mode": 3, "atten_mask": lab.template()}
    check(lab, sequences, arguments, "BNSD", [visible(3, 3, 20), visible(3, 7, 550)])


@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (128, 128), (192, 128), (192, 192)])
def test_tnd_head_dims(lab, dim, value_dim):
    sequences = lab.ragged([3, 1], [20, 550], dim=dim, value_dim=value_dim)
    for mode, pre in ((0, 0), (3, 0), (4, 7)):
        arguments = lab.pack(sequences, "TND", block_size=128, fill=9.0)
        arguments |= {"sparse_mode": mode, "pre_tokens": pre, "next_tokens": 0}
        arguments |= {"atten_mask": lab.template()} if mode else {}
        check(lab, sequences, arguments, "TND", [visible(mode, 3, 20, pre), visible(mode, 1, 550, pre)])


@pytest.mark.few(12)
@pytest.mark.parametrize(
    "form", ["[S1, S2]", "[1, S1, S2]", "[B, S1, S2]", "[1, 1, S1, S2]", "[B, 1, S1, S2]", "larger"]
)
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8])
def test_full_masks(lab, mode, form, dtype):
    sequences = lab.ragged([4, 6], [50, 600])
    hidden = torch.rand(2, 1, 6, 600, generator=torch.Generator().manual_seed(2)) < 0.5
    hidden[..., 3] = False
    if form not in ("[B, S1, S2]", "[B, 1, S1, S2]", "larger"):
        hidden = hidden[:1]
    mask = {
        "[S1, S2]": hidden[0, 0],
        "[1, S1, S2]": hidden[0],
        "[B, S1, S2]": hidden[:, 0],
        "[1, 1, S1, S2]": hidden,
        "[B, 1, S1, S2]": hidden,
        "larger": pad(hidden, (0, 40, 0, 10), value=1.0),
    }[form].to(dtype)
    arguments = lab.pack(sequences, "BSND", fill=9.0) | {"sparse_mode": mode, "atten_mask": mask}
    if mode == 1:
        arguments |= {"pre_tokens": -9, "next_tokens": 0}  # without effect
    seen = [~hidden[0, 0, :4, :50], ~hidden[-1, 0, :6, :600]]
    check(lab, sequences, arguments, "BSND", seen)


def test_mode_0_hides_what_mask_or_band_hides(lab):
    sequences = lab.ragged([6], [40])
    hidden = torch.rand(1, 6, 40, generator=torch.Generator().manual_seed(2)) < 0.3
    hidden[0].fill_diagonal_(fill_value=False)
    arguments = lab.pack(sequences, "BSND") | {"sparse_mode": 0, "atten_mask": hidden}
    band = torch.ones(6, 40).triu(-2).tril(5).bool()
    check(lab, sequences, arguments | {"pre_tokens": 2, "next_tokens": 5}, "BSND", [~hidden[0] & band])


@pytest.mark.few(12)
@pytest.mark.parametrize("layout", ["BSND", "BNSD", "BSH"])
@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("front", ["one", "batch"])
@pytest.mark.parametrize("block_size", [0, 128])
def test_one_query_applies_its_mask_and_ignores_the_rest(lab, layout, rank, front, block_size):
    # https://github.com/sgl-project/sglang/pull/24582: pre_tokens has no effect on a decode.
    key_lengths = [300, 7, 600]
    sequences = lab.ragged([1, 1, 1], key_lengths)
    arguments = lab.pack(sequences, layout, block_size=block_size, fill=9.0)
    capacity = arguments["block_table"].shape[1] * block_size if block_size else 600
    generator = torch.Generator().manual_seed(3)
    hidden = torch.rand(3 if front == "batch" else 1, capacity, generator=generator) < 0.5
    hidden[:, 0] = False
    shape = (len(hidden), *[1] * (rank - 2), capacity)
    arguments |= {"atten_mask": hidden.view(shape), "sparse_mode": 4, "pre_tokens": -1, "next_tokens": 0}
    arguments["actual_seq_qlen"] = [0]
    seen = [~hidden[b % len(hidden), None, :length] for b, length in enumerate(key_lengths)]
    check(lab, sequences, arguments, layout, seen)


def test_one_query_without_mask_sees_everything(lab):
    sequences = lab.ragged([1, 1], [300, 700])
    arguments = lab.pack(sequences, "BSND", block_size=128, fill=9.0)
    for mode in (0, 1, 2, 3, 4):
        more = {"sparse_mode": mode, "pre_tokens": 5, "next_tokens": 0}
        everything = [torch.ones(1, 300).bool(), torch.ones(1, 700).bool()]
        check(lab, sequences, arguments | more, "BSND", everything)


def test_against_torch_attention():
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(2, 8, 90, 64, generator=generator).bfloat16()
    key, value = (torch.randn(2, 2, 90, 64, generator=generator).bfloat16() for _ in range(2))
    mask = torch.ones(2048, 2048).triu(1).bool()
    output, _ = torch.ops.npu.npu_fused_infer_attention_score(
        query,
        key,
        value,
        num_heads=8,
        num_key_value_heads=2,
        scale=0.125,
        input_layout="BNSD",
        sparse_mode=3,
        atten_mask=mask,
    )
    wide = [t.double() for t in (query, key, value)]
    expected = scaled_dot_product_attention(*wide, is_causal=True, scale=0.125, enable_gqa=True)
    torch.testing.assert_close(output.double(), expected, rtol=2**-8, atol=2**-7)


def test_against_three_loops(lab):
    """No matrix product, no broadcasting: every number by hand."""
    sequences = lab.ragged([2, 3], [4, 9], heads=4, kv_heads=2, dim=16)
    arguments = lab.pack(sequences, "BSND", fill=9.0)
    arguments |= {"sparse_mode": 4, "pre_tokens": 2, "next_tokens": 1, "atten_mask": lab.template()}
    output, lse = lab.call(arguments)
    for b in range(2):
        query, key, value = (t[b].tolist() for t in (sequences.queries, sequences.keys, sequences.values))
        queries, keys = len(query[0]), len(key[0])
        for n in range(4):
            for i in range(queries):
                position = i + keys - queries
                scores = {}
                for j in range(keys):
                    if position - 2 <= j <= position + 1:
                        scores[j] = sum(x * y for x, y in zip(query[n][i], key[n // 2][j], strict=True)) / 4
                total = sum(math.exp(s) for s in scores.values())
                assert lse[b, n, i, 0].item() == pytest.approx(math.log(total), abs=1e-5)
                for d in range(16):
                    expected = sum(math.exp(s) * value[n // 2][j][d] for j, s in scores.items()) / total
                    assert output[b, i, n, d].item() == pytest.approx(expected, rel=2**-7, abs=2**-7)


def test_every_head_of_a_group_uses_its_key_head():
    query = torch.randn(1, 6, 1, 16).bfloat16()
    value = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 1, 16).bfloat16().contiguous()
    output, _ = torch.ops.npu.npu_fused_infer_attention_score_v2(
        query, value, value, num_query_heads=6, num_key_value_heads=3, input_layout="BNSD"
    )
    assert output[0, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_window_keeps_prefill_and_decode_apart_by_one(lab):
    """pre_tokens = W - 1 shows W keys: the row's own and W - 1 before it."""
    sequences = lab.ragged([1], [40], heads=1, kv_heads=1)
    arguments = lab.pack(sequences, "TND", block_size=16) | {"sparse_mode": 4, "next_tokens": 0}
    for window in (1, 2, 39, 40, 41):
        band = arguments | {"atten_mask": lab.template(), "pre_tokens": window - 1}
        seen = torch.arange(40)[None] >= 40 - window
        check(lab, sequences, band, "TND", [seen])


def test_twice_the_same(lab):
    sequences = lab.ragged(QUERY_LENGTHS, KEY_LENGTHS)
    arguments = lab.pack(sequences, "TND", block_size=128) | {"sparse_mode": 3, "atten_mask": lab.template()}
    first, second = lab.call(arguments), lab.call(arguments)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_inputs_are_not_written(lab):
    sequences = lab.ragged(QUERY_LENGTHS, KEY_LENGTHS)
    arguments = lab.pack(sequences, "BSND", block_size=128, fill=9.0)
    arguments |= {"sparse_mode": 3, "atten_mask": lab.template()}
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    lab.call(arguments)
    for name, tensor in before.items():
        assert torch.equal(arguments[name], tensor), name


def test_non_contiguous_inputs(lab):
    sequences = lab.ragged([3, 7], [20, 550])
    arguments = lab.pack(sequences, "BNSD", fill=9.0)
    expected, _ = lab.call(arguments)
    for name in ("query", "key", "value"):
        arguments[name] = arguments[name].transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(lab.call(arguments)[0], expected)
