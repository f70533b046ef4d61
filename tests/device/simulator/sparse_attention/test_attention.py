"""Attention over chosen keys against torch's own and the documented formula, both in float64."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from npudiff.device.simulator import DeviceFault, UndefinedBehaviour
from npudiff.device.simulator.sparse_attention.softmax import Sums

LAYOUTS = [("BSND", "BSND"), ("TND", "TND"), ("BSND", "PA_BSND"), ("TND", "PA_BSND")]
LENGTHS = [3, 1, 0, 2, 5], [20, 33, 7, 0, 3]
DTYPES = [torch.bfloat16, torch.float16]
POISON = 0x5A5A
OPS = torch.ops.npu
SCALE = 0.07


class Case:
    """Sequences of queries and keys with parts [..., 512] and [..., 64], and indices of their rows."""

    def __init__(self, lengths=LENGTHS, *, heads=4, dtype=torch.bfloat16, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator).to(dtype)

        self.lengths = lengths
        self.queries = [(draw(n, heads, 512), draw(n, heads, 64)) for n in lengths[0]]
        self.keys = [(draw(n, 1, 512), draw(n, 1, 64)) for n in lengths[1]]

    def arguments(self, lab, layouts, indices):
        table = lab.page_table(self.lengths[1])[0] if layouts[1] == "PA_BSND" else None
        query, query_rope = (lab.pack(list(part), layouts[0]) for part in zip(*self.queries, strict=True))
        key, key_rope = (lab.pack(list(part), layouts[1], table) for part in zip(*self.keys, strict=True))
        return {
            "query": query,
            "key": key,
            "value": key.clone(),
            "sparse_indices": lab.pack([one.unsqueeze(1).int() for one in indices], layouts[0]),
            "scale_value": SCALE,
            "query_rope": query_rope,
            "key_rope": key_rope,
            "attention_mode": 2,
            **lab.where(*self.lengths, layouts, "kv"),
        }

    def run(self, lab, layouts, indices, **options):
        arguments = self.arguments(lab, layouts, indices) | options
        tensors = [arguments.pop(name) for name in ("query", "key", "value", "sparse_indices", "scale_value")]
        return OPS.npu_sparse_flash_attention(*tensors, **arguments)

    def whole(self, sequence):
        """Queries [rows, heads, 576] and keys [keys, 576] of a sequence, in float64."""
        query, key = torch.cat(self.queries[sequence], -1), torch.cat(self.keys[sequence], -1)
        return query.double(), key[:, 0].double()


def extremes(query, keys):
    """Return maximum and sum of the exponentials of [heads, 576] over [n, 576]."""
    scores = query @ keys.T * SCALE
    maximum = scores.max(-1).values
    return maximum, (scores - maximum.unsqueeze(-1)).exp().sum(-1)


def everything(lengths, count, mode):
    """Rows of indices that name every visible key, in a shuffled order, and -1 behind them."""
    generator = torch.Generator().manual_seed(9)
    rows = []
    for queries, keys in zip(*lengths, strict=True):
        one = torch.full((queries, count), -1)
        for row in range(queries):
            seen = max(0, keys - queries + row + 1) if mode == 3 else keys
            one[row, :seen] = torch.randperm(seen, generator=generator)
        rows.append(one)
    return rows


def assert_attends(found, expected, size, tiles=1):
    """Assert that attention is right but for what is rounded, elementwise.

    Probabilities and the result are rounded to half a unit; each rescaling of a tile's sums with integers adds half of
    what the roundings of two units make of a factor. ``size`` is the attention over the absolute values.
    """
    slack = torch.finfo(found.dtype).eps * (1 + (tiles - 1) / 2) * 1.02
    assert ((found.double() - expected).abs() <= slack * size + 1e-6).all()


def assert_row(found, query, keys, tiles=1):
    """Assert the attention of one query over keys; 0 without any."""
    if not len(keys):
        assert (found == 0).all()
        return
    weights = (query @ keys.T * SCALE).softmax(-1)
    assert_attends(found, weights @ keys[:, :512], weights @ keys[:, :512].abs(), tiles)


@pytest.mark.few(10)
@pytest.mark.parametrize("mode", [0, 3])
@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("choice", ["exponent", "float32"])
def test_all_keys_is_torchs_attention(lab, layouts, mode, dtype, choice):
    case = Case(dtype=dtype)
    with lab.changed(sparse_attention_rescale=choice):
        out, maximum, total = case.run(lab, layouts, everything(LENGTHS, 40, mode), sparse_mode=mode)
    assert out.dtype == dtype
    assert maximum.shape == total.shape == (0,)
    for number, found in enumerate(lab.unpack(out, layouts[0], LENGTHS[0])):
        query, key = case.whole(number)
        visible = torch.tensor(lab.visible(mode, len(query), len(key)))
        for row in (visible == 0).nonzero():
            assert (found[row] == 0).all()
        if not len(key) or not len(query):
            continue
        mask = torch.arange(len(key)) < visible.unsqueeze(1)
        heads, values = key.expand(4, -1, -1), key[:, :512].expand(4, -1, -1)
        options = {"attn_mask": mask, "scale": SCALE}
        expected, size = (
            scaled_dot_product_attention(query.transpose(0, 1), heads, one, **options).transpose(0, 1)
            for one in (values, values.abs())
        )
        rows = visible > 0
        assert_attends(found[rows], expected[rows], size[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [511, 512, 513, 1300])
def test_tiles_of_keys(lab, keys, dtype):
    case = Case(([2], [keys]), dtype=dtype)
    # The largest scores come last, so that every tile changes the maximum.
    query, key = case.whole(0)
    order = (query[1, 0] @ key.T).argsort()
    indices = [torch.cat([order, torch.tensor([-1])]).expand(2, -1).contiguous()]
    out, maximum, total = case.run(lab, ("TND", "TND"), indices, sparse_mode=0, return_softmax_lse=True)
    for row in range(2):
        highest, sums = extremes(query[row], key)
        assert_row(out[row], query[row], key, math.ceil(keys / 512))
        assert torch.allclose(maximum[0, row].double(), highest, rtol=1e-5)
        assert torch.allclose(total[0, row].double(), sums, rtol=1e-4)


def test_some_keys_of_blocks_in_any_order(lab):
    for size in (1, 2, 4, 8, 16):
        case = Case(([4], [37]))
        blocks = math.ceil(37 / size)
        generator = torch.Generator().manual_seed(size)
        for mode in (0, 3):
            indices = torch.full((4, blocks + 1), -1)
            named = []
            for row, seen in enumerate(lab.visible(mode, 4, 37)):
                chosen = torch.randperm(math.ceil(seen / size), generator=generator)[: max(1, blocks // 2)]
                indices[row, : len(chosen)] = chosen
                tokens = (chosen.unsqueeze(1) * size + torch.arange(size)).flatten()
                named.append(tokens[tokens < seen])
            out, _, _ = case.run(lab, ("TND", "PA_BSND"), [indices], sparse_mode=mode, sparse_block_size=size)
            query, key = case.whole(0)
            for row, tokens in enumerate(named):
                assert_row(out[row], query[row], key[tokens])


@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_maximum_and_sum(lab, layout):
    case = Case()
    options = {"return_softmax_lse": True}
    _, maximum, total = case.run(lab, (layout, layout), everything(LENGTHS, 40, 3), **options)
    assert maximum.shape == total.shape == ((1, 11, 4) if layout == "TND" else (5, 1, 5, 4))
    assert maximum.dtype == total.dtype == torch.float32
    axis = 0 if layout == "TND" else 1
    parts = [lab.unpack(one.squeeze(axis), layout, LENGTHS[0]) for one in (maximum, total)]
    for number, (highest, sums) in enumerate(zip(*parts, strict=True)):
        query, key = case.whole(number)
        for row, seen in enumerate(lab.visible(3, len(query), len(key))):
            expected = extremes(query[row], key[:seen]) if seen else (torch.zeros(4), torch.zeros(4))
            assert torch.allclose(highest[row].double(), expected[0].double(), rtol=1e-5, atol=1e-5)
            assert torch.allclose(sums[row].double(), expected[1].double(), rtol=1e-5)


def test_rows_behind_a_sequence(lab):
    case = Case(([1, 3], [5, 5]))
    indices = everything(case.lengths, 5, 3)
    out, maximum, total = case.run(lab, ("BSND", "BSND"), indices, return_softmax_lse=True)
    assert all((one == 0).all() for one in (out[0, 1:], maximum[0, 0, 1:], total[0, 0, 1:]))
    ends = {"actual_seq_lengths_query": torch.tensor([1, 2]).int()}
    out, maximum, _ = case.run(lab, ("TND", "TND"), indices, return_softmax_lse=True, **ends)
    assert (out[2:].view(torch.int16) == POISON).all()
    assert (maximum[0, 2:].view(torch.int32) == 0x5A5A5A5A).all()
    assert out[:2].isfinite().all()


def test_entries_behind_a_negative_one_and_behind_what_covers_the_keys(lab):
    case = Case(([1], [6]))
    query, key = case.whole(0)
    forms = {
        (4, 2, -1, 5, 0, 1): [4, 2],
        (4, -1, 2, -1, 5, 0): [4],
        (-1, 0, 1, 2, 3, 4): [],
        (3, 3, 1, -1, -1, -1): [3, 3, 1],
        (0, 1, 2, 3, 4, 4, 5): [0, 1, 2, 3, 4, 4],
    }
    for given, counted in forms.items():
        out, _, _ = case.run(lab, ("TND", "TND"), [torch.tensor([given])])
        assert_row(out[0], query[0], key[counted])


def test_a_valid_entry_behind_a_negative_one_can_be_undefined(lab):
    case = Case(([1], [6]))
    with lab.changed(sparse_attention_unpacked="undefined"):
        case.run(lab, ("TND", "TND"), [torch.tensor([[4, 2, -1, -1]])])
        with pytest.raises(UndefinedBehaviour, match="behind a negative one"):
            case.run(lab, ("TND", "TND"), [torch.tensor([[4, -1, 2, -1]])])


def test_entries_that_point_behind_what_is_visible(lab):
    case = Case(([2], [6]))
    query, key = case.whole(0)
    out, _, _ = case.run(lab, ("TND", "PA_BSND"), [torch.tensor([[5, 1, 900], [5, 1, 900]])])
    for row, counted in enumerate([[1], [5, 1]]):
        assert_row(out[row], query[row], key[counted])


def test_a_row_of_which_nothing_is_visible_is_zero_and_its_maximum_a_choice(lab):
    case = Case(([2], [6]))
    for choice, least in (("lowest_maximum", -1e38), ("as_empty", 0)):
        with lab.changed(sparse_attention_hidden_row=choice):
            indices = [torch.tensor([[5, 8, -1], [5, 8, -1]])]
            out, maximum, total = case.run(lab, ("TND", "TND"), indices, return_softmax_lse=True)
        assert (out[0] == 0).all()
        assert (out[1] != 0).any()
        assert (maximum[0, 0] <= least).all()
        assert (maximum[0, 1] > -1e3).all()
        assert ((total[0, 0] > 0) == (choice == "lowest_maximum")).all()


def test_a_first_tile_of_hidden_keys_leaves_no_trace(lab):
    case = Case(([1], [1200]))
    indices = torch.cat([torch.full((600,), 2000), torch.arange(300)]).unsqueeze(0)
    query, key = case.whole(0)
    for choice in ("exponent", "float32"):
        with lab.changed(sparse_attention_rescale=choice):
            out, maximum, total = case.run(lab, ("TND", "TND"), [indices], return_softmax_lse=True)
        highest, sums = extremes(query[0], key[:300])
        assert_row(out[0], query[0], key[:300], 2)
        assert torch.allclose(maximum[0, 0].double(), highest, rtol=1e-5)
        assert torch.allclose(total[0, 0].double(), sums, rtol=1e-5)


def test_probabilities_round_before_they_are_multiplied(lab):
    # Two keys, the second with probability p of the first: 1 and p, rounded to bfloat16, times values 0 and 1.
    case = Case(([1], [2]), heads=1)
    for part in (*case.queries[0], *case.keys[0]):
        part.zero_()
    case.queries[0][1][0, 0, 0] = 1
    case.keys[0][1][1, 0, 0] = -1
    case.keys[0][0][1, 0, 0] = 1
    indices = [torch.tensor([[0, 1]])]
    exact = math.exp(-SCALE)
    rounded = float(torch.tensor(exact).bfloat16())
    assert rounded != exact
    with lab.changed(sparse_attention_rescale="float32"):
        out, _, _ = case.run(lab, ("TND", "TND"), indices, sparse_mode=0)
    assert out[0, 0, 0] == torch.tensor(rounded / (1 + exact)).bfloat16()


def test_value_is_the_key(lab):
    case = Case(([1], [6]))
    arguments = case.arguments(lab, ("TND", "TND"), [torch.tensor([[4, 2, -1]])])
    value = arguments["value"].clone()
    value[3] += 1
    case.run(lab, ("TND", "TND"), [torch.tensor([[4, 2, -1]])], value=value)
    with pytest.raises(UndefinedBehaviour, match="value is not key"):
        case.run(lab, ("TND", "TND"), [torch.tensor([[4, 3, -1]])], value=value)


def test_only_blocks_of_chosen_keys_are_looked_up(lab):
    case = Case(([1], [40]))
    table = lab.page_table([40])[1]
    table[0, 1] = -7
    indices = [torch.tensor([[0, 33, -1]])]
    case.run(lab, ("TND", "PA_BSND"), indices, block_table=table)
    with pytest.raises(DeviceFault, match=r"block_table\[0, 1\] is -7, and the cache has"):
        case.run(lab, ("TND", "PA_BSND"), [torch.tensor([[0, 17, -1]])], block_table=table)


def test_how_sums_are_rescaled_shows(lab):
    case = Case(([1], [700]))
    outputs = []
    for choice in ("exponent", "float32"):
        with lab.changed(sparse_attention_rescale=choice):
            outputs.append(case.run(lab, ("TND", "TND"), [torch.arange(700).unsqueeze(0)])[0])
    assert not torch.equal(*outputs)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, 1.0), (torch.float16, 1 + 2.0**-10)])
def test_the_end_rounds_halves_to_even_in_bfloat16_and_away_in_float16(lab, dtype, expected):
    case = Case(([1], [2]), dtype=dtype)
    case.queries[0][0].zero_()
    case.queries[0][1].zero_()
    case.keys[0][0][0], case.keys[0][0][1] = 1, 1 + torch.finfo(dtype).eps
    out, _, _ = case.run(lab, ("TND", "TND"), [torch.tensor([[0, 1]])], sparse_mode=0)
    assert (out == expected).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_probabilities_round_halves_away_from_zero(dtype):
    eps = torch.finfo(dtype).eps
    halves = 1 - eps / 4 - torch.arange(40) * eps / 2
    kept = torch.exp(torch.log(halves)) == halves
    assert kept.sum() >= 4
    for half in halves[kept]:
        sums = Sums.start(1, 1, 2, dtype, exponents=False)
        sums.add(torch.stack([torch.zeros(()), torch.log(half)]).view(1, 1, 2), torch.eye(2).unsqueeze(0))
        assert sums.weighted[0, 0, 1] == half + eps / 4


def test_as_many_blocks_count_as_cover_the_keys(lab):
    case = Case(([1], [10]))
    query, key = case.whole(0)
    tokens = [8, 9, *range(8)]
    for given in ([2, 0, 1], [2, 0, 1, 1]):
        out, _, _ = case.run(lab, ("TND", "TND"), [torch.tensor([given])], sparse_block_size=4)
        assert_row(out[0], query[0], key[tokens])
