"""Calls of ATB's attention operators, for tests that compare the virtual NPU with the simulator."""

from __future__ import annotations

import torch

HOST = ("context_lens", "seq_len")
"""Arguments that may be on the host."""


def _normal(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def forms():
    """Return calls by a name: an operator of namespace atb, and its arguments; ``out`` is written."""
    lengths, counts = torch.tensor([5, 20], dtype=torch.int32), torch.tensor([3, 1], dtype=torch.int32)
    table = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32)
    heads = {"num_heads": 4, "num_kv_heads": 2, "scale_value": 0.2}
    calls = {}
    for dtype in (torch.bfloat16, torch.float16):
        caches = {
            "key_cache": _normal(4, 16, 2, 32, dtype=dtype),
            "value_cache": _normal(4, 16, 2, 32, dtype=dtype, seed=1),
            "block_table": table,
            "context_lens": lengths,
        }
        hiding = 1.0 if dtype == torch.bfloat16 else -torch.inf
        template = torch.zeros(128, 128, dtype=dtype).masked_fill(torch.ones(128, 128).triu(1).bool(), hiding)
        decode = caches | heads | {"query": _normal(2, 4, 32, dtype=dtype), "out": torch.zeros(2, 4, 32, dtype=dtype)}
        calls[f"decode {dtype}"] = ("_npu_paged_attention", decode)
        latent = {name: value for name, value in decode.items() if name != "value_cache"}
        latent |= {"key_cache": _normal(4, 16, 1, 32, dtype=dtype), "num_kv_heads": 1, "mla_vheadsize": 24}
        calls[f"mla {dtype}"] = ("_npu_paged_attention_mla", latent | {"out": torch.zeros(2, 4, 24, dtype=dtype)})
        several = {"query": _normal(4, 4, 32, dtype=dtype), "out": torch.zeros(4, 4, 32, dtype=dtype)}
        chunk = caches | heads | several | {"seq_len": counts}
        calls[f"qlens {dtype}"] = ("_npu_flash_attention_qlens", chunk | {"mask": template})
        calls[f"splitfuse {dtype}"] = (
            "_npu_paged_attention_splitfuse",
            chunk | {"mask": _normal(4, 20, dtype=dtype)},
        )
        parts = {name: _normal(4, 2, 32, dtype=dtype, seed=n) for n, name in enumerate(("key", "value"))}
        packed = heads | several | parts | {"seq_len": counts}
        calls[f"masked {dtype}"] = ("_npu_flash_attention", packed | {"mask": _normal(3, 3, dtype=dtype)})
        calls[f"causal {dtype}"] = ("_npu_flash_attention_v3", packed | {"mask": template})
        for form in ("unpad", "unpad_v2"):
            calls[f"{form} {dtype}"] = (f"_npu_flash_attention_{form}", packed)
    return calls
