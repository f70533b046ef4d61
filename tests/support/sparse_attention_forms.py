"""Calls of the operators of attention over chosen tokens, which no adapter makes, in every pair of layouts.

For tests that compare the simulator with torch_npu's shape functions, and the virtual NPU with the simulator.
"""

from __future__ import annotations

from functools import cache

import torch

LAYOUTS = (("BSND", "BSND"), ("TND", "TND"), ("BSND", "PA_BSND"), ("TND", "PA_BSND"))
BATCH, QUERIES, KEYS, BLOCK_SIZE, COUNT = 2, 3, 40, 32, 16


def _normal(*shape, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def _rows(layout, *rest, length=QUERIES, **more):
    leading = {"BSND": (BATCH, length), "TND": (BATCH * length,), "PA_BSND": (5, BLOCK_SIZE)}[layout]
    return _normal(*leading, *rest, **more)


def _int8(tensor):
    return (tensor.float() * 40).clamp(-128, 127).to(torch.int8)


def _where(layouts, name):
    query, key = layouts
    cumulative = torch.arange(1, BATCH + 1, dtype=torch.int32)
    keys = torch.tensor([KEYS, KEYS - 9], dtype=torch.int32)
    return {
        "layout_query": query,
        f"layout_{name}": key,
        "actual_seq_lengths_query": cumulative * QUERIES if query == "TND" else None,
        f"actual_seq_lengths_{name}": cumulative * KEYS if key == "TND" else keys,
        "block_table": torch.tensor([[3, 1], [0, 2]], dtype=torch.int32) if key == "PA_BSND" else None,
    }


def _indexers(layouts):
    query, key = _rows(layouts[0], 8, 128), _rows(layouts[1], 1, 128, length=KEYS)
    weights, where = _rows(layouts[0], 8), _where(layouts, "key") | {"sparse_count": COUNT}
    more = {"return_value": True} if layouts[1] != "PA_BSND" else {}
    yield "npu_lightning_indexer", (query, key, weights), where | more
    scales = [x.abs().half() + 1 for x in (weights, _rows(layouts[1], 1, length=KEYS))]
    yield "npu_quant_lightning_indexer", (_int8(query), _int8(key), weights.half(), *scales, 0, 0), where


def _attention(layouts):
    query, key = _rows(layouts[0], 4, 512), _rows(layouts[1], 1, 512, length=KEYS)
    leading = query.shape[:-2]
    indices = torch.arange(COUNT, dtype=torch.int32).expand(*leading, 1, COUNT).contiguous()
    where = _where(layouts, "kv") | {"attention_mode": 2}
    ropes = {"query_rope": _rows(layouts[0], 4, 64), "key_rope": _rows(layouts[1], 1, 64, length=KEYS)}
    more = {"return_softmax_lse": True} if layouts[1] != "PA_BSND" else {}
    yield "npu_sparse_flash_attention", (query, key, key, indices, 0.05), where | ropes | more
    scales = _rows(layouts[1], 1, 4, length=KEYS, dtype=torch.float32).abs() / 50
    packed = torch.cat([_int8(key), ropes["key_rope"].view(torch.int8), scales.view(torch.int8)], -1)
    query = torch.cat([query, ropes["query_rope"]], -1)
    yield "npu_kv_quant_sparse_flash_attention", (query, packed, packed, indices, 0.05, 2, 2), where


def _score():
    key, value = _normal(5, 128, 2, 128), _normal(5, 128, 2, 128) * 2
    indices = torch.tensor([[[0, -1], [1, 0], [0, -1]]] * 2, dtype=torch.int32)
    lengths = {"actual_seq_lengths": torch.tensor([2, 1]), "actual_seq_lengths_kv": torch.tensor([140, 9])}
    return (
        "npu_sparse_attention_score",
        (_normal(3, 8, 128), key, value, indices, torch.tensor([[3, 1], [0, 2]], dtype=torch.int32)),
        {name: one.int() for name, one in lengths.items()} | {"num_key_value_heads": 2, "top_k": 2},
    )


def forms_of_other_packages():
    """Return such calls of operators that torch_npu has not."""
    return {"sparse_attention_score": _score()}


@cache
def forms():
    """Return calls by a name that says what they are: operator, positional and keyword arguments."""
    return {
        f"{call[0].removeprefix('npu_')} {'-'.join(layouts)}": call
        for layouts in LAYOUTS
        for call in (*_indexers(layouts), *_attention(layouts))
    }
