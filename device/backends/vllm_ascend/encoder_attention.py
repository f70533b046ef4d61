"""Attention of vllm-ascend's vision towers: ``AscendMMEncoderAttention.forward_oot``."""

from __future__ import annotations

import itertools

import torch
from vllm_ascend.ops.mm_encoder_attention import MAX_PAD_SIZE, MIN_PAD_SIZE, AscendMMEncoderAttention

from npudiff import Target, implementation
from npudiff.device.ascend.encoder_attention import of_all_rows, tokens_of
from npudiff.device.backends.vllm_ascend.world import ascend_configuration, engine, engine_config, options_of
from npudiff.model.constraints import Box
from npudiff.reference.encoder_attention import EncoderAttentionInputs

Outputs = dict[str, torch.Tensor]

LAYOUT = {"layout": ("heads apart", "heads together")}
"""heads apart: tensors of four axes. heads together: of three, as most models give them."""

_HERE: Box = {
    "dtype": ("bfloat16",), "head_dim": range(MIN_PAD_SIZE, MAX_PAD_SIZE + 1), "cross": (False,),
    "query_length": range(1, 2**17 + 1), "kv_length": range(1, 2**17 + 1), "rows": ("contiguous",), "padded_rows": (0,),
}  # fmt: skip
"""Heads of other dims are given to the operator as they are, which no vision model has."""


@implementation(
    "encoder_attention", name="AscendMMEncoderAttention.forward_oot", supports=_HERE, options=LAYOUT, on_device=True
)
def attended(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """Images of a batch, one after the other, in one call."""
    heads, dim = inputs.query.shape[1:]
    with engine(engine_config(inputs.query.dtype), ascend_configuration()):
        layer = AscendMMEncoderAttention(heads, dim, inputs.scale, inputs.key.shape[1])
    ends = torch.tensor((0, *itertools.accumulate(inputs.query_lengths)), dtype=torch.int32)
    tokens = [one[None] for one in tokens_of(inputs)]
    if options_of(inputs)["layout"] == "heads together":
        tokens = [one.flatten(2) for one in tokens]
    output = layer.forward_oot(*tokens, cu_seqlens=ends)
    return of_all_rows(inputs, output.reshape(-1, heads, dim))
