"""Wrong rotary embeddings."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.rotary import Outputs, native_mrope, native_rotary
from npudiff.reference.rotary import RotaryInputs

_PLAIN = {"sections": ("none",)}


@npudiff.implementation(
    "rotary",
    name="sine_at_padded_offset",
    supports={"dims": ("192", "96/128"), **_PLAIN},
    mutant_of="native_rotary",
    wrong="ROP-01 https://github.com/vllm-project/vllm-ascend/issues/12723: sines at the next power of two",
)
def sine_at_padded_offset(inputs: RotaryInputs, target: Target) -> Outputs:
    """Read the sines where they would begin if the dim were padded; what lies beyond the row is zero."""
    half = inputs.rotary_dim // 2
    padded = 1 << (inputs.rotary_dim - 1).bit_length()
    wide = torch.nn.functional.pad(inputs.cos_sin_cache, (0, padded))
    table = torch.cat([wide[:, :half], wide[:, padded // 2 : padded // 2 + half]], dim=1)
    return native_rotary(replace(inputs, cos_sin_cache=table), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rotary",
    name="always_halves",
    supports={"style": ("interleaved",), **_PLAIN},
    mutant_of="native_rotary",
    wrong="ROP-02 https://github.com/vllm-project/vllm-ascend/issues/12765: the style is ignored",
)
def always_halves(inputs: RotaryInputs, target: Target) -> Outputs:
    """Rotate halves whatever the style is."""
    return native_rotary(replace(inputs, style="half"), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rotary",
    name="half_of_the_frequencies",
    supports={"style": ("interleaved",), **_PLAIN},
    mutant_of="native_rotary",
    wrong="ROP-04 https://github.com/vllm-project/vllm-ascend/pull/11027: the first half of the frequencies twice",
)
def half_of_the_frequencies(inputs: RotaryInputs, target: Target) -> Outputs:
    """Use every frequency of the lower half for two pairs."""
    cosine, sine = inputs.cos_sin_cache.chunk(2, dim=1)
    index = torch.arange(cosine.shape[1]) // 2
    table = torch.cat([cosine[:, index], sine[:, index]], dim=1)
    return native_rotary(replace(inputs, cos_sin_cache=table), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rotary",
    name="head_dim_for_rotary_dim",
    supports={"dims": ("32/64", "64/128", "96/128"), **_PLAIN},
    mutant_of="native_rotary",
    wrong="ROP-07 https://github.com/vllm-project/vllm-ascend/pull/2847: the head dim is passed for the rotary dim",
)
def head_dim_for_rotary_dim(inputs: RotaryInputs, target: Target) -> Outputs:
    """Rotate whole heads with a table that is stretched to them."""
    cosine, sine = inputs.cos_sin_cache.chunk(2, dim=1)
    half = inputs.query.shape[2] // 2
    index = torch.arange(half) % cosine.shape[1]
    table = torch.cat([cosine[:, index], sine[:, index]], dim=1)
    return native_rotary(replace(inputs, cos_sin_cache=table), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rotary",
    name="positions_without_offset",
    supports={"tokens": range(2, 2**16), **_PLAIN},
    mutant_of="native_rotary",
    wrong="ROP-12 https://github.com/sgl-project/sglang/pull/14423: offsets of positions ignored",
)
def positions_without_offset(inputs: RotaryInputs, target: Target) -> Outputs:
    """Count positions from 0, as for a prompt without a prefix."""
    counted = torch.arange(len(inputs.positions)) % len(inputs.cos_sin_cache)
    return native_rotary(replace(inputs, positions=counted), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rotary",
    name="first_positions_for_all_sections",
    supports={"sections": ("16/24/24", "24/20/20", "8/12/12", "16/16/16/16")},
    mutant_of="native_mrope",
    wrong="ROP-16 https://github.com/ikawrakow/ik_llama.cpp/pull/2149: the buffer of positions has room for one kind",
)
def first_positions_for_all_sections(inputs: RotaryInputs, target: Target) -> Outputs:
    """Rotate every section by the positions of the first."""
    first = inputs.positions[:1].expand_as(inputs.positions)
    return native_mrope(replace(inputs, positions=first), target)  # type: ignore[no-any-return]


ROWS_OF_A_ROUND = 13_312
"""Rows of all heads that the kernel turns in one round: 1,024 tokens of 13 heads."""


@npudiff.implementation(
    "rotary",
    name="position_of_the_round_before",
    supports=_PLAIN,
    mutant_of="native_rotary",
    wrong="ROP-13 https://github.com/vllm-project/vllm-ascend/issues/16674: a position is read before it is loaded",
)
def position_of_the_round_before(inputs: RotaryInputs, target: Target) -> Outputs:
    """From the second round on, take what the round before left in the buffer of positions."""
    per_round = max(1, ROWS_OF_A_ROUND // (inputs.query.shape[1] + inputs.key.shape[1]))
    token = torch.arange(len(inputs.positions))
    stale = inputs.positions[torch.where(token < per_round, token, token - per_round)]
    return native_rotary(replace(inputs, positions=stale), target)  # type: ignore[no-any-return]
