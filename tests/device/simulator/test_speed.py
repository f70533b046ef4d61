"""Speed, generously: strategies draw contexts of 128K, so the kernel may not take seconds."""

import torch

from shortest import shortest


def decode(length, heads=8):
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(length // 128 + 1, 128, 64, generator=generator).bfloat16() for _ in range(2))
    query = torch.randn(1, heads, 64, generator=generator).bfloat16()
    table = torch.randperm(len(key), generator=generator).int()[None]
    return lambda: torch.ops.npu.npu_fused_infer_attention_score_v2(
        query,
        key,
        value,
        num_query_heads=heads,
        num_key_value_heads=1,
        input_layout="TND",
        actual_seq_qlen=[1],
        actual_seq_kvlen=[length],
        block_table=table,
        block_size=128,
        softmax_scale=0.125,
    )


def test_a_short_decode_is_quick():
    assert shortest(decode(100), 31) < 0.003


def test_a_decode_over_128k_keys_is_quick():
    assert shortest(decode(131072), 4) < 0.3
