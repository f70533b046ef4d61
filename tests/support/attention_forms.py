"""Calls of fused attention that no adapter makes: rotated parts, layout pairs, quantised caches, merged parts.

For tests that compare the simulator with torch_npu's shape functions, and the virtual NPU with the simulator.
"""

from __future__ import annotations

from functools import cache

import torch

ABSORBED = ("BSH", "BSND", "BNSD", "TND", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD", "TND_NTD")
OTHERS = ("BSH", "BSND", "BNSD", "BNSD_BSND", "TND", "NTD", "BSH_BNSD", "BSND_BNSD", "NTD_TND")
BLOCK_SIZE = 32
BATCH, QUERIES, KEYS = 2, 3, 40


def _normal(*shape, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def _rows(layout, heads, dim, length, dtype=torch.bfloat16):
    axes = layout.split("_")[0]
    sizes = {"B": BATCH, "S": length, "T": BATCH * length, "N": heads, "D": dim, "H": heads * dim}
    return _normal(*[sizes[axis] for axis in axes], dtype=dtype)


def _cache(rank, heads, dim, dtype=torch.bfloat16):
    blocks, width = 5, 32 // torch.tensor([], dtype=dtype).itemsize
    shapes = {
        3: (blocks, BLOCK_SIZE, heads * dim),
        4: (blocks, heads, BLOCK_SIZE, dim),
        5: (blocks, heads, dim // width, BLOCK_SIZE, width),
    }
    if dtype == torch.int8:
        return (_normal(*shapes[rank], dtype=torch.float32) * 40).to(dtype)
    return _normal(*shapes[rank], dtype=dtype)


def _call(layout, version, *, heads, kv_heads, dim, value_dim=None, rank=0, rope=0, queries=QUERIES, lse=True, **more):
    """Return an operator's name and its arguments; the first three are query, key and value."""
    value_dim, packed = value_dim or dim, "T" in layout
    dtype = more.pop("dtype", torch.bfloat16)
    cache_dtype = more.pop("cache_dtype", dtype)
    table = {}
    if rank:
        key, value = _cache(rank, kv_heads, dim, cache_dtype), _cache(rank, kv_heads, value_dim, cache_dtype)
        table = {"block_table": torch.tensor([[3, 1], [0, 2]], dtype=torch.int32), "block_size": BLOCK_SIZE}
    else:
        key, value = _rows(layout, kv_heads, dim, KEYS, dtype), _rows(layout, kv_heads, value_dim, KEYS, dtype)
        if cache_dtype != dtype:
            key, value = ((part.float() * 40).to(cache_dtype) for part in (key, value))
    query = _rows(layout, heads, dim, queries, dtype)
    words = (
        ("num_heads", "scale", "actual_seq_lengths", "actual_seq_lengths_kv", "softmax_lse_flag")
        if version == 1
        else ("num_query_heads", "softmax_scale", "actual_seq_qlen", "actual_seq_kvlen", "return_softmax_lse")
    )
    key_lengths = [KEYS, 2 * KEYS] if packed and not rank else [KEYS, KEYS - 9]
    given = (heads, 0.07, [queries, 2 * queries] if packed else None, key_lengths, lse)
    arguments = dict(zip(words, given, strict=True)) | table | {"input_layout": layout, "num_key_value_heads": kv_heads}
    if rope:
        arguments["query_rope"] = _rows(layout, heads, rope, queries, dtype)
        arguments["key_rope"] = _cache(rank, kv_heads, rope) if rank else _rows(layout, kv_heads, rope, KEYS, dtype)
    name = "npu_fused_infer_attention_score" + ("" if version == 1 else "_v2")
    return name, (query, key, value), arguments | more


@cache
def forms():
    """Return calls by a name: an operator of namespace npu, its positional arguments and the others."""
    calls = {}
    for version in (1, 2):
        for layout in ABSORBED:
            for rank in (0, 3, 4, 5):
                sizes = {"heads": 8, "kv_heads": 1, "dim": 512, "rope": 64, "rank": rank}
                calls[f"v{version} absorbed {layout} {rank}"] = _call(layout, version, **sizes)
        for layout in OTHERS:
            sizes = {"heads": 4, "kv_heads": 2, "rank": 3, "lse": version == 1}
            calls[f"v{version} expanded {layout}"] = _call(layout, version, dim=128, rope=64, **sizes)
            calls[f"v{version} combined {layout}"] = _call(
                layout, version, dim=192, value_dim=128, **sizes | {"rank": 0}
            )
            half = {"dtype": torch.float16}
            calls[f"v{version} float16 {layout}"] = _call(layout, version, dim=64, **half, **sizes | {"rank": 0})
    tree = torch.ones(BATCH, QUERIES, QUERIES).triu(1).to(torch.int8)
    absorbed = {"heads": 8, "kv_heads": 1, "dim": 512, "rope": 64, "rank": 3}
    calls["tree"] = _call("BSND", 2, **absorbed, sparse_mode=9, atten_mask=tree)
    calls["tree TND"] = _call("TND", 2, **absorbed, sparse_mode=9, atten_mask=tree.flatten())
    scales = _normal(1, 1, 128).abs() / 40
    int8 = {"heads": 10, "kv_heads": 1, "dim": 128, "queries": 1, "cache_dtype": torch.int8}
    separate = {"dequant_scale_key": scales, "dequant_scale_value": scales}
    first = {"key_antiquant_scale": scales, "value_antiquant_scale": scales}
    for layout, rank, shape in (
        ("BSH", 3, [128]),
        ("BNSD", 4, [1, 1, 128]),
        ("BNSD", 5, [1, 1, 128]),
        ("BSND", 0, [1, 128]),
    ):
        shaped = {name: tensor.view(shape) for name, tensor in separate.items()}
        calls[f"v2 int8 {layout} {rank}"] = _call(layout, 2, rank=rank, **int8, **shaped)
        shaped = {name: tensor.view(shape) for name, tensor in first.items()}
        calls[f"v1 int8 {layout} {rank}"] = _call(layout, 1, rank=rank, **int8, **shaped)
    by_token = _normal(5, BLOCK_SIZE, dtype=torch.float32).abs() / 40
    paged = {"dequant_scale_key": by_token, "dequant_scale_value": by_token, "key_quant_mode": 4, "value_quant_mode": 4}
    calls["int8 per token in pages"] = _call("BNSD", 2, rank=4, **int8, **paged)
    combined = {"antiquant_scale": torch.tensor([0.02, 0.03]).half(), "dtype": torch.float16}
    calls["int8 combined"] = _call("BSND", 1, **int8, **combined, antiquant_offset=torch.tensor([3.0, -2.0]).half())
    int4 = torch.arange(BATCH * KEYS * 16, dtype=torch.int32).mul(-1640531535).view(BATCH, KEYS, 1, 16)
    name, (query, *_), arguments = _call("BSND", 2, **int8, **{k: t.view(1, 128) for k, t in separate.items()})
    calls["int4"] = (name, (query, int4, int4), arguments)
    plain = {"heads": 4, "kv_heads": 2, "dim": 64, "lse": False}
    shift = _normal(1, 4, QUERIES, KEYS)
    for layout in ("BSH", "BSND", "BNSD", "BNSD_BSND"):
        calls[f"shift {layout}"] = _call(layout, 2, **plain, pse_shift=shift)
        calls[f"int8 output {layout}"] = _call(layout, 1, **plain, quant_scale2=torch.tensor([30.0]))
        by_channel = {"quant_scale_out": torch.linspace(5, 90, 256), "quant_offset_out": torch.linspace(-9, 9, 256)}
        calls[f"int8 output per channel {layout}"] = _call(layout, 2, **plain, **by_channel)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        lse = [_normal(6, dtype=torch.float32), _normal(6, dtype=torch.float32) + 1]
        lse[0][2] = torch.inf
        parts = [_normal(6, 32, dtype=dtype), _normal(6, 32, dtype=dtype) * 2]
        for kind in (0, 1):
            calls[f"update {kind} {dtype}"] = ("npu_attention_update", (lse, parts, kind), {})
    return calls | _branches() | _int8_queries() | _fusion_forms() | _fusion_gradients()


def _branches():
    """Return calls of both branches by themselves."""
    calls = {}
    words = {"scale": "scale_value"}
    for dtype in (torch.bfloat16, torch.float16):
        for layout in ("BSH", "BSND", "BNSD", "BNSD_BSND", "TND"):
            _, tensors, more = _call(layout, 1, heads=4, kv_heads=2, dim=64, dtype=dtype)
            del more["softmax_lse_flag"]
            more = {words.get(name, name): one for name, one in more.items()}
            calls[f"prompt {layout} {dtype}"] = ("npu_prompt_flash_attention", tensors, more)
            if layout in ("BSH", "BSND", "BNSD"):
                one = _call(layout, 1, heads=4, kv_heads=2, dim=64, dtype=dtype, queries=1)[1]
                more = {"num_heads": 4, "num_key_value_heads": 2, "input_layout": layout, "actual_seq_lengths": [7, 9]}
                calls[f"incremental {layout} {dtype}"] = ("npu_incre_flash_attention", one, more)
    return calls


def _int8_queries():
    """Return calls with int8 in both products: of one scale each, and of latent attention."""
    calls = {}
    scales = {"quant_scale1": torch.tensor([127.0]), "num_heads": 4, "num_key_value_heads": 2}
    for layout in ("BSH", "BSND", "BNSD", "BNSD_BSND"):
        tensors = _call(layout, 1, heads=4, kv_heads=2, dim=64)[1]
        tensors = [(one.float() * 40).to(torch.int8) for one in tensors]
        more = scales | {"dequant_scale1": torch.tensor([2e-4]), "dequant_scale2": torch.tensor([3e-4])}
        calls[f"int8 query {layout}"] = ("npu_fused_infer_attention_score", tensors, more | {"input_layout": layout})
        more = scales | {"deq_scale1": torch.tensor([2e-4]), "deq_scale2": torch.tensor([3e-4])}
        more |= {"quant_scale2": torch.tensor([30.0]), "input_layout": layout}
        calls[f"int8 prompt {layout}"] = ("npu_prompt_flash_attention", tensors, more)
    for layout in ABSORBED:
        sizes = {"heads": 8, "kv_heads": 1, "dim": 512, "rope": 64, "rank": 5, "queries": 1, "lse": False}
        name, (query, *_), more = _call(layout, 2, **sizes)
        shape = (*query.shape[:-1], 8) if layout.startswith("BSH") else query.shape[:-1]
        keys = (_normal(5, 1, 16, 128, 32, dtype=torch.float32) * 40).to(torch.int8)
        more |= {"key_rope": _normal(5, 1, 4, 128, 16), "block_size": 128, "query_quant_mode": 3}
        more |= {"dequant_scale_query": _normal(*shape, dtype=torch.float32).abs() / 40}
        more |= {name: torch.tensor([0.02]) for name in ("dequant_scale_key", "dequant_scale_value")}
        calls[f"int8 latent {layout}"] = (name, ((query.float() * 40).to(torch.int8), keys, keys), more)
    return calls


def _fusion_forms():
    """Return calls of npu_fusion_attention: layouts, dtypes, masks, and sequences in one piece."""
    calls = {}
    template = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for layout in ("BSH", "SBH", "BSND", "BNSD", "TND"):
            query, key, value = (
                _rows(layout, heads, 32, length, dtype) for heads, length in ((4, QUERIES), (2, KEYS), (2, KEYS))
            )
            options = {"scale": 0.2, "atten_mask": template, "sparse_mode": 3}
            if layout == "TND":
                options |= {"actual_seq_qlen": [QUERIES, 2 * QUERIES], "actual_seq_kvlen": [KEYS, 2 * KEYS]}
            calls[f"fusion {layout} {dtype}"] = ("npu_fusion_attention", (query, key, value, 4, layout), options)
    pse, mask = _normal(1, 4, QUERIES, KEYS), _normal(BATCH, 1, QUERIES, KEYS) > 1
    parts = [_rows("BSND", heads, 32, length) for heads, length in ((4, QUERIES), (2, KEYS), (2, KEYS))]
    calls["fusion pse"] = ("npu_fusion_attention", (*parts, 4, "BSND"), {"pse": pse, "atten_mask": mask})
    second = {"pse": pse, "pse_type": 0, "scale": 0.2}
    parts = [_rows("BNSD", heads, 32, length) for heads, length in ((4, QUERIES), (2, KEYS), (2, KEYS))]
    calls["fusion of the second version"] = ("npu_fusion_attention_v2", (*parts, 4, "BNSD"), second)
    return calls


def _fusion_gradients():
    """Return calls of npu_fusion_attention_grad; what the forward call kept is drawn."""
    calls = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for layout in ("BSH", "SBH", "BSND", "BNSD", "TND"):
            lengths = ((4, QUERIES), (2, KEYS), (2, KEYS), (4, QUERIES), (4, QUERIES))
            *parts, attention = (_rows(layout, heads, 32, length, dtype) for heads, length in lengths)
            shape = (BATCH * QUERIES, 4, 8) if layout == "TND" else (BATCH, 4, QUERIES, 8)
            kept = {name: _normal(*shape, dtype=torch.float32).abs() + 4 for name in ("softmax_max", "softmax_sum")}
            options = {"scale_value": 0.2, "attention_in": attention, **kept}
            if layout == "TND":
                options |= {"actual_seq_qlen": [QUERIES, 2 * QUERIES], "actual_seq_kvlen": [KEYS, 2 * KEYS]}
            calls[f"gradients {layout} {dtype}"] = ("npu_fusion_attention_grad", (*parts, 4, layout), options)
    return calls
