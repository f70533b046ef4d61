"""Inputs by hand for each kernel of ranks: those on which its mistake is seen come first, by its number."""

import torch

from npudiff.reference.context_parallel import ContextParallelInputs
from npudiff.reference.data_parallel_gather import DataParallelGatherInputs
from npudiff.reference.expert_parallel import ExpertParallelInputs, Layout
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.moe_experts import Experts
from npudiff.reference.sharded_linear import BIAS_CHUNKS, LinearCheckpoint
from npudiff.reference.tensor_parallel import TensorParallelInputs
from npudiff.reference.vocabulary_parallel import VocabularyParallelInputs, even_counts, padded, sharded

BF16 = torch.bfloat16


class Numbers:
    """Numbers of one seed."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape, dtype=BF16, scale=1.0):
        return (torch.randn(*shape, generator=self.generator) * scale).to(dtype)

    def integers(self, low, high, *shape, dtype=torch.int8):
        return torch.randint(low, high, shape, generator=self.generator).to(dtype)

    def positive(self, *shape, dtype=torch.float32, scale=0.01):
        return ((torch.rand(*shape, generator=self.generator) + 0.5) * scale).to(dtype)


# expert_parallel


def weights_of(numbers, count, inner, columns, quantised):
    if not quantised:
        return ExpertWeights(numbers.normal(count, inner, columns, scale=inner**-0.5))
    values = numbers.integers(-127, 128, count, inner, columns)
    scale = numbers.positive(count, 1, columns, scale=0.02 * inner**-0.5)
    return ExpertWeights(values, 8, scale * torch.arange(1, count + 1).view(-1, 1, 1))


def experts_of(numbers, count, hidden, width, quantised=False):
    return Experts(weights_of(numbers, count, hidden, 2 * width, quantised), weights_of(numbers, count, width, hidden, quantised))


def experts(ids, rows, slots, placement, *, table=None, mask=None, shared_ranks=0, shared=0, quantised=False, hidden=32):
    """Inputs with ids ``[tokens][k]``; the table has the first slot of each expert if it is not given."""
    numbers = Numbers(7)
    ids = torch.tensor(ids, dtype=torch.int32)
    ranks, count = len(rows), max(placement) + 1
    if table is None:
        table = [[[placement.index(expert) for expert in range(count)]]] * ranks
    mask = None if mask is None else torch.tensor(mask, dtype=torch.bool)
    layout = Layout(tuple(rows), (0,) * shared_ranks + tuple(slots), max(shared, 1), 0 if len(set(rows)) == 1 else max(rows) * ranks)
    return ExpertParallelInputs(
        states=numbers.normal(len(ids), hidden), topk_ids=ids,
        weights=torch.softmax(numbers.normal(*ids.shape, dtype=torch.float32), dim=1).to(BF16),
        mask=mask, real=mask if mask is not None and mask.dim() == 1 else torch.ones(len(ids), dtype=torch.bool),
        placement=torch.tensor(placement), table=torch.tensor(table, dtype=torch.int32),
        routed=experts_of(numbers, count, hidden, 32, quantised),
        shared=experts_of(numbers, shared, hidden, 32, quantised) if shared else None, layout=layout,
    )  # fmt: skip


FOUR = [[0, 3], [1, 2], [3, 1], [2, 0], [0, 1], [2, 3]]
REPLICAS = [0, 1, 0, 1]
TWO_ROWS = [[[0, 1], [2, 3]], [[0, 3], [2, 1]]]
"""Two experts on two ranks, each on both."""

EXPERT_PARALLEL = {
    1: lambda: experts(FOUR, [3, 3], [2, 2], [2, 0, 3, 1]),
    2: lambda: experts(FOUR, [3, 3], [2, 2], [0, 1, 2, 3]),
    3: lambda: experts([[0], [1], [0], [0], [1]], [3, 2], [2, 2], REPLICAS, table=TWO_ROWS),
    4: lambda: experts(FOUR, [3, 3], [2, 2], [0, 1, 2, 3], mask=[[1, 0], [1, 1], [0, 0], [1, 1], [0, 1], [1, 1]]),
    5: lambda: experts([[1, 3]] * 4, [2, 2], [2, 2], [0, 1, 2, 3], quantised=True),
    6: lambda: experts([[0, 1]] * 7, [1, 3, 2, 1], [1, 1], [0, 1], shared_ranks=2, shared=1),
    7: lambda: experts([[0, 1]] * 9, [1, 4, 4], [1, 1, 1], [0, 1, 2]),
    8: lambda: experts(FOUR, [0, 6], [2, 2], [0, 1, 2, 3]),
    "one rank": lambda: experts(FOUR, [6], [4], [0, 1, 2, 3]),
    "whole": lambda: experts(FOUR, [3, 3], [2, 2], [0, 1, 2, 3], quantised=True, shared=1),
    "masked": lambda: experts(FOUR, [3, 3], [2, 2], [0, 1, 2, 3], mask=[1, 1, 0, 1, 0, 0]),
    "left out": lambda: experts([[0, -1], [-1, -1], [3, 2], [1, 0]], [1, 0, 3], [2, 1, 1], [0, 1, 2, 3]),
    "two apart": lambda: experts(FOUR, [2, 1, 2, 1], [2, 2], [0, 1, 2, 3], shared_ranks=2, shared=2, mask=[1, 0, 1, 1, 1, 1]),
    "four copies": lambda: experts(FOUR, [1, 1, 1, 1, 1, 1], [2, 2], [0, 1, 2, 3], shared_ranks=4, shared=2),
}


# tensor_parallel


def layer(columns, inner, *, form="float", projections=None, copies=None, biased=False, group=0, divided="columns", seed=3):
    """A checkpoint in one of three formats."""
    numbers = Numbers(seed)
    projections = projections or (columns,)
    copies = copies or (1,) * len(projections)
    bias = numbers.normal(columns) if biased else None
    if form == "float":
        return LinearCheckpoint(numbers.normal(columns, inner, scale=inner**-0.5), projections, copies, form, bias)
    bits = 8 if form.startswith("w8") else 4
    weight = numbers.integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), columns, inner)
    groups = -(-inner // group) if group else 1
    scale = numbers.positive(columns, groups, scale=2.0 ** (1 - bits) * inner**-0.5) * torch.arange(1, groups + 1)
    if form == "w4a16":
        return LinearCheckpoint(weight, projections, copies, form, bias, scale.to(BF16), group)
    if form == "w8a8_static":
        size, offset = 0.03125, 5
        total = weight.to(torch.int64).sum(dim=1)
        quant_bias = (numbers.integers(-500, 500, columns, dtype=torch.int64) - offset * total).to(torch.int32)
        return LinearCheckpoint(
            weight, projections, copies, form, None, scale, 0, torch.tensor([size], dtype=BF16),
            torch.tensor([offset], dtype=torch.int8), quant_bias, (scale * size).flatten(),
        )  # fmt: skip
    chunks = None
    if form == "w4a8":
        each = scale.repeat_interleave(group or inner, dim=1)[:, :inner]
        parts = BIAS_CHUNKS if divided == "inner" else 1
        chunks = 8 * (weight * each).view(columns, parts, -1).sum(dim=2)
    return LinearCheckpoint(weight, projections, copies, form, bias, scale, group, scale_bias=chunks)


def tensors(kind, ranks, first, second=None, *, form="whole", tokens=5, **others):
    numbers = Numbers(11)
    states = numbers.normal(tokens, first.inner)
    if kind == "row_norm_column":
        others |= {"residual": numbers.normal(tokens, len(first.weight)), "norm_weight": numbers.normal(len(first.weight))}
    return TensorParallelInputs(kind, form, ranks, states, first, second, padding=3.0, **others)


def mlp(ranks, **others):
    return tensors("column_row", ranks, layer(64, 32, projections=(32, 32), biased=True), layer(32, 32, biased=True, seed=4), gated=True, **others)


def normed(ranks, **others):
    return tensors("row_norm_column", ranks, layer(32, 64, biased=True), layer(64, 32, projections=(32, 16, 16), seed=4), **others)


TENSOR_PARALLEL = {
    1: lambda: tensors("column", 2, layer(64, 32, projections=(32, 16, 16))),
    2: lambda: normed(2),
    3: lambda: tensors("column", 2, layer(32, 32, biased=True)),
    4: lambda: normed(4, form="sequence", tokens=6),
    5: lambda: tensors("column", 4, layer(64, 32, projections=(32, 16, 16), copies=(1, 2, 2))),
    6: lambda: tensors("row", 8, layer(32, 64)),
    7: lambda: tensors("row", 2, layer(32, 112, form="w4a16", group=32)),
    8: lambda: tensors("row", 4, layer(32, 192, form="w4a16", group=32)),
    "one rank": lambda: normed(1),
    "row": lambda: tensors("row", 2, layer(32, 64, biased=True)),
    "own tokens": lambda: tensors("row", 4, layer(32, 64, biased=True), form="own_tokens"),
    "mlp": lambda: mlp(2),
    "mlp in sequence": lambda: mlp(4, form="sequence"),
    "columns in sequence": lambda: tensors("column", 2, layer(32, 32), form="sequence"),
    "normed in sequence": lambda: normed(2, form="sequence"),
    "static": lambda: tensors("row", 4, layer(32, 64, form="w8a8_static", divided="inner")),
    "dynamic": lambda: tensors("row", 4, layer(32, 64, form="w8a8_dynamic", biased=True)),
    "w4a8": lambda: tensors("row", 4, layer(32, 256, form="w4a8", group=32, divided="inner")),
    "w4a8 columns": lambda: tensors("column", 4, layer(32, 64, form="w4a8", group=32)),
    "even groups": lambda: tensors("row", 2, layer(32, 128, form="w4a16", group=32)),
}


# context_parallel


def attention(stage, ranks, requests, *, interleave=1, page_size=4, heads=4, kv_heads=2, dim=16, scale=0.25, size=1.0, unused=1):
    """Requests ``(new, total)``; pages are given out from ``unused`` on, each rank's in another order."""
    numbers = Numbers(5)
    tokens, most = sum(new for new, _ in requests), max(total for _, total in requests)
    width = -(-most // page_size) + 1
    pages = unused + len(requests) * width
    tables = []
    for rank in range(ranks):
        order = torch.arange(unused, pages).roll(rank).flip(0) if unused else torch.arange(pages)
        table = order[: len(requests) * width].view(len(requests), width).clone()
        table[[not total for _, total in requests]] = 0
        tables.append(table)
    query, key, value = (numbers.normal(tokens, count, dim, scale=size) for count in (heads, kv_heads, kv_heads))
    pools = [numbers.normal(ranks, pages, page_size, kv_heads, dim, scale=size) for _ in range(2)]
    if stage == "prefill":
        pools = [pool[:1].repeat(ranks, 1, 1, 1, 1) for pool in pools]
        tables = tables[:1] * ranks
    return ContextParallelInputs(
        stage, query, key, value, *pools, torch.stack(tables).to(torch.int32), tuple(new for new, _ in requests),
        tuple(total for _, total in requests), interleave, scale,
    )  # fmt: skip


CONTEXT_PARALLEL = {
    1: lambda: attention("decode", 2, [(1, 9), (2, 14)]),
    2: lambda: attention("decode", 2, [(1, 9), (1, 15)], interleave=4),
    3: lambda: attention("prefill", 3, [(13, 13)], heads=3, kv_heads=3),
    4: lambda: attention("prefill", 2, [(9, 15)]),
    5: lambda: attention("decode", 2, [(1, 3), (1, 4)], interleave=4),
    6: lambda: attention("decode", 2, [(1, 9), (1, 14)], size=12.0),
    7: lambda: attention("prefill", 2, [(1, 1), (13, 13)]),
    8: lambda: attention("decode", 2, [(1, 9), (1, 0)], unused=0),
    "one rank": lambda: attention("decode", 1, [(1, 9), (2, 14)]),
    "one request": lambda: attention("decode", 2, [(1, 16)], interleave=2),
    "padded": lambda: attention("decode", 2, [(3, 16), (2, 0), (1, 21)], interleave=2),
    "four ranks": lambda: attention("decode", 4, [(1, 6), (4, 33)], interleave=2, heads=8),
    "prefill of one rank": lambda: attention("prefill", 1, [(7, 7), (3, 9)]),
    "prefill": lambda: attention("prefill", 2, [(8, 8), (12, 16)]),
    "prefill of four ranks": lambda: attention("prefill", 4, [(17, 17), (3, 9)]),
}


# data_parallel_gather


def gathered(mode, counts, lengths, size=1, *, replicated=True, dtype=BF16, high=2**20):
    numbers, ranks = Numbers(9), len(counts) * size
    blocks = []
    for count, length in zip(counts, lengths):
        rows = [
            numbers.integers(-high, high, length, 6, dtype=dtype) if dtype == torch.int32 else numbers.normal(length, 6, dtype=dtype)
            for _ in range(size)
        ]
        for one in rows:
            if replicated:
                one[:count] = rows[0][:count]
            one[count:] = 77
        blocks += rows
    powers = torch.arange(ranks) % 3 if dtype == torch.int32 else torch.arange(ranks) % 5 - 2
    factors = (2.0 ** powers.view(-1, 1)).repeat(1, 6).to(dtype)
    return DataParallelGatherInputs(torch.cat(blocks), factors, tuple(counts), tuple(lengths), size, mode, replicated)


DATA_PARALLEL_GATHER = {
    1: lambda: gathered("sum", [3, 4], [5, 4]),
    2: lambda: gathered("maximum", [3, 4], [4, 4], 2),
    3: lambda: gathered("sum", [3, 2], [3, 4], 2),
    4: lambda: gathered("chunks", [3, 4], [4, 4], 2),
    5: lambda: gathered("sum", [3, 2, 4], [3, 2, 4]),
    6: lambda: gathered("sum", [0, 4], [2, 4]),
    7: lambda: gathered("sum", [3, 4], [4, 4], 2, dtype=torch.int32),
    8: lambda: gathered("sum", [3, 4], [4, 4], dtype=torch.int32, high=2**27),
    "one rank": lambda: gathered("sum", [3], [4]),
    "two groups": lambda: gathered("sum", [3, 4], [3, 4]),
    "partial sums": lambda: gathered("sum", [3, 4], [4, 4], 2, replicated=False),
    "partial maximum": lambda: gathered("maximum", [3, 4], [4, 4], 2, replicated=False),
    "three ranks in sum": lambda: gathered("sum", [3, 5], [6, 6], 3),
    "one rank in maximum": lambda: gathered("maximum", [4], [4]),
    "idle in maximum": lambda: gathered("maximum", [0, 3, 2], [4, 4, 4], 2),
    "chunks of one rank": lambda: gathered("chunks", [3, 4], [4, 4]),
    "one chunk": lambda: gathered("chunks", [1, 2], [4, 4], 2, replicated=False),
}


# vocabulary_parallel


def vocabulary(ranks, known, added, multiple, ids, *, filler=9.0, given="whole", returned="whole", dtype=BF16, hidden=16, tie=None):
    """A table of random rows, or one in which some have the largest logit of all, ``tie``."""
    numbers = Numbers(13)
    table = numbers.normal(known + added, hidden, dtype=dtype)
    ids = torch.tensor(ids)
    states = numbers.normal(len(ids), hidden, dtype=dtype)
    if tie is not None:
        table, states = table.sign(), torch.ones_like(states)
        for one in tie:
            table[one] = 1.0
    if filler == "along a token":
        filler = 10 * states[0]
    shards = sharded(table, known, multiple, ranks, filler)
    return VocabularyParallelInputs(
        shards, ids, states, known, added, multiple, even_counts(len(ids), ranks), given, returned
    )


VOCABULARY_PARALLEL = {
    1: lambda: vocabulary(2, 16, 0, 8, [0, 9, 3]),
    2: lambda: vocabulary(2, 600, 0, 64, [0, 599, 300, 17, 255]),
    3: lambda: vocabulary(2, 16, 4, 8, [8, 3, 1]),
    4: lambda: vocabulary(2, 16, 0, 8, [-1, 9, 3]),
    5: lambda: vocabulary(2, 13, 0, 8, [0, 9, 3], filler="along a token"),
    6: lambda: vocabulary(4, 4, 0, 16, [0, 3, 1], filler=float("nan")),
    7: lambda: vocabulary(2, 16, 4, 8, [0, 9, 3], tie=(12, 17)),
    8: lambda: vocabulary(2, 13, 8, 8, [20, 18, 3]),
    "one rank": lambda: vocabulary(1, 13, 2, 8, [0, 14, 3]),
    "whole": lambda: vocabulary(4, 32, 8, 16, [0, 36, 3, 17, 9]),
    "scattered": lambda: vocabulary(4, 29, 3, 16, [0, 30, 3, 17, 9], returned="chunks"),
    "chunks": lambda: vocabulary(4, 29, 3, 16, [0, 30, 3, 17, 9, 2], given="chunks", returned="chunks"),
    "chunks to whole": lambda: vocabulary(2, 29, 3, 16, [0, 30, 3, 17, 9], given="chunks"),
    "float32": lambda: vocabulary(3, 29, 3, 9, [0, 30, 3, 17, 9], dtype=torch.float32),
    "all equal": lambda: vocabulary(2, 16, 4, 8, [0, 9, 3], tie=tuple(range(20))),
}

CASES = {
    "expert_parallel": EXPERT_PARALLEL, "tensor_parallel": TENSOR_PARALLEL, "context_parallel": CONTEXT_PARALLEL,
    "data_parallel_gather": DATA_PARALLEL_GATHER, "vocabulary_parallel": VOCABULARY_PARALLEL,
}  # fmt: skip
