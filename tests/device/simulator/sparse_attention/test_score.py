"""Attention over chosen blocks of a paged cache, against torch's own in float64 with a mask of what is chosen."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from npudiff.device.simulator import DeviceFault, NotSimulated, OperatorRejected, UndefinedBehaviour
from npudiff.device.simulator.norms.unwritten import unwritten

BLOCK, DIM = 128, 128
LENGTHS = [3, 1, 2], [300, 5, 513]
BLOCKS = 6
DTYPES = [torch.bfloat16, torch.float16]
NAMES = ["npu", "_C_ascend"]


def call(arguments, space="npu"):
    return getattr(torch.ops, space).npu_sparse_attention_score(**arguments)


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


class Case:
    """Sequences of queries with 2 key heads, whose cache is NaN where nothing may be read."""

    def __init__(self, lengths=LENGTHS, *, heads=8, slots=4, dtype=torch.bfloat16, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.lengths, self.heads, self.slots = lengths, heads, slots
        self.query = self.draw(sum(lengths[0]), heads, DIM).to(dtype)
        self.key, self.value = (
            torch.full((BLOCKS * len(lengths[0]), BLOCK, 2, DIM), math.nan).to(dtype) for _ in range(2)
        )
        self.table = torch.randperm(len(self.key), generator=self.generator).view(-1, BLOCKS).int()
        for blocks, count in zip(self.table.tolist(), lengths[1], strict=True):
            for place in range(count):
                for cache in (self.key, self.value):
                    cache[blocks[place // BLOCK], place % BLOCK] = self.draw(2, DIM).to(dtype)
        self.positions = [
            (sequence, keys - queries + row)
            for sequence, (queries, keys) in enumerate(zip(*lengths, strict=True))
            for row in range(queries)
        ]
        self.indices, self.counts = self.choose()

    def draw(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def choose(self):
        """Choose up to ``slots`` blocks in front of each query, its own among them, in any order."""
        indices = torch.full((2, len(self.positions), self.slots), -1, dtype=torch.int32)
        counts = torch.zeros(indices.shape[:2], dtype=torch.int32)
        for head in range(2):
            for token, (_, position) in enumerate(self.positions):
                own = position // BLOCK
                others = torch.randperm(own, generator=self.generator).tolist()
                some = [own, *others][: self.slots]
                counts[head, token] = len(some)
                indices[head, token, : len(some)] = int32(*some)[torch.randperm(len(some), generator=self.generator)]
        return indices, counts

    def arguments(self, **options):
        return {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "select_idx": self.indices,
            "block_table": self.table,
            "select_num_idx": self.counts,
            "actual_seq_lengths": int32(*self.lengths[0]),
            "actual_seq_lengths_kv": int32(*self.lengths[1]),
            "num_key_value_heads": 2,
            "scale_value": 0.09,
            "top_k": self.slots,
            "inner_precise": 4,
        } | options

    def expected(self, values=lambda x: x, scale=0.09):
        """Attention in float64 [T, heads, 128] of what ``values`` makes of the values."""
        rows = []
        for token, (sequence, position) in enumerate(self.positions):
            blocks = self.table[sequence].long()
            keys, numbers = (cache[blocks].flatten(0, 1)[: position + 1].double() for cache in (self.key, self.value))
            seen = torch.zeros(2, position + 1, dtype=torch.bool)
            for head in range(2):
                for entry in self.indices[head, token, : int(self.counts[head, token])].tolist():
                    if entry >= 0:
                        seen[head, entry * BLOCK : (entry + 1) * BLOCK] = True
            group = self.heads // 2
            rows.append(
                scaled_dot_product_attention(
                    self.query[token].double().unsqueeze(1),
                    keys.transpose(0, 1).repeat_interleave(group, 0),
                    values(numbers).transpose(0, 1).repeat_interleave(group, 0),
                    attn_mask=seen.repeat_interleave(group, 0).unsqueeze(1),
                    scale=scale,
                ).squeeze(1)
            )
        return torch.stack(rows)


def assert_attends(found, case, scale=0.09):
    """Probabilities and the result are rounded, to half a unit each; sums are float32."""
    slack = torch.finfo(found.dtype).eps * 1.02
    error = (found.double() - case.expected(scale=scale)).abs()
    assert (error <= slack * case.expected(torch.abs, scale) + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("space", NAMES)
def test_it_is_torchs_attention_over_the_chosen_blocks(space, dtype):
    case = Case(dtype=dtype)
    out = call(case.arguments(), space)
    assert out.dtype == dtype
    assert out.shape == case.query.shape
    assert_attends(out, case)


def test_the_order_of_blocks_changes_nothing_but_sums():
    case = Case()
    before = call(case.arguments())
    case.indices = case.indices.flip(-1)
    case.counts = torch.full_like(case.counts, case.slots)  # entries of -1 are now in front
    assert_attends(call(case.arguments()), case)
    assert not torch.equal(before, torch.zeros_like(before))


def test_negative_entries_are_passed_over_wherever_they_are():
    case = Case()
    case.indices[:, :, 1] = -1
    case.indices[:, 3, 0] = 0  # the only block of a sequence of 5 keys
    assert_attends(call(case.arguments()), case)


def test_without_a_count_every_entry_counts():
    case = Case()
    assert torch.equal(call(case.arguments(select_num_idx=None)), call(case.arguments()))


def test_a_block_named_twice_counts_twice():
    case = Case(([1], [128]), slots=2)
    case.indices[:] = 0
    case.counts[:] = 2
    assert_attends(call(case.arguments()), case)  # alone it weighs what it weighs once
    wide = Case(([1], [256]), slots=3)
    wide.indices[:], wide.counts[:] = int32(0, 0, 1), 3
    found = call(wide.arguments())
    keys, values = (cache[wide.table[0].long()[[0, 0, 1]]].flatten(0, 1).double() for cache in (wide.key, wide.value))
    weights = torch.einsum("hd,shd->hs", wide.query[0].double(), keys.repeat_interleave(4, 1)).mul(0.09).softmax(-1)
    expected = torch.einsum("hs,shd->hd", weights, values.repeat_interleave(4, 1))
    assert (found[0].double() - expected).abs().max() < 0.01
    wide.indices[:], wide.counts[:] = int32(0, 1, -1), 2
    assert (found.double() - wide.expected()).abs().max() > 0.01


def test_counts_beyond_the_entries_are_all_entries():
    case = Case()
    assert torch.equal(call(case.arguments(select_num_idx=torch.full_like(case.counts, 99))), call(case.arguments()))
    assert torch.equal(call(case.arguments(select_num_idx=torch.full_like(case.counts, -1))), call(case.arguments()))


def test_nothing_is_written_without_a_block():
    case = Case()
    case.counts[1, 2] = 0
    case.indices[0, 4] = -1
    out = call(case.arguments())
    untouched = unwritten((4, DIM), torch.bfloat16)
    assert torch.equal(out[2, 4:], untouched)
    assert torch.equal(out[4, :4], untouched)
    assert out[2, :4].ne(untouched).any()


@pytest.mark.parametrize("scale", [0.0, 5e-10])
def test_no_scale_is_that_of_the_head(scale):
    case = Case()
    assert_attends(call(case.arguments(scale_value=scale)), case, scale=DIM**-0.5)


def test_a_later_block_is_read_or_passed_over(lab):
    case = Case(([1], [300]), slots=2)
    case.indices[:, 0], case.counts[:] = int32(0, 2), 2
    case.lengths = [[1], [128]]
    case.positions = [(0, 127)]
    arguments = case.arguments()
    with lab.changed(sparse_score_later_block="passed_over"):
        assert_attends(call(arguments), case)
    with lab.changed(sparse_score_later_block="read"):
        assert call(arguments).isnan().all()  # what nobody wrote, behind the 300 keys


def test_probabilities_are_rounded_before_they_meet_the_values():
    case = Case(([1], [2]), heads=2, slots=1)
    case.query[:], case.key[case.table[0, 0], :2] = 0.0, 0.0
    case.query[..., 0] = 1.0
    case.key[case.table[0, 0], 1, :, 0] = -1.0
    case.value[case.table[0, 0], :2] = 0.0
    case.value[case.table[0, 0], 1] = 1.0
    (found,) = call(case.arguments(scale_value=1.0)).unique()
    small = math.exp(-1)
    rounded = torch.tensor(small).bfloat16().double()
    assert found.double() == (rounded / (1 + small)).bfloat16().double() != torch.tensor(small / (1 + small)).bfloat16()


def test_caches_with_gaps_and_many_tasks():
    case = Case(([40, 33], [140, 33]), slots=2)
    both = torch.stack([case.key, case.value], 1)
    gaps = {"key": both[:, 0], "value": both[:, 1]}
    assert torch.equal(call(case.arguments(**gaps)), call(case.arguments()))
    assert_attends(call(case.arguments()), case)


def test_rows_of_indices_are_addressed_by_their_width():
    case = Case()
    wide = torch.cat([case.indices, torch.full_like(case.indices, 9999)], 1)
    counts = torch.cat([case.counts, torch.full_like(case.counts, 9)], 1)
    assert torch.equal(call(case.arguments(select_idx=wide, select_num_idx=counts)), call(case.arguments()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"select_idx": torch.full((2, 6, 4), 6).int()}, r"select_idx\[0, 0\] is 6, there are 6 blocks in a row"),
        ({"block_table": torch.full((3, 6), 18).int()}, "is 18, there are 18 blocks in the cache"),
        ({"actual_seq_lengths": int32(3, 1)}, "actual_seq_lengths"),
        ({"actual_seq_lengths": int32(-3, 1, 2)}, "negative"),
        ({"select_num_idx": torch.ones(2, 5).int()}, "select_num_idx"),
        ({"select_idx": torch.zeros(2, 2, 4).int(), "select_num_idx": None}, "rows of indices"),
    ],
)
def test_what_points_outside_is_a_fault(change, message):
    with pytest.raises(DeviceFault, match=message):
        call(Case().arguments(**change))


def caches(*sizes):
    return dict.fromkeys(("key", "value"), torch.zeros(*sizes).bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actual_seq_lengths": int32(3, 1, 1)}, "query 5 has blocks, and actual_seq_lengths ends at 5"),
        ({"actual_seq_lengths_kv": int32(2, 5, 513)}, "sequence 0 has 3 queries and 2 keys"),
        ({"select_idx": torch.zeros(2, 6, 17).int()}, "17 blocks of a query"),
        (caches(18, 64, 2, DIM) | {"block_size": 64}, "a block of 64 keys"),
        (caches(18, BLOCK, 2, 64) | {"query": torch.zeros(6, 8, 64).bfloat16()}, "heads of 64"),
        ({"query": torch.zeros(6, 258, DIM).bfloat16()}, "129 query heads of a key head"),
    ],
)
def test_what_nothing_checks_is_undefined(change, message):
    with pytest.raises(UndefinedBehaviour, match=message):
        call(Case().arguments(**change))


@pytest.mark.few(14)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q_input_layout": "BSND"}, "npu_sparse_attention_score only supports query TND layout"),
        ({"query": torch.zeros(6, DIM).bfloat16()}, "query only supports TND layout [T,N,D], but got dim 2"),
        ({"query": torch.zeros(0, 8, DIM).bfloat16()}, "empty"),
        ({"key": torch.zeros(6, DIM).bfloat16()}, "key only supports blocked KV layout"),
        ({"select_idx": torch.zeros(6, 4).int()}, "select_idx must be [KVHead, maxQSeqlen, TopK], but got dim 2"),
        ({"select_idx": torch.zeros(2, 6, 4).long()}, "select_idx dtype must be int32."),
        ({"block_table": torch.zeros(6).int()}, "block_table must be [batch, maxBlocksPerBatch], but got dim 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be positive."),
        ({"num_key_value_heads": 1}, "num_key_value_heads must match key/value KVHead dim."),
        ({"select_idx": torch.zeros(1, 6, 4).int()}, "select_idx dim0 must equal num_key_value_heads."),
        ({"block_size": 64}, "key/value blockSize dim must match block_size."),
        ({"query": torch.zeros(6, 7, DIM).bfloat16()}, "query heads must be divisible by num_key_value_heads."),
        ({"query": torch.zeros(6, 8, 64).bfloat16()}, "query/key/value D dim must be equal."),
        ({"top_k": 0}, "top_k must be positive."),
        ({"select_num_idx": torch.zeros(6).int()}, "select_num_idx must be [KVHead, maxQSeqlen]."),
        ({"select_num_idx": torch.zeros(2, 6).long()}, "select_num_idx dtype must be int32."),
        ({"actual_seq_lengths": None}, "actual_seq_lengths must be provided."),
        ({"actual_seq_lengths_kv": None}, "actual_seq_lengths_kv must be provided."),
        ({"actual_seq_lengths": torch.tensor([3, 1, 2])}, "allowed: int32"),
        ({"value": torch.zeros(18, BLOCK, 2, DIM).half()}, "value was float16; allowed: bfloat16, as query"),
        ({"query": torch.zeros(6, 8, DIM)}, "query was float32"),
    ],
)
@pytest.mark.parametrize("space", NAMES)
def test_refusals_have_the_host_codes_words(space, change, words):
    with pytest.raises(OperatorRejected) as caught:
        call(Case(LENGTHS).arguments(**change), space)
    assert words in str(caught.value)


SCALE = torch.ones(1, 1, 1, 1)
SCALES = {f"{name}_dequant_scale": SCALE for name in "qkv"}
SMALL = torch.float8_e4m3fn


def small(**options):
    arguments = Case().arguments(**SCALES, **options)
    return arguments | {name: arguments[name].to(SMALL) for name in ("query", "key", "value")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": torch.zeros(18, BLOCK, 2, DIM).half()}, "key dtype must be float8_e4m3fn"),
        ({"v_dequant_scale": None}, "v_dequant_scale must be provided for float8_e4m3fn input."),
        ({"q_dequant_scale": SCALE.half()}, "q_dequant_scale dtype must be float32."),
        ({"k_dequant_scale": SCALE[0]}, "k_dequant_scale must be a 4D tensor."),
        ({"inner_precise": 0}, "inner_precise must be 4 (LOW_HIGH_MIXED) for float8_e4m3fn"),
    ],
)
def test_small_floats_need_scales(change, words):
    with pytest.raises(OperatorRejected) as caught:
        call(small() | change)
    assert words in str(caught.value)


def test_small_floats_are_for_another_chip():
    with pytest.raises(NotSimulated, match="8-bit floats are for Ascend 950"):
        call(small())
    on_meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in small().items()}
    assert call(on_meta).dtype == torch.float16


def test_shapes_without_data():
    arguments = Case().arguments()
    on_meta = {name: one.to("meta") if isinstance(one, torch.Tensor) else one for name, one in arguments.items()}
    out = call(on_meta)
    assert (out.shape, out.dtype) == (arguments["query"].shape, torch.bfloat16)
