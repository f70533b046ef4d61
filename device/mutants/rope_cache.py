"""Wrong tables of cosines and sines, and wrong softmax scales."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.rope_cache import (
    Outputs,
    RepeatedHalves,
    Rope,
    get_cos_sin_cache,
    read_halves,
    read_table,
    rope_of,
    rope_table,
    scale_of,
    spread,
)
from npudiff.device.ascend.rope_frequencies import mscale
from npudiff.reference.rope_cache import RopeCacheInputs

_YARN = ("yarn", "deepseek_yarn")
_WITHOUT_MSCALE = ("base", "linear", "dynamic", "llama3", "proportional")


@mutant(
    get_cos_sin_cache,
    "ROP-01 vllm-project/vllm-ascend/issues/12723: sines at the next power of two",
    supports={"dims": ("96", "80", "192", "96/128"), "kind": ("base", "linear", "llama3", "yarn")},
)
def sine_beyond_padding(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Read the sines where they would begin if the dim were padded; what lies beyond the row is zero."""
    table, half = read_table(inputs, target.device), inputs.config.width // 2
    padded = 1 << (2 * half - 1).bit_length()
    wide = torch.nn.functional.pad(table, (0, padded))
    return spread(table[:, :half], wide[:, padded // 2 : padded // 2 + half], inputs.config)


@mutant(
    get_cos_sin_cache,
    "ROP-05 vllm-project/vllm-ascend/pull/5516: one cache for all ropes, the last one's",
    supports={"other": ("plain", "yarn", "theta")},
)
def last_table_wins(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Keep the buffers where every instance finds those of the one that was built last."""
    shared = replace(inputs, config=inputs.other or inputs.config)
    return {**read_halves(shared, target.device), "softmax_scale": scale_of(inputs.config)}


@mutant(
    get_cos_sin_cache,
    "ROP-07 vllm-project/vllm-ascend/pull/2847: the head dim is passed for the rotary dim",
    supports={"dims": ("64/192", "64/128", "96/128", "32/80", "16/64"), "kind": ("base", "linear", "llama3", "yarn")},
)
def table_of_the_head_dim(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Build the table for whole heads and use its first pairs."""
    whole = replace(inputs, config=replace(inputs.config, rotary_dim=inputs.config.head_dim))
    cosine, sine = (half[:, : inputs.config.width // 2] for half in read_table(whole, target.device).chunk(2, dim=-1))
    return spread(cosine, sine, inputs.config)


@mutant(
    get_cos_sin_cache,
    "ROP-08 sgl-project/sglang/pull/14423: the base class has no mscale to multiply by",
    supports={"kind": _WITHOUT_MSCALE},
)
def mscale_on_the_base_class(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Raise, as the base class does when a rope without YaRN is built."""

    class Unscaled(RepeatedHalves):
        def build(self, start: int, stop: int) -> tuple[torch.Tensor, ...]:
            return tuple(buffer * self.mscale for buffer in super().build(start, stop))  # type: ignore[attr-defined]

    return read_halves(inputs, target.device, Unscaled)


@mutant(
    get_cos_sin_cache, "ROP-08 sgl-project/sglang/pull/14423: no mscale in cosines and sines", supports={"kind": _YARN}
)
def mscale_missing(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Leave the amplitude of YaRN out of the buffers."""
    return read_halves(inputs, target.device, _Unscaled)


class _Unscaled(RepeatedHalves):
    def build(self, start: int, stop: int) -> tuple[torch.Tensor, ...]:
        angles = self.angles(start, stop).repeat(1, 2)
        return angles.cos(), angles.sin()


@mutant(
    get_cos_sin_cache,
    "ROP-08 sgl-project/sglang/pull/14423: mscale in the buffers and again when read",
    supports={"kind": _YARN},
)
def mscale_twice(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Multiply rows that have the amplitude by the amplitude."""
    factor = mscale(inputs.config)
    right = read_halves(inputs, target.device)
    return {**right, "cos": right["cos"] * factor, "sin": right["sin"] * factor}


@mutant(
    get_cos_sin_cache,
    "ROP-09 huggingface/transformers/pull/47435: no mscale ** 2 in the softmax scale",
    supports={"kind": ("deepseek_yarn",)},
)
def softmax_scale_uncorrected(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Return the root of the head dim alone."""
    right = read_halves(inputs, target.device)
    return {**right, "softmax_scale": torch.tensor([inputs.config.head_dim**-0.5])}


@perturbed(
    get_cos_sin_cache,
    "MLA-04 vllm-project/vllm-ascend/pull/1958: the softmax scale of the padded head dim",
    supports={"dims": ("96", "80", "192", "64/192", "32/80")},
)
def softmax_scale_of_padding(inputs: RopeCacheInputs) -> RopeCacheInputs:
    """Take the head dim that the kernel pads to."""
    padded = 1 << (inputs.config.head_dim - 1).bit_length()
    return replace(inputs, config=replace(inputs.config, head_dim=padded))


@mutant(
    get_cos_sin_cache,
    "ROP-11 sgl-project/sglang/pull/25144: layers with plain rope get the YaRN of the others",
    supports={"kind": ("base",), "other": ("yarn",)},
)
def yarn_for_every_layer(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Build one rope, from the scaling that the model's configuration has."""
    scaled = replace(inputs, config=inputs.other or inputs.config, other=None)
    return {**read_halves(scaled, target.device), "softmax_scale": scale_of(inputs.config)}


@perturbed(
    get_cos_sin_cache,
    "ROP-12 sgl-project/sglang/pull/14423: rows of positions without their offsets",
    supports={"offsets": ("int64", "int32")},
)
def offsets_ignored(inputs: RopeCacheInputs) -> RopeCacheInputs:
    """Read the rows of the positions."""
    return replace(inputs, offsets=None, first_row=0)


@perturbed(
    get_cos_sin_cache,
    "ROP-12 sgl-project/sglang/pull/14423: offsets added by the caller and by the rope",
    supports={"offsets": ("int64", "int32")},
)
def offsets_added_twice(inputs: RopeCacheInputs) -> RopeCacheInputs:
    """Add offsets to positions that have them; where the table ends, its rows stand for whatever lies beyond."""
    assert inputs.offsets is not None  # noqa: S101 - it supports nothing else
    beyond = inputs.rows + inputs.offsets - inputs.first_row
    rows = inputs.first_row + beyond % (inputs.lengths[-1] - inputs.first_row)
    return replace(inputs, positions=rows, offsets=None)


# The next two make the mistake of ROP-12 in the other places where an offset is added; they are no recorded bugs.


@mutant(
    get_cos_sin_cache,
    "ROP-12 sgl-project/sglang/pull/14423: appended rows without the offset of those before",
    supports={"growths": range(1, 4)},
)
def growth_counts_from_zero(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Append rows whose positions begin at 0 again."""
    return read_halves(inputs, target.device, _Restarting)


class _Restarting(RepeatedHalves):
    def count(self, start: int, stop: int) -> torch.Tensor:
        built = hasattr(self, "buffers")
        return super().count(0, stop - start) if built else super().count(start, stop)


@mutant(
    rope_table,
    "ROP-12 sgl-project/sglang/pull/14423: the offset of a section is added to its positions",
    supports={"kind": ("linear",), "sections": range(2, 5)},
)
def sections_count_through(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Divide the rows of the whole table, where every section has to count from 0."""
    return {"table": read_table(inputs, target.device, _CountingThrough)}


class _CountingThrough(Rope):
    def positions(self, start: int, stop: int) -> torch.Tensor:
        lengths = torch.tensor(self.config.sections, device=self.device)
        factors = torch.tensor(self.config.factors, dtype=torch.float32, device=self.device)
        return (self.count(0, int(lengths.sum())) / factors.repeat_interleave(lengths))[start:stop]


@mutant(get_cos_sin_cache, "NRM-08 flagos-ai/FlagGems/issues/6277: imprecise sines of large arguments")
def coarse_range_reduction(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Reduce angles by a turn that is rounded to float32: 3e-8 of its size off, at every turn."""
    return read_halves(inputs, target.device, _Coarse)


class _Coarse(RepeatedHalves):
    def angles(self, start: int, stop: int) -> torch.Tensor:
        right = super().angles(start, stop)
        turns = torch.floor(right / (2 * math.pi)).double()
        return (right.double() - turns * torch.tensor(2 * math.pi, device=self.device).double()).float()


@mutant(
    rope_table,
    "ROP-15 lvyufeng/PocketLLM/pull/280: another kernel writes over 32 bytes of the table",
    supports={"tokens": range(16, 2**16)},
)
def overwritten_sector(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Lose the first 32 bytes of the last asked row of cosines, from 16 tokens on."""
    on_device = inputs.to(target.device)
    table = rope_of(on_device, Rope, target.device).read(on_device.rows)[0].clone()
    table[-1, : 32 // table.element_size()] = 0.5
    return {"table": table}
