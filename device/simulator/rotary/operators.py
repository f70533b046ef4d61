"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.rotary import schemas
from npudiff.device.simulator.rotary.apply_rotary_pos_emb import apply_rotary_pos_emb, apply_rotary_pos_emb_meta
from npudiff.device.simulator.rotary.interleave_rope import interleave_rope, interleave_rope_meta
from npudiff.device.simulator.rotary.mrope import mrope, mrope_meta
from npudiff.device.simulator.rotary.rotary_embedding import rotary_embedding, rotary_embedding_meta
from npudiff.device.simulator.rotary.rotary_mul import rotary_mul, rotary_mul_meta
from npudiff.device.simulator.rotary.rotary_mul_backward import rotary_mul_backward, rotary_mul_backward_meta

OPERATORS = (
    Operator(schemas.ROTARY_MUL, rotary_mul, rotary_mul_meta),
    Operator(schemas.ROTARY_MUL_BACKWARD, rotary_mul_backward, rotary_mul_backward_meta),
    Operator(schemas.INTERLEAVE_ROPE, interleave_rope, interleave_rope_meta),
    Operator(schemas.MROPE, mrope, mrope_meta),
    Operator(schemas.APPLY_ROTARY_POS_EMB, apply_rotary_pos_emb, apply_rotary_pos_emb_meta),
    Operator(schemas.ROTARY_EMBEDDING, rotary_embedding, rotary_embedding_meta),
)
"""Every operator of the family."""
