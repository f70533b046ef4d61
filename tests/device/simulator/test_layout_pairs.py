"""Layouts whose output has other axes than the query, and NTD: the values of the plain layouts in other places."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected, use_profile

# Pairs and NTD, with the plain layout that has the same sequences; the documented axes of query and output.
LAYOUTS = {
    "BNSD_BSND": ("BNSD", "BSND"),
    "BSH_BNSD": ("BSH", "BNSD"),
    "BSND_BNSD": ("BSND", "BNSD"),
    "NTD": ("TND", "NTD"),
    "NTD_TND": ("TND", "TND"),
}
QUERY_LENGTHS, KEY_LENGTHS = [5, 20, 1], [130, 600, 1]


def shape(axes, *, heads, dim):
    sizes = {"B": len(QUERY_LENGTHS), "N": heads, "S": max(QUERY_LENGTHS), "D": dim, "T": sum(QUERY_LENGTHS)}
    return [sizes[axis] for axis in axes]


@pytest.mark.few(40)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (192, 128)])
@pytest.mark.parametrize("paging", [None, (128, 3), (16, 4), (128, 5)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_as_the_plain_layout(lab, layout, paging, dims, version):
    plain, output_axes = LAYOUTS[layout]
    sequences = lab.ragged(QUERY_LENGTHS, KEY_LENGTHS, dim=dims[0], value_dim=dims[1])
    if dims[0] == 192 and paging and paging[0] == 16:
        paging = (128, 4)
    block_size, rank = paging or (0, 3)
    results = []
    for name in (layout, plain):
        arguments = lab.pack(sequences, name, version=version, block_size=block_size, rank=rank, fill=9.0)
        results.append(lab.call(arguments | {"sparse_mode": 3, "atten_mask": lab.template()}, version=version))
    (output, lse), (expected, expected_lse) = results
    assert list(output.shape) == shape(output_axes, heads=4, dim=dims[1])
    if plain == "BSH":
        expected, plain = expected.unflatten(-1, (4, -1)), "BSND"
    mine, theirs = lab.unpack(output, layout, QUERY_LENGTHS), lab.unpack(expected, plain, QUERY_LENGTHS)
    for one, other in zip(mine, theirs, strict=True):
        assert one.abs().sum() > 0
        assert torch.equal(one, other)
    assert torch.equal(lse, expected_lse)


def test_head_first_outputs_hold_what_batch_first_ones_do(lab):
    sequences = lab.ragged([3, 2], [40, 60], heads=8, kv_heads=1, dim=512, rope=64)
    sequences.values[:] = sequences.keys
    for layout, plain in (("BSND_NBSD", "BSND"), ("BNSD_NBSD", "BNSD"), ("BSH_NBSD", "BSND")):
        output, _ = lab.call(lab.pack(sequences, layout))
        expected, _ = lab.call(lab.pack(sequences, plain))
        assert list(output.shape) == [8, 2, 3, 512]
        by_head = expected.permute(2, 0, 1, 3) if plain == "BSND" else expected.transpose(0, 1)
        assert torch.equal(output, by_head)
    output, _ = lab.call(lab.pack(sequences, "TND_NTD"))
    assert list(output.shape) == [8, 5, 512]
    assert torch.equal(output, lab.call(lab.pack(sequences, "TND"))[0].transpose(0, 1))


@pytest.mark.few(6)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("layout", ["TND", "NTD", "NTD_TND"])
@pytest.mark.parametrize(("mode", "pre"), [(0, 0), (3, 0), (4, 9)])
def test_float16(lab, layout, mode, pre, version):
    query_lengths, key_lengths = [3, 30], [20, 550]
    sequences = lab.ragged(query_lengths, key_lengths, dim=128, dtype=torch.float16)
    arguments = lab.pack(sequences, layout, version=version)
    arguments |= {"sparse_mode": mode, "pre_tokens": pre, "next_tokens": 0}
    arguments |= {"atten_mask": lab.template()} if mode else {}
    output, _ = lab.call(arguments, version=version)
    assert output.dtype == torch.float16
    for index, part in enumerate(lab.unpack(output, layout, query_lengths)):
        queries, keys = query_lengths[index], key_lengths[index]
        behind = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
        seen = torch.ones(queries, keys, dtype=torch.bool)
        if mode:
            seen = (behind >= 0) & ((behind <= pre) if mode == 4 else seen)
        sequence = sequences.queries[index], sequences.keys[index], sequences.values[index]
        expected, bound, _ = lab.exact(*sequence, seen, scale=sequences.scale)
        assert ((part.double() - expected).abs() / bound).max() <= 1


@pytest.mark.parametrize(("kv_heads", "right"), [(4, (0, 1)), (2, (0,))])
def test_float16_has_a_fast_mode_without_groups(lab, kv_heads, right):
    arguments = lab.pack(lab.ragged([3], [20], kv_heads=kv_heads, dtype=torch.float16), "TND")
    for mode in (0, 1, 2, 3):
        if mode in right:
            lab.call(arguments | {"inner_precise": mode})
            continue
        with pytest.raises(OperatorRejected, match=f"inner_precise was {mode}"):
            lab.call(arguments | {"inner_precise": mode})


@pytest.mark.parametrize("layout", ["TND", "NTD", "NTD_TND"])
def test_float16_is_refused_where_old_documents_hold(lab, layout):
    arguments = lab.pack(lab.ragged([3], [20], dim=128, dtype=torch.float16), layout)
    with (
        use_profile("pessimistic"),
        pytest.raises(OperatorRejected, match=rf"query was float16 in {layout}; .*161002"),
    ):
        lab.call(arguments)


@pytest.mark.parametrize("layout", ["NTD_TND", "TND"])
def test_sinks(lab, layout):
    sequences = lab.ragged([3, 4], [20, 30])
    sink = torch.linspace(-1, 2, 4).bfloat16()
    output, _ = lab.call(lab.pack(sequences, layout) | {"learnable_sink": sink})
    for index, part in enumerate(lab.unpack(output, layout, [3, 4])):
        sequence = sequences.queries[index], sequences.keys[index], sequences.values[index]
        seen = torch.ones(sequence[0].shape[1], sequence[1].shape[1], dtype=torch.bool)
        expected, bound, _ = lab.exact(*sequence, seen, scale=sequences.scale, sink=sink)
        assert ((part.double() - expected).abs() / bound).max() <= 1


@pytest.mark.parametrize("layout", ["NTD", "NTD_TND", "BSH_BNSD", "BSND_BNSD"])
@pytest.mark.parametrize("dims", [(192, 192), (80, 80), (256, 256), (128, 64)])
def test_layouts_of_few_head_dims(lab, layout, dims):
    arguments = lab.pack(lab.ragged([3], [20], dim=dims[0], value_dim=dims[1]), layout)
    message = f"query was of head dim {dims[0]} with value {dims[1]} in {layout}; allowed: 64 with value 64, 128 with"
    with pytest.raises(OperatorRejected, match=message):
        lab.call(arguments)


@pytest.mark.parametrize("layout", ["NTD", "NTD_TND"])
def test_refused_lengths(lab, layout):
    arguments = lab.pack(lab.ragged([3, 2], [20, 9]), layout)
    for spoil, given in (
        ({"actual_seq_qlen": None}, f"actual_seq_qlen was None; allowed: cumulative lengths, in {layout}"),
        ({"actual_seq_qlen": [3, 4]}, r"actual_seq_qlen was \[3, 4\]; allowed: cumulative lengths that end with 5"),
        ({"actual_seq_kvlen": [20, 30]}, r"actual_seq_kvlen was \[20, 30\]; allowed: cumulative lengths up to 29"),
    ):
        with pytest.raises(OperatorRejected, match=given):
            lab.call(arguments | spoil)
