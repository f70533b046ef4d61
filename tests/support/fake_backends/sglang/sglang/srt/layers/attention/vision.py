"""Attention of vision towers, image by image in plain torch."""

import torch
from sglang.told import told
from torch.nn.functional import scaled_dot_product_attention


class VisionAscendAttention(torch.nn.Module):
    """Rows of an image see its keys."""

    def __init__(self, **sizes):
        super().__init__()

    def forward(self, q, k, v, cu_seqlens, bsz, seq_len, softmax_scale):
        lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
        apart = len(q) // bsz if bsz > 1 else 0
        starts = [apart * image for image in range(bsz)] if apart else cu_seqlens[:-1].tolist()
        output, group = torch.zeros_like(q), q.shape[1] // k.shape[1]
        for start, length in zip(starts, lengths, strict=True):
            rows = slice(start, start + length)
            seen = slice(start, start + length - (told("last_key_unseen") and length > 1))
            keys, values = (one[seen].float().repeat_interleave(group, 1).transpose(0, 1) for one in (k, v))
            answer = scaled_dot_product_attention(q[rows].float().transpose(0, 1), keys, values, scale=softmax_scale)
            output[rows] = answer.transpose(0, 1).to(q.dtype)
        return output
