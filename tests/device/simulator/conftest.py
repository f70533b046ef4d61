"""A laboratory for the fused attention operators: ragged sequences, layouts, paged caches, exact answers.

Everything is per sequence, [heads, rows, dim], until it is packed for a call; the exact answer never sees a
layout, a page or a tile. It is a fixture, ``lab``, because test folders are not importable in importlib
mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from npudiff.device import simulator


@dataclass(frozen=True)
class Ragged:
    """Queries, keys and values of some sequences: lists of [heads, rows, dim]."""

    queries: list[torch.Tensor]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    query_ropes: list[torch.Tensor] | None = None
    key_ropes: list[torch.Tensor] | None = None

    @property
    def whole(self):
        """The same with the rotated parts behind the others."""
        pairs = (self.queries, self.query_ropes), (self.keys, self.key_ropes)
        queries, keys = ([torch.cat(part, -1) for part in zip(*pair, strict=True)] for pair in pairs)
        return Ragged(queries, keys, self.values)

    @property
    def heads(self):
        return self.queries[0].shape[0]

    @property
    def kv_heads(self):
        return self.keys[0].shape[0]

    @property
    def scale(self):
        return 1 / math.sqrt(self.queries[0].shape[-1])


def ragged(
    query_lengths, key_lengths, *, heads=4, kv_heads=2, dim=64, value_dim=None, rope=0, dtype=torch.bfloat16, seed=0
):
    generator = torch.Generator().manual_seed(seed)

    def draw(count, length, size):
        return torch.randn(count, length, size, generator=generator).to(dtype)

    return Ragged(
        [draw(heads, length, dim) for length in query_lengths],
        [draw(kv_heads, length, dim) for length in key_lengths],
        [draw(kv_heads, length, value_dim or dim) for length in key_lengths],
        [draw(heads, length, rope) for length in query_lengths] if rope else None,
        [draw(kv_heads, length, rope) for length in key_lengths] if rope else None,
    )


def _pack_rows(sequences, layout, fill):
    """Put [heads, rows, dim] sequences into one tensor of a layout, padded with ``fill``."""
    if layout in ("TND", "NTD"):
        return torch.cat(sequences, 1) if layout == "NTD" else torch.cat([s.transpose(0, 1) for s in sequences])
    heads, _, dim = sequences[0].shape
    longest = max(s.shape[1] for s in sequences)
    packed = torch.full((len(sequences), heads, longest, dim), fill, dtype=sequences[0].dtype)
    for row, sequence in zip(packed, sequences, strict=True):
        row[:, : sequence.shape[1]] = sequence
    if layout == "BNSD":
        return packed
    packed = packed.transpose(1, 2).contiguous()
    return packed.flatten(2) if layout == "BSH" else packed


def _pack_cache(sequences, block_size, rank, fill, table):
    heads, _, dim = sequences[0].shape
    cache = torch.full((int(table.max()) + 2, block_size, heads, dim), fill, dtype=sequences[0].dtype)
    for blocks, sequence in zip(table.tolist(), sequences, strict=True):
        for block, tokens in zip(blocks, sequence.transpose(0, 1).split(block_size), strict=False):
            cache[block, : len(tokens)] = tokens
    if rank == 3:
        return cache.flatten(2)
    if rank == 5:
        # [blocks, kv heads, dim / C0, block size, C0]
        return cache.unflatten(3, (-1, 32 // cache.itemsize)).permute(0, 2, 3, 1, 4).contiguous()
    return cache.transpose(1, 2).contiguous()


def pack(sequences, layout, *, version=2, block_size=0, rank=3, fill=math.nan):
    """Return the arguments of a call, without mask and mode; ``fill`` lies where nothing may be read."""
    query_lengths = [q.shape[1] for q in sequences.queries]
    key_lengths = [k.shape[1] for k in sequences.keys]
    cumulative = torch.tensor(key_lengths).cumsum(0).tolist()
    axes = layout.split("_")[0]
    arguments = {
        "query": _pack_rows(sequences.queries, axes, fill),
        "input_layout": layout,
        "num_key_value_heads": sequences.kv_heads,
    }
    if block_size:
        width = max(1, math.ceil(max(key_lengths) / block_size)) + 1
        count = len(key_lengths) * width
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1)) + 1
        table = order.view(len(key_lengths), width).to(torch.int32)
        arguments |= {
            "key": _pack_cache(sequences.keys, block_size, rank, fill, table),
            "value": _pack_cache(sequences.values, block_size, rank, fill, table),
            "block_table": table,
            "block_size": block_size,
        }
        if sequences.key_ropes:
            arguments["key_rope"] = _pack_cache(sequences.key_ropes, block_size, rank, fill, table)
    else:
        arguments["key"] = _pack_rows(sequences.keys, axes, fill)
        arguments["value"] = _pack_rows(sequences.values, axes, fill)
        if sequences.key_ropes:
            arguments["key_rope"] = _pack_rows(sequences.key_ropes, axes, fill)
    if sequences.query_ropes:
        arguments["query_rope"] = _pack_rows(sequences.query_ropes, axes, fill)
    if "T" in axes:
        query_lengths = torch.tensor(query_lengths).cumsum(0).tolist()
        key_lengths = key_lengths if block_size else cumulative
    names = _NAMES[version]
    arguments[names["heads"]] = sequences.heads
    arguments[names["scale"]] = sequences.scale
    arguments[names["query_lengths"]] = query_lengths
    arguments[names["key_lengths"]] = key_lengths
    return arguments


_NAMES = {
    1: {
        "heads": "num_heads",
        "scale": "scale",
        "query_lengths": "actual_seq_lengths",
        "key_lengths": "actual_seq_lengths_kv",
        "lse": "softmax_lse_flag",
    },
    2: {
        "heads": "num_query_heads",
        "scale": "softmax_scale",
        "query_lengths": "actual_seq_qlen",
        "key_lengths": "actual_seq_kvlen",
        "lse": "return_softmax_lse",
    },
}


def assert_refused(arguments, spoil, argument, given, *, version=2):
    """Check that a call is taken, and refused by an argument's name as soon as it is spoiled."""
    call(arguments, version=version)
    with pytest.raises(simulator.OperatorRejected) as caught:
        call(arguments | spoil, version=version)
    message = str(caught.value)
    operator = "npu_fused_infer_attention_score" + ("_v2" if version == 2 else "")
    assert message.startswith(f"{operator}: {argument} was {given}")
    assert "; allowed: " in message


def call(arguments, *, version=2, lse=True, **more):
    arguments = arguments | more
    tensors = [arguments.pop(name) for name in ("query", "key", "value")]
    name = "npu_fused_infer_attention_score" + ("_v2" if version == 2 else "")
    return getattr(torch.ops.npu, name)(*tensors, **{_NAMES[version]["lse"]: lse}, **arguments)


def unpack(output, layout, lengths):
    """Cut a call's output into [heads, rows, dim] per sequence."""
    axes = layout.split("_")[-1]
    if axes == "NTD":
        return list(output.split(lengths, 1))
    if axes == "TND":
        return [part.transpose(0, 1) for part in output.split(lengths)]
    if axes == "BSH":
        raise ValueError("give the output of BSH as BSND")
    by_head = {"BNSD": output, "BSND": output.transpose(1, 2), "NBSD": output.transpose(0, 1)}[axes]
    return [part[:, :length] for part, length in zip(by_head, lengths, strict=True)]


def unpack_lse(lse, layout, lengths):
    if "T" in layout:
        return [part[..., 0].transpose(0, 1) for part in lse.split(lengths)]
    return [part[:, :length, 0] for part, length in zip(lse, lengths, strict=True)]


def exact(query, key, value, visible, *, scale, sink=None):
    """Attend in float64: value, bound on a correct device's error, log-sum-exp; ``visible`` is [rows, keys].

    The bound names where a correct device rounds: once at the end, once where probabilities become 16 bit,
    and the float32 sums in between.
    """
    group = query.shape[0] // key.shape[0]
    unit = torch.finfo(query.dtype).eps / 2
    query, key, value = query.double(), *(t.double().repeat_interleave(group, 0) for t in (key, value))
    scores = (query @ key.transpose(1, 2) * scale).masked_fill(~visible, -math.inf)
    if sink is not None:
        scores = torch.cat([sink.double()[:, None, None].expand(-1, scores.shape[1], 1), scores], -1)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp()[..., scores.shape[-1] - key.shape[1] :]
    output = weights @ value
    magnitude = weights @ value.abs()
    bound = unit * output.abs() + (1.05 * unit + 1e-5) * magnitude + 1e-6
    return output, bound, lse


def template(dtype=torch.int8):
    return torch.ones(2048, 2048).triu(1).to(dtype)


@pytest.fixture(scope="session", autouse=True)
def _installed():
    simulator.install()


@pytest.fixture(scope="session")
def lab():
    return SimpleNamespace(
        ragged=ragged,
        pack=pack,
        call=call,
        assert_refused=assert_refused,
        unpack=unpack,
        unpack_lse=unpack_lse,
        exact=exact,
        template=template,
        names=_NAMES,
    )
