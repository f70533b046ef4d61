"""Rotation of rows with errors."""

from __future__ import annotations

import torch

from npudiff.reference.bounds import underflow_step
from npudiff.reference.decoder_layer.inputs import DecoderLayerInputs
from npudiff.reference.rotary import joined, pairs, rotated
from npudiff.reference.spread import Spread, rounding_scale


def turned(rows: Spread, inputs: DecoderLayerInputs, style: str) -> Spread:
    """Rotate the first ``rotary_dim`` elements of ``[tokens, heads, dim]`` by the angles of the tokens' positions.

    A device may round both products and their sum. What a row has in common passes a rotation as it is.
    """
    dim, dtype = inputs.cos_sin_cache.shape[1], inputs.hidden.dtype
    angles = inputs.cos_sin_cache[inputs.positions].to(torch.float64).unsqueeze(1)
    cosine, sine = angles.chunk(2, dim=-1)
    states = rows.value[..., :dim]
    result = rotated(states, torch.zeros_like(states), cosine, sine, style, dtype).value
    rounding = rounding_scale(dtype)
    squares = pairs(rows.independent[..., :dim].square() + (rounding * states).square(), interleaved=style != "half")
    brought = joined(
        squares[0] * cosine.square() + squares[1] * sine.square(),
        squares[1] * cosine.square() + squares[0] * sine.square(),
        interleaved=style == "interleaved",
    )
    independent = (brought + (rounding * result).square()).sqrt() + underflow_step(dtype)
    value = torch.cat([result, rows.value[..., dim:]], dim=-1)
    return Spread(value, torch.cat([independent, rows.independent[..., dim:]], dim=-1), rows.common)
