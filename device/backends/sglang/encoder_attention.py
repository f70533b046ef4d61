"""Attention of sglang's vision towers on an NPU: ``VisionAscendAttention.forward``."""

from __future__ import annotations

import itertools

import torch
from sglang.srt.layers.attention.vision import VisionAscendAttention

from npudiff import Target, implementation
from npudiff.device.ascend.encoder_attention import PACKED_DIMS, of_all_rows, tokens_of
from npudiff.device.backends.sglang.world import configured, options_of
from npudiff.model.constraints import Box
from npudiff.reference.encoder_attention import EncoderAttentionInputs, spans

Outputs = dict[str, torch.Tensor]

LAYOUT = {"layout": ("packed", "padded")}
"""packed: images one after the other. padded: each has as many rows as the largest, as models of one size per image
have them, and lengths say how many of them count."""

_HERE: Box = {
    "dtype": ("bfloat16",), "head_dim": PACKED_DIMS, "cross": (False,), "query_length": range(1, 2**17 + 1),
    "kv_length": range(1, 2**17 + 1), "rows": ("contiguous",), "padded_rows": (0,),
}  # fmt: skip
"""Heads are given to the operator as they are, and every image has a row."""


@implementation(
    "encoder_attention", name="VisionAscendAttention.forward", supports=_HERE, options=LAYOUT, on_device=True
)
def attended(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """Images of a batch in one call."""
    configured()
    layer = VisionAscendAttention(
        head_dim=inputs.query.shape[2], num_heads=inputs.query.shape[1], num_kv_heads=inputs.key.shape[1]
    )
    ends = torch.tensor((0, *itertools.accumulate(inputs.query_lengths)), dtype=torch.int32)
    longest, places = max(inputs.query_lengths), spans(inputs.query_lengths)
    tokens, images = tokens_of(inputs), len(places)
    if options_of(inputs)["layout"] == "packed":
        output = layer(*tokens, cu_seqlens=ends, bsz=1, seq_len=len(tokens[0]), softmax_scale=inputs.scale)
        return of_all_rows(inputs, output)
    padded = [one.new_zeros(images * longest, *one.shape[1:]) for one in tokens]
    rows = torch.cat([torch.arange(place.stop - place.start) + longest * image for image, place in enumerate(places)])
    for wide, one in zip(padded, tokens, strict=True):
        wide[rows] = one
    output = layer(*padded, cu_seqlens=ends, bsz=images, seq_len=longest, softmax_scale=inputs.scale)
    return of_all_rows(inputs, output[rows])
