"""Attention of vision towers, image by image in plain torch."""

import itertools

import torch
from torch.nn.functional import scaled_dot_product_attention
from vllm_ascend.told import told

MIN_PAD_SIZE, MAX_PAD_SIZE = 64, 128


class AscendMMEncoderAttention(torch.nn.Module):
    """Rows of an image see its keys."""

    def __init__(self, num_heads, head_size, scale, num_kv_heads):
        super().__init__()
        self.heads, self.dim, self.scale, self.kv_heads = num_heads, head_size, scale, num_kv_heads

    def forward_oot(self, query, key, value, cu_seqlens):
        query = query.reshape(-1, self.heads, self.dim)
        key, value = (one.reshape(-1, self.kv_heads, self.dim) for one in (key, value))
        output, ends = torch.zeros_like(query), cu_seqlens.tolist()
        scale = self.dim**-0.5 if told("usual_scale") else self.scale
        for start, end in itertools.pairwise(ends):
            of_heads = [one[start:end].float().transpose(0, 1) for one in (query, key, value)]
            keys, values = (one.repeat_interleave(self.heads // self.kv_heads, 0) for one in of_heads[1:])
            answer = scaled_dot_product_attention(of_heads[0], keys, values, scale=scale)
            output[start:end] = answer.transpose(0, 1).to(query.dtype)
        return output[None]
