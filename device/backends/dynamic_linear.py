"""Linear layers that quantise their states row by row, on the integers of a case: states that become just these."""

from __future__ import annotations

from collections.abc import Callable

import torch

from npudiff.reference.quant_matmul import RANGES, QuantMatmulInputs

UNIT = 64
"""Inner sizes are filled up to a multiple of it, as those of models are."""

Layer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""What a method makes of an int8 weight ``[inner, columns]``, its scales ``[columns]`` and states."""


def of_rows(inputs: QuantMatmulInputs, dtype: torch.dtype, layer: Layer) -> torch.Tensor:
    """Return what a layer makes of the integers of a case, ``[tokens, columns]``.

    Each row has the largest integer in a column without weight, so that its scale is a power of two, and is multiplied
    by one; what comes out is divided by it. The smallest integer, which no such layer makes, is split in two. A scale
    of a token is given to the weight, in a call of its own.

    Parameters
    ----------
    inputs : QuantMatmulInputs
        On the device; one scale per column.
    dtype : torch.dtype
        Of the states.
    layer : callable
        The method with its weights.
    """
    states, weight = _exact(inputs)
    tokens = torch.arange(len(states), device=states.device)
    power = torch.ones_like(tokens, dtype=torch.float32) if inputs.bias is not None else 2.0 ** (tokens % 4 - 1)
    states = (states * power.unsqueeze(1)).to(dtype)

    def scaled(scale: torch.Tensor) -> torch.Tensor:
        answer = layer(weight, scale, states)
        return (answer.float() / power.unsqueeze(1)).to(answer.dtype)

    if inputs.token_scale is None:
        return scaled(inputs.scale)
    rows = [scaled(inputs.scale * one)[token] for token, one in enumerate(inputs.token_scale)]
    return torch.stack(rows)


def _exact(inputs: QuantMatmulInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states, float32 ``[tokens, inner]``, and a weight, int8 ``[inner, columns]``, with the same products."""
    most = RANGES[inputs.bits][1]
    first = inputs.x.clamp(min=-most)
    rest = inputs.x - first
    largest = torch.full_like(inputs.x[:, :1], most)
    states = torch.cat([first, rest, largest], dim=1)
    weight = torch.cat([inputs.weight, inputs.weight])
    inner = -(-states.shape[1] // UNIT) * UNIT
    states = torch.nn.functional.pad(states, (0, inner - states.shape[1]))
    return states.float(), torch.nn.functional.pad(weight, (0, 0, 0, inner - len(weight)))
