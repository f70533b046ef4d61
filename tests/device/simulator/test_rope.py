"""Attention with query_rope and key_rope (multi-head latent attention), against float64 and torch's own attention."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from npudiff.device.simulator import OperatorRejected, use_profile

ABSORBED = ["BSH", "BSND", "BNSD", "TND", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD", "TND_NTD"]
EXPANDED = ["BSH", "BSND", "BNSD", "BNSD_BSND", "TND", "NTD", "BSH_BNSD", "BSND_BNSD", "NTD_TND"]
PAGING = [None, (128, 3), (16, 4), (128, 5), (1024, 5)]


def absorbed(lab, query_lengths, key_lengths, *, heads=4, dtype=torch.bfloat16):
    """Return a latent cache: one key head of 512 and 64, whose values are its keys."""
    sequences = lab.ragged(query_lengths, key_lengths, heads=heads, kv_heads=1, dim=512, rope=64, dtype=dtype)
    sequences.values[:] = sequences.keys
    return sequences


def expanded(lab, query_lengths, key_lengths, *, heads=4, kv_heads=4, dtype=torch.bfloat16):
    return lab.ragged(query_lengths, key_lengths, heads=heads, kv_heads=kv_heads, dim=128, rope=64, dtype=dtype)


def visible(mode, queries, keys, pre=0, following=0):
    """Say who sees whom by the documentation's table: mode 0 all, 3 right-down causal, 4 the band."""
    position = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)
    if mode == 0:
        return torch.ones(queries, keys, dtype=torch.bool)
    if mode == 3:
        return key <= position
    return (key >= position - pre) & (key <= position + following)


def check(lab, sequences, arguments, layout, seen, version):
    """Compare output and log-sum-exp with float64 attention on concatenated parts, and with torch's."""
    scale = arguments[lab.names[version]["scale"]]
    lengths = [q.shape[1] for q in sequences.queries]
    output, lse = lab.call(arguments, version=version)
    assert output.dtype == sequences.queries[0].dtype
    if layout == "BSH":
        output, layout = output.unflatten(-1, (sequences.heads, -1)), "BSND"
    whole = sequences.whole
    parts, lses = lab.unpack(output, layout, lengths), lab.unpack_lse(lse, layout, lengths)
    for index, (part, part_lse) in enumerate(zip(parts, lses, strict=True)):
        query, key, value = whole.queries[index], whole.keys[index], whole.values[index]
        expected, bound, expected_lse = lab.exact(query, key, value, seen[index], scale=scale)
        ratio = ((part.double() - expected).abs() / bound).max()
        assert ratio <= 1, f"error over bound {ratio:.3g}"
        torch.testing.assert_close(part_lse.double(), expected_lse, rtol=1e-5, atol=3e-5)
        theirs = scaled_dot_product_attention(
            query.double()[None],
            key.double()[None],
            value.double()[None],
            attn_mask=seen[index],
            scale=scale,
            enable_gqa=True,
        )
        torch.testing.assert_close(expected, theirs[0], rtol=1e-10, atol=1e-10)
    return output, lse


@pytest.mark.few(60)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("paging", PAGING)
@pytest.mark.parametrize(("mode", "pre", "following"), [(0, 0, 0), (3, 0, 0), (4, 90, 1)])
@pytest.mark.parametrize("layout", ABSORBED)
def test_absorbed(lab, *, layout, mode, pre, following, paging, dtype):
    version = 1 if dtype == torch.float16 else 2
    query_lengths, key_lengths = [3, 1, 4], [130, 1, 700]
    sequences = absorbed(lab, query_lengths, key_lengths, dtype=dtype)
    block_size, rank = paging or (0, 3)
    arguments = lab.pack(sequences, layout, version=version, block_size=block_size, rank=rank, fill=9.0)
    arguments |= {"sparse_mode": mode, "pre_tokens": pre, "next_tokens": following}
    arguments |= {"atten_mask": lab.template(torch.bool)} if mode else {}
    seen = [visible(mode, q, k, pre, following) for q, k in zip(query_lengths, key_lengths, strict=True)]
    check(lab, sequences, arguments, layout, seen, version)


@pytest.mark.few(12)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("layout", ABSORBED)
def test_absorbed_decode(lab, layout, rank, version):
    """One query per sequence; all layouts and orders of a cache give the same bits, whatever its padding holds."""
    key_lengths = [300, 1, 513]
    sequences = absorbed(lab, [1, 1, 1], key_lengths, heads=16)
    arguments = lab.pack(sequences, layout, version=version, block_size=128, rank=rank)
    everything = [torch.ones(1, length, dtype=torch.bool) for length in key_lengths]
    output, lse = check(lab, sequences, arguments, layout, everything, version)
    plain = lab.call(lab.pack(sequences, "BSND", version=version, block_size=128), version=version)
    mine = lab.unpack(output, "BSND" if layout == "BSH" else layout, [1, 1, 1])
    for one, other in zip(mine, lab.unpack(plain[0], "BSND", [1, 1, 1]), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(lse.flatten(), plain[1].flatten())


@pytest.mark.parametrize("heads", [1, 2, 8, 32, 64, 128])
def test_absorbed_head_counts(lab, heads):
    sequences = absorbed(lab, [2], [40], heads=heads)
    arguments = lab.pack(sequences, "BSND", block_size=16)
    check(lab, sequences, arguments, "BSND", [visible(0, 2, 40)], 2)


@pytest.mark.few(54)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("paging", "kv_heads"), [(None, 4), (None, 2), ((128, 3), 1), ((16, 4), 2), ((128, 5), 4)])
@pytest.mark.parametrize(("mode", "pre", "following"), [(0, 0, 0), (3, 0, 0), (4, 20, 2)])
@pytest.mark.parametrize("layout", EXPANDED)
def test_expanded(lab, *, layout, mode, pre, following, kv_heads, paging, dtype):
    version = 1 if dtype == torch.float16 else 2
    query_lengths, key_lengths = [5, 20], [130, 600]
    sequences = expanded(lab, query_lengths, key_lengths, kv_heads=kv_heads, dtype=dtype)
    block_size, rank = paging or (0, 3)
    arguments = lab.pack(sequences, layout, version=version, block_size=block_size, rank=rank, fill=9.0)
    arguments |= {"sparse_mode": mode, "pre_tokens": pre, "next_tokens": following}
    arguments |= {"atten_mask": lab.template()} if mode else {}
    seen = [visible(mode, q, k, pre, following) for q, k in zip(query_lengths, key_lengths, strict=True)]
    check(lab, sequences, arguments, layout, seen, version)


def test_both_parts_are_one_key_in_one_layout_and_two_in_another(lab):
    """Combined head dims, 192 with value 128, and split ones are one computation: the same bits."""
    sequences = expanded(lab, [5, 20], [130, 600])
    causal = {"sparse_mode": 3, "atten_mask": lab.template()}
    scale = {"softmax_scale": 0.07}
    split = lab.call(lab.pack(sequences, "TND") | causal | scale)
    combined = lab.call(lab.pack(sequences.whole, "TND") | causal | scale)
    assert torch.equal(split[0], combined[0])
    assert torch.equal(split[1], combined[1])


@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_a_sequence_without_keys_is_zero(lab, layout):
    """The padding of a captured batch: kv length 0."""
    sequences = absorbed(lab, [1, 1], [40, 7])
    arguments = lab.pack(sequences, layout, block_size=16)
    expected, _ = lab.call(arguments)
    output, lse = lab.call(arguments | {"actual_seq_kvlen": [40, 0]})
    assert torch.equal(output[0], expected[0])
    assert (output[1] == 0).all()
    assert (lse[1] == math.inf).all()


TREES = ["BSH", "BSND", "BNSD", "TND", "TND_NTD", "BNSD_NBSD"]


@pytest.mark.few(6)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8])
@pytest.mark.parametrize("layout", TREES)
def test_a_tree_hides_among_the_last_keys(lab, layout, dtype):
    query_lengths, key_lengths = [3, 4, 1], [130, 4, 60]
    sequences = absorbed(lab, query_lengths, key_lengths)
    generator = torch.Generator().manual_seed(5)
    hidden = torch.rand(3, 4, 4, generator=generator) < 0.4
    for tree in hidden:
        tree.fill_diagonal_(fill_value=False)
    squares = [tree[:length, :length] for tree, length in zip(hidden, query_lengths, strict=True)]
    mask = torch.cat([square.flatten() for square in squares]) if "T" in layout else hidden
    seen = []
    for square, queries, keys in zip(squares, query_lengths, key_lengths, strict=True):
        seen.append(torch.cat([torch.ones(queries, keys - queries, dtype=torch.bool), ~square], 1))
    arguments = lab.pack(sequences, layout, block_size=16, fill=9.0)
    check(lab, sequences, arguments | {"sparse_mode": 9, "atten_mask": mask.to(dtype)}, layout, seen, 2)


def test_full_masks(lab):
    sequences = absorbed(lab, [3, 3], [50, 60])
    hidden = torch.rand(2, 1, 3, 60, generator=torch.Generator().manual_seed(2)) < 0.5
    hidden[..., 3] = False
    seen = [~hidden[0, 0, :, :50], ~hidden[1, 0]]
    check(lab, sequences, lab.pack(sequences, "BSND", fill=9.0) | {"atten_mask": hidden}, "BSND", seen, 2)


@pytest.mark.parametrize(("choice", "window"), [("honoured", 5), ("ignored", 40)])
def test_the_band_of_one_query_is_a_choice(lab, choice, window):
    profile = "8.5" if choice == "honoured" else "pessimistic"
    sequences = absorbed(lab, [1], [40])
    arguments = lab.pack(sequences, "BSND", block_size=16)
    arguments |= {"sparse_mode": 4, "pre_tokens": 4, "next_tokens": 0, "atten_mask": lab.template()}
    with use_profile(profile):
        check(lab, sequences, arguments, "BSND", [torch.arange(40)[None] >= 40 - window], 2)


def test_actual_query_lengths_of_one_query_have_no_effect(lab):
    sequences = absorbed(lab, [1], [40])
    arguments = lab.pack(sequences, "BSND", block_size=16)
    assert torch.equal(lab.call(arguments)[0], lab.call(arguments | {"actual_seq_qlen": [0]})[0])


def test_caches_may_have_gaps_between_their_blocks(lab):
    sequences = absorbed(lab, [2], [40])
    arguments = lab.pack(sequences, "BSND", block_size=16, rank=5)
    expected, _ = lab.call(arguments)
    for name in ("key", "value", "key_rope"):
        wide = torch.full((len(arguments[name]), 3, *arguments[name].shape[1:]), torch.nan, dtype=torch.bfloat16)
        wide[:, 1] = arguments[name]
        arguments[name] = wide[:, 1]
    assert torch.equal(lab.call(arguments)[0], expected)
    arguments["key_rope"] = arguments["key_rope"].transpose(3, 4).contiguous().transpose(3, 4)
    with pytest.raises(OperatorRejected, match="key_rope was not contiguous"):
        lab.call(arguments)


def zeros(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype)


MASK = zeros(2048, 2048, dtype=torch.int8)
ROPE_32 = {"query_rope": zeros(1, 2, 4, 32), "key_rope": zeros(6, 16, 32)}
# (form to spoil, how, argument named, what is said of it)
REFUSED = [
    ("absorbed", {"query_rope": None}, "query_rope", "None"),
    ("absorbed", {"key_rope": None}, "key_rope", "None"),
    ("absorbed", ROPE_32, "query_rope", "of head dim 32"),
    ("absorbed", {"query_rope": zeros(1, 3, 4, 64)}, "query_rope", "of shape [1, 3, 4, 64]"),
    ("absorbed", {"query_rope": zeros(1, 2, 4, 64).half()}, "query_rope", "torch.float16"),
    ("absorbed", {"key_rope": zeros(6, 16, 64).half()}, "key_rope", "torch.float16"),
    ("absorbed", {"key_rope": zeros(6, 16, 128)}, "key_rope", "of shape [6, 16, 128]"),
    ("absorbed", {"key_rope": zeros(4, 16, 64)}, "key_rope", "of shape [4, 16, 64]"),
    ("absorbed", {"key_rope": zeros(6, 1, 16, 64)}, "key_rope", "of shape [6, 1, 16, 64]"),
    ("NZ", {"key_rope": zeros(6, 1, 8, 16, 8)}, "key_rope", "of shape [6, 1, 8, 16, 8]"),
    ("absorbed", {"value": zeros(6, 16, 128)}, "value", "of head dim 128"),
    ("absorbed", {"input_layout": "BNSD_BSND", "query": zeros(1, 4, 2, 512)}, "input_layout", "'BNSD_BSND' with head"),
    ("absorbed", {"sparse_mode": 1, "atten_mask": zeros(1, 2, 64).bool()}, "sparse_mode", "1 with head dim 512"),
    ("absorbed", {"sparse_mode": 2, "atten_mask": MASK}, "sparse_mode", "2 with head dim 512"),
    ("absorbed", {"sparse_mode": 3}, "atten_mask", "None with sparse_mode 3"),
    ("absorbed", {"atten_mask": zeros(2, 64).bool()}, "atten_mask", "of shape [2, 64]"),
    ("absorbed", {"sparse_mode": 9}, "atten_mask", "None with sparse_mode 9"),
    ("absorbed", {"sparse_mode": 9, "atten_mask": MASK}, "atten_mask", "of shape [2048, 2048] with sparse_mode 9"),
    (
        "absorbed",
        {"sparse_mode": 9, "atten_mask": zeros(1, 2, 2).bool(), "actual_seq_kvlen": [1]},
        "actual_seq_qlen",
        "",
    ),
    ("v1", {"sparse_mode": 9, "atten_mask": zeros(1, 2, 2).bool()}, "sparse_mode", "9"),
    ("absorbed", {"inner_precise": 4}, "inner_precise", "4"),
    ("absorbed", {"pse_shift": zeros(1, 4, 2, 64)}, "pse_shift", "given"),
    ("absorbed", {"quant_scale_out": zeros(1)}, "quant_scale_out", "given"),
    ("v1", {"query_padding_size": zeros(1)}, "query_padding_size", "given"),
    ("v1", {"key_shared_prefix": zeros(1), "value_shared_prefix": zeros(1)}, "key_shared_prefix", "given"),
    ("v1", {"antiquant_scale": zeros(2)}, "antiquant_scale", "given"),
    ("absorbed", {"learnable_sink": zeros(4)}, "learnable_sink", "given with layout BSND"),
    ("decode", {"inner_precise": 2}, "inner_precise", "2"),
    (
        "expanded",
        {"key": zeros(9, 4, 64), "query": zeros(3, 4, 64), "value": zeros(9, 4, 64)},
        "query",
        "of head dim 64",
    ),
    ("expanded", {"input_layout": "TND_NTD"}, "input_layout", "'TND_NTD' with head dim 128"),
    ("expanded", {"sparse_mode": 2, "atten_mask": MASK}, "sparse_mode", "2 in TND"),
    (
        "expanded",
        {"query_rope": None, "key_rope": None, "input_layout": "TND_NTD"},
        "input_layout",
        "'TND_NTD' without",
    ),
]


@pytest.fixture
def calls(lab):
    pages = {"block_size": 16}
    return {
        "absorbed": (2, lab.pack(absorbed(lab, [2], [40]), "BSND", **pages)),
        "v1": (1, lab.pack(absorbed(lab, [2], [40]), "BSND", version=1, **pages)),
        "NZ": (2, lab.pack(absorbed(lab, [2], [40]), "BSND", rank=5, **pages)),
        "decode": (2, lab.pack(absorbed(lab, [1], [40]), "BSND", **pages)),
        "expanded": (2, lab.pack(expanded(lab, [3], [9]), "TND")),
    }


@pytest.mark.few(10)
@pytest.mark.parametrize(
    ("name", "spoil", "argument", "given"), REFUSED, ids=[f"{n}-{a}-{g}" for n, _, a, g in REFUSED]
)
def test_refused(lab, calls, *, name, spoil, argument, given):
    version, arguments = calls[name]
    lab.assert_refused(arguments, spoil, argument, given, version=version)


@pytest.mark.parametrize("heads", [3, 12, 20, 24, 256])
def test_the_absorbed_form_takes_powers_of_two_of_heads(lab, heads):
    arguments = lab.pack(absorbed(lab, [2], [40], heads=heads), "BSND", block_size=16)
    with pytest.raises(OperatorRejected, match=f"num_query_heads was {heads} with head dim 512"):
        lab.call(arguments)


def test_the_absorbed_form_has_one_key_head(lab):
    sequences = lab.ragged([2], [40], heads=4, kv_heads=2, dim=512, rope=64)
    with pytest.raises(OperatorRejected, match="num_key_value_heads was 2 with head dim 512"):
        lab.call(lab.pack(sequences, "BSND", block_size=16))


@pytest.mark.parametrize("layout", ["BSH_NBSD", "BSND_NBSD", "BNSD_NBSD"])
def test_head_first_outputs_have_up_to_16_queries(lab, layout):
    lab.call(lab.pack(absorbed(lab, [16], [40]), layout))
    with pytest.raises(OperatorRejected, match=f"input_layout was '{layout}' with 17 queries; allowed: 1 to 16"):
        lab.call(lab.pack(absorbed(lab, [17], [40]), layout))


def test_the_log_sum_exp_of_the_absorbed_form_is_a_choice(lab):
    with use_profile("pessimistic"):
        arguments = lab.pack(absorbed(lab, [2], [40]), "BSND", version=1)
        lab.call(arguments, version=1, lse=False)
        with pytest.raises(OperatorRejected, match="softmax_lse_flag was True with head dim 512"):
            lab.call(arguments, version=1)
        lab.call(lab.pack(absorbed(lab, [2], [40]), "BSND"))


def test_reserved_arguments_have_no_effect(lab):
    arguments = lab.pack(absorbed(lab, [2], [40]), "BSND", version=1)
    reserved = {"key_rope_antiquant_scale": zeros(1)}
    assert torch.equal(lab.call(arguments, version=1)[0], lab.call(arguments | reserved, version=1)[0])


def test_out_and_workspace(lab):
    """sglang's decode: `.out` with a workspace, one query, latent pages."""
    sequences = absorbed(lab, [1, 1], [40, 7], heads=8)
    arguments = lab.pack(sequences, "BSND", version=1, block_size=16)
    expected, _ = lab.call(arguments, version=1, lse=False)
    tensors = [arguments.pop(name) for name in ("query", "key", "value")]
    workspace = torch.ops.npu._npu_fused_infer_attention_score_get_max_workspace(*tensors, **arguments)
    out = [torch.empty_like(expected), torch.empty(1, dtype=torch.bfloat16)]
    torch.ops.npu.npu_fused_infer_attention_score.out(*tensors, **arguments, workspace=workspace, out=out)
    assert torch.equal(out[0], expected)
