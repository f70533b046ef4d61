"""Wrong rotary embeddings."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import mutant, perturbed
from npudiff.device.ascend.rotary import Outputs, native_mrope, native_rotary
from npudiff.device.mutants.kept import keeping
from npudiff.model.implementation import ImplementationFunction
from npudiff.reference.rotary import RotaryInputs

_PLAIN = {"sections": ("none",)}


@perturbed(
    native_rotary,
    "ROP-01 vllm-project/vllm-ascend/issues/12723: sines at the next power of two",
    supports={"dims": ("192", "96/128")},
)
def sine_at_padded_offset(inputs: RotaryInputs) -> RotaryInputs:
    """Read the sines where they would begin if the dim were padded; what lies beyond the row is zero."""
    half = inputs.rotary_dim // 2
    padded = 1 << (inputs.rotary_dim - 1).bit_length()
    wide = torch.nn.functional.pad(inputs.cos_sin_cache, (0, padded))
    table = torch.cat([wide[:, :half], wide[:, padded // 2 : padded // 2 + half]], dim=1)
    return replace(inputs, cos_sin_cache=table)


@perturbed(
    native_rotary,
    "ROP-02 vllm-project/vllm-ascend/issues/12765: the style is ignored",
    supports={"style": ("interleaved",)},
)
def always_halves(inputs: RotaryInputs) -> RotaryInputs:
    """Rotate halves whatever the style is."""
    return replace(inputs, style="half")


@perturbed(
    native_rotary,
    "ROP-04 vllm-project/vllm-ascend/pull/11027: the first half of the frequencies twice",
    supports={"style": ("interleaved",)},
)
def half_of_the_frequencies(inputs: RotaryInputs) -> RotaryInputs:
    """Use every frequency of the lower half for two pairs."""
    cosine, sine = inputs.cos_sin_cache.chunk(2, dim=1)
    index = torch.arange(cosine.shape[1]) // 2
    table = torch.cat([cosine[:, index], sine[:, index]], dim=1)
    return replace(inputs, cos_sin_cache=table)


@perturbed(
    native_rotary,
    "ROP-07 vllm-project/vllm-ascend/pull/2847: the head dim is passed for the rotary dim",
    supports={"dims": ("32/64", "64/128", "96/128")},
)
def head_dim_for_rotary_dim(inputs: RotaryInputs) -> RotaryInputs:
    """Rotate whole heads with a table that is stretched to them."""
    cosine, sine = inputs.cos_sin_cache.chunk(2, dim=1)
    half = inputs.query.shape[2] // 2
    index = torch.arange(half) % cosine.shape[1]
    table = torch.cat([cosine[:, index], sine[:, index]], dim=1)
    return replace(inputs, cos_sin_cache=table)


@perturbed(
    native_rotary,
    "ROP-12 sgl-project/sglang/pull/14423: offsets of positions ignored",
    supports={"tokens": range(2, 2**16)},
)
def positions_without_offset(inputs: RotaryInputs) -> RotaryInputs:
    """Count positions from 0, as for a prompt without a prefix."""
    counted = torch.arange(len(inputs.positions)) % len(inputs.cos_sin_cache)
    return replace(inputs, positions=counted)


@perturbed(
    native_mrope,
    "ROP-16 ikawrakow/ik_llama.cpp/pull/2149: the buffer of positions has room for one kind",
    supports={"sections": ("16/24/24", "24/20/20", "8/12/12", "16/16/16/16")},
)
def first_positions_for_all_sections(inputs: RotaryInputs) -> RotaryInputs:
    """Rotate every section by the positions of the first."""
    first = inputs.positions[:1].expand_as(inputs.positions)
    return replace(inputs, positions=first)


ROWS_OF_A_ROUND = 13_312
"""Rows of all heads that the kernel turns in one round: 1,024 tokens of 13 heads."""


@perturbed(native_rotary, "ROP-13 vllm-project/vllm-ascend/issues/16674: a position is read before it is loaded")
def position_of_the_round_before(inputs: RotaryInputs) -> RotaryInputs:
    """From the second round on, take what the round before left in the buffer of positions."""
    per_round = max(1, ROWS_OF_A_ROUND // (inputs.query.shape[1] + inputs.key.shape[1]))
    token = torch.arange(len(inputs.positions))
    stale = inputs.positions[torch.where(token < per_round, token, token - per_round)]
    return replace(inputs, positions=stale)


@mutant(
    native_rotary,
    "vllm-ascend ops/rotary_embedding.py 96: rows of the table are chosen once, and not for each step",
    stateful=True,
    graph=True,
)
def positions_of_the_capture() -> ImplementationFunction[RotaryInputs, Outputs]:
    """Keep positions that the dummy run had."""
    return keeping(native_rotary, "positions")
