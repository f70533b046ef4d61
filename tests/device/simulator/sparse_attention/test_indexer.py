"""The indexers against their documented formula in float64: which keys, in which order, and what is behind them."""

import math

import pytest
import torch

from npudiff.device.simulator import DeviceFault, use_profile

LAYOUTS = [("BSND", "BSND"), ("TND", "TND"), ("BSND", "PA_BSND"), ("TND", "PA_BSND")]
LENGTHS = [3, 1, 0, 2, 5], [20, 33, 7, 0, 3]
DTYPES = [torch.bfloat16, torch.float16]
UNWRITTEN = 0x5A5A5A5A
OPS = torch.ops.npu


def drawn(lengths, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, *shape, generator=generator) for length in lengths]


def float_call(lab, layouts, *, heads=20, dtype=torch.bfloat16, weight_dtype=None, lengths=LENGTHS, **options):
    """Return the outputs per sequence of a call, and the scores of all keys in float64."""
    queries = [one.to(dtype) for one in drawn(lengths[0], heads, 128)]
    keys = [one.to(dtype) for one in drawn(lengths[1], 1, 128, seed=1)]
    weights = [one.to(weight_dtype or dtype) for one in drawn(lengths[0], heads, seed=2)]
    table = lab.page_table(lengths[1])[0] if layouts[1] == "PA_BSND" else None
    outputs = OPS.npu_lightning_indexer(
        lab.pack(queries, layouts[0]),
        lab.pack(keys, layouts[1], table),
        lab.pack(weights, layouts[0]),
        **lab.where(*lengths, layouts, "key"),
        **options,
    )
    scores = [
        (torch.einsum("qhd,kod->qhk", q.double(), k.double()).relu() * w.double().unsqueeze(-1)).sum(1)
        for q, k, w in zip(queries, keys, weights, strict=True)
    ]
    return outputs, scores


def assert_best(found, scores, seen, count, slack):
    """Assert what a row of positions promises, whatever the order of equal scores."""
    valid = min(count, seen)
    chosen = found[:valid].tolist()
    assert found[valid:].tolist() == [-1] * (count - valid)
    assert len(set(chosen)) == valid
    assert all(0 <= position < seen for position in chosen)
    if valid:
        picked, others = scores[chosen], set(range(seen)) - set(chosen)
        assert all(picked[:-1] + slack >= picked[1:])
        assert all(scores[other] <= picked.min() + slack for other in others)


@pytest.mark.parametrize("mode", [0, 3])
@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("count", [1, 4, 20, 64])
def test_the_best_visible_keys_come_first(lab, layouts, mode, count):
    (indices, values), scores = float_call(lab, layouts, sparse_mode=mode, sparse_count=count)
    assert values.shape == (0,)
    assert values.dtype == torch.bfloat16
    assert indices.dtype == torch.int32
    for found, score in zip(lab.unpack(indices, layouts[0], LENGTHS[0]), scores, strict=True):
        for row, (one, seen) in enumerate(zip(found, lab.visible(mode, *score.shape), strict=True)):
            assert_best(one[0], score[row], seen, count, 1e-4)


@pytest.mark.parametrize("heads", [1, 5, 16, 17, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", [False, True])
def test_values_are_the_scores(lab, heads, dtype, wide):
    options = {"weight_dtype": torch.float32 if wide else None, "dtype": dtype, "heads": heads}
    (indices, values), scores = float_call(lab, ("TND", "TND"), return_value=True, sparse_count=40, **options)
    assert values.dtype == dtype
    assert values.shape == indices.shape
    for found, value, score in zip(*[lab.unpack(x, "TND", LENGTHS[0]) for x in (indices, values)], scores, strict=True):
        for row in range(len(score)):
            kept = int((found[row, 0] >= 0).sum())
            expected = score[row][found[row, 0, :kept].long()]
            unit = torch.finfo(dtype).eps / 2
            assert torch.allclose(value[row, 0, :kept].double(), expected, rtol=1.01 * unit, atol=1e-4)
            assert (value[row, 0, kept:] == -torch.inf).all()


def test_values_round_halves_away_from_zero():
    for dtype, step in ((torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)):
        query = torch.zeros(1, 1, 2, 128, dtype=dtype)
        query[..., 0] = 1
        key = torch.zeros(1, 2, 1, 128, dtype=dtype)
        key[0, :, 0, 0] = 1
        # 1 + step / 2 is half way; the even neighbour is 1.
        weights = torch.tensor([[[1.0, step / 2]]])
        for sign in (1, -1):
            more = {"sparse_count": 2, "return_value": True, "sparse_mode": 0}
            _, values = OPS.npu_lightning_indexer(query, key, sign * weights, **more)
            assert values.flatten().tolist() == [sign * (1 + step)] * 2


def test_lengths_are_those_of_the_tensors_unless_given(lab):
    query, key, weights = torch.ones(2, 3, 4, 128).half(), torch.ones(2, 5, 1, 128).half(), torch.ones(2, 3, 4).half()
    indices, _ = OPS.npu_lightning_indexer(query, key, weights, sparse_count=6)
    counts = (indices >= 0).sum(-1).squeeze(-1)
    assert counts.tolist() == [[3, 4, 5], [3, 4, 5]]


def test_rows_behind_a_sequence(lab):
    options = {"sparse_count": 4, "return_value": True}
    (indices, values), _ = float_call(lab, ("BSND", "BSND"), **options)
    assert (indices[1, 1:] == -1).all()
    assert (values[1, 1:] == -torch.inf).all()
    query, key = torch.ones(5, 2, 128).bfloat16(), torch.ones(6, 1, 128).bfloat16()
    ends = {
        "actual_seq_lengths_query": torch.tensor([1, 3]).int(),
        "actual_seq_lengths_key": torch.tensor([2, 6]).int(),
    }
    layouts = {"layout_query": "TND", "layout_key": "TND"}
    indices, values = OPS.npu_lightning_indexer(query, key, query[..., 0].contiguous(), **ends, **layouts, **options)
    assert (indices[3:] == UNWRITTEN).all()
    assert (indices[:3] < 6).all()
    assert (values[3:].view(torch.int16) == 0x5A5A).all()


def test_weights_may_be_negative_and_zeros_are_keys_too(lab):
    query, key = torch.ones(1, 1, 1, 128).half(), torch.zeros(1, 4, 1, 128).half()
    key[0, 1], key[0, 2] = 1, -1
    weights = torch.tensor([[[-1.0]]]).half()
    indices, values = OPS.npu_lightning_indexer(query, key, weights, sparse_count=5, return_value=True)
    assert set(indices.flatten()[:3].tolist()) == {0, 2, 3}
    assert indices.flatten()[3:].tolist() == [1, -1]
    assert values.flatten().tolist() == [0, 0, 0, -128, -torch.inf]


def test_a_visible_key_of_the_lowest_score_stands_before_what_is_missing(lab):
    query, key = torch.full((1, 2, 1, 128), 6e4).half(), torch.full((1, 2, 1, 128), 6e4).half()
    weights = torch.full((1, 2, 1), -3e38)
    for choice in ("lower_position_first", "higher_position_first"):
        with lab.changed(indexer_ties=choice):
            indices, _ = OPS.npu_lightning_indexer(query, key, weights, sparse_count=2)
        assert indices[0, 0, 0].tolist() == [0, -1]


@pytest.mark.parametrize(
    ("choice", "expected"), [("lower_position_first", [0, 1, 2]), ("higher_position_first", [6, 5, 4])]
)
def test_which_of_equal_scores_is_first_is_a_choice(lab, choice, expected):
    query, key, weights = torch.ones(1, 1, 4, 128).half(), torch.ones(1, 7, 1, 128).half(), torch.ones(1, 1, 4).half()
    with lab.changed(indexer_ties=choice):
        indices, _ = OPS.npu_lightning_indexer(query, key, weights, sparse_count=3)
    assert indices.flatten().tolist() == expected


def test_many_rows_are_cut_into_pieces_that_agree(lab, monkeypatch):
    whole = float_call(lab, ("TND", "PA_BSND"), sparse_count=9)[0][0]
    monkeypatch.setattr("npudiff.device.simulator.sparse_attention.indexer._MAX_SCORES", 20 * 33)
    assert torch.equal(float_call(lab, ("TND", "PA_BSND"), sparse_count=9)[0][0], whole)


@pytest.mark.parametrize(
    ("argument", "layouts", "values", "message"),
    [
        ("actual_seq_lengths_query", ("TND", "PA_BSND"), [2, 1], r"actual_seq_lengths_query\[1\] is 1, .* 2 to 4"),
        ("actual_seq_lengths_query", ("BSND", "BSND"), [3, 1], r"actual_seq_lengths_query\[0\] is 3, .* 0 to 2"),
        ("actual_seq_lengths_key", ("TND", "TND"), [9, 19], r"actual_seq_lengths_key\[1\] is 19, .* 9 to 18"),
        ("actual_seq_lengths_key", ("TND", "PA_BSND"), [9, -1], r"actual_seq_lengths_key\[1\] is -1, .* 0 to 32"),
        ("actual_seq_lengths_key", ("TND", "PA_BSND"), [33, 1], r"actual_seq_lengths_key\[0\] is 33, .* 0 to 32"),
        ("block_table", ("BSND", "PA_BSND"), [[3, 0], [1, 1]], r"block_table\[0, 0\] is 3, and the cache has 3 blocks"),
        ("block_table", ("BSND", "PA_BSND"), [[1, 0], [-1, 1]], r"block_table\[1, 0\] is -1, and the cache has 3"),
    ],
)
def test_numbers_on_the_device_that_point_outside(lab, argument, layouts, values, message):
    lengths = [2, 2], [9, 9]
    queries = [one.half() for one in drawn(lengths[0], 1, 128)]
    keys = [one.half() for one in drawn(lengths[1], 1, 128)]
    paged = layouts[1] == "PA_BSND"
    arguments = lab.where(*lengths, layouts, "key")
    arguments |= {"block_table": torch.tensor([[1, 2], [0, 2]]).int()} if paged else {}
    arguments[argument] = torch.tensor(values).int()
    query = lab.pack(queries, layouts[0])
    key = torch.ones(3, 16, 1, 128).half() if paged else lab.pack(keys, layouts[1])
    with pytest.raises(DeviceFault, match=message):
        OPS.npu_lightning_indexer(query, key, query[..., 0].contiguous(), **arguments)


def quant_call(lab, layouts, lengths=LENGTHS, *, heads=6, **options):
    generator = torch.Generator().manual_seed(3)

    def int8(count, *shape):
        return torch.randint(-128, 128, (count, *shape), generator=generator, dtype=torch.int8)

    def scales(count, *shape):
        return (torch.rand(count, *shape, generator=generator) + 0.1).half()

    queries, keys = [int8(n, heads, 128) for n in lengths[0]], [int8(n, 1, 128) for n in lengths[1]]
    weights, query_scales = ([scales(n, heads) for n in lengths[0]] for _ in range(2))
    weights = [one - 0.3 for one in weights]
    key_scales = [scales(n, 1) for n in lengths[1]]
    table = lab.page_table(lengths[1])[0] if layouts[1] == "PA_BSND" else None
    rows = [lab.pack(x, layouts[0]) for x in (queries, weights, query_scales)]
    columns = [lab.pack(x, layouts[1], table) for x in (keys, key_scales)]
    indices = OPS.npu_quant_lightning_indexer(
        rows[0], columns[0], rows[1], rows[2], columns[1], 0, 0, **lab.where(*lengths, layouts, "key"), **options
    )
    parts = zip(queries, keys, weights, query_scales, key_scales, strict=True)
    return indices, [tuple(part.double() for part in sequence) for sequence in parts]


@pytest.mark.parametrize("mode", [0, 3])
@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("choice", ["float16", "float32"])
def test_the_best_keys_of_integers(lab, layouts, mode, choice):
    with lab.changed(quant_indexer_products=choice):
        indices, sequences = quant_call(lab, layouts, sparse_mode=mode, sparse_count=5)
    for found, (q, k, w, sq, sk) in zip(lab.unpack(indices, layouts[0], LENGTHS[0]), sequences, strict=True):
        terms = (sq.unsqueeze(-1) * sk.view(1, 1, -1) * torch.einsum("qhd,kod->qhk", q, k)).relu() * w.unsqueeze(-1)
        for row, seen in enumerate(lab.visible(mode, len(q), len(k))):
            unit = 2.0**-10 if choice == "float16" else 2.0**-20
            slack = float(terms[row].abs().sum(0).max()) * unit if len(k) else 0
            assert_best(found[row, 0], terms[row].sum(0), seen, 5, slack)


def test_products_of_integers_are_rounded_or_not(lab):
    # 2049 and 2048 / 1024 are one number of float16; the second key is better by less than that.
    query, key = torch.zeros(1, 1, 1, 128).char(), torch.zeros(1, 2, 1, 128).char()
    query[..., :33], query[..., 33] = 64, 1
    key[..., :32] = 1
    key[0, 1, 0, 33] = 1
    one = torch.ones(1, 1, 1).half()
    scales = torch.ones(1, 2, 1).half()
    for choice, first in (("float16", 0), ("float32", 1)):
        with lab.changed(quant_indexer_products=choice):
            indices = OPS.npu_quant_lightning_indexer(query, key, one, one, scales, 0, 0, sparse_count=1, sparse_mode=0)
        assert indices.item() == first


def test_the_pessimistic_profile_gives_the_same_sets(lab):
    plain, _ = float_call(lab, ("TND", "TND"), sparse_count=8)
    with use_profile("pessimistic"):
        other, _ = float_call(lab, ("TND", "TND"), sparse_count=8)
    assert torch.equal(plain[0], other[0])


def test_memory_that_is_not_to_be_read_is_nan(lab):
    (_, values), _ = float_call(lab, ("BSND", "BSND"), sparse_count=40, return_value=True)
    assert not values.isnan().any()
    assert math.isnan(float(lab.pack([torch.ones(1, 2), torch.ones(2, 2)], "BSND")[0, 1, 0]))
