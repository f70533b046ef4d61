"""Scales as the hardware takes them: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_experts
from npudiff.properties._shared.rows import COUNTS
from npudiff.reference.scale_pack import CUT_BITS, FORMS, MARKER, ROUND_MODES, ScalePackInputs, scale_pack
from npudiff.text import counted

RECIPES = ("usual", "19 bits", "near half", "subnormal", "large", "negative", "all ones", "zero")
"""usual: 2**-14 to 2**-3. 19 bits: the same, with nothing in the bits that are cut. near half: the bits that are cut
are a half, or one less or more. large: up to 2**125. negative: of both signs. all ones: a carry reaches the exponent.
zero: some are zero."""
OFFSETS = ("none", "each", "one", "many for one scale")
"""each: as many as there are scales. one: for all of them."""
LAYOUTS = ("contiguous", "transposed")
"""transposed: a view of tensors ``[experts, columns, groups]``, as a checkpoint has them."""

_EXPONENTS = {"subnormal": (0, 1), "large": (200, 255), "all ones": (110, 130)}

_SOME_OFFSETS = (-1.5, 0.5, 1.5, 2.5, -0.5, -3.0, 127.4, -128.0, 255.5, 300.0, -256.5, -300.0, 0.0, 7.0, -0.75)
"""Halves of both kinds, and what nine bits do not hold; one after the other."""

_RULES: tuple[Box, ...] = (
    {"experts": (0,), "groups": (1,), "layout": ("contiguous",), "form": ("bits",), "round_mode": (0,),
     "offset": ("none",)},
    {"experts": range(1, 1025), "form": ("bits",), "round_mode": (0,), "offset": ("none",)},
    {"experts": (0,), "groups": (1,), "layout": ("contiguous",), "form": ("fixpipe",)},
    {"experts": range(1, 1025), "form": ("fixpipe",), "offset": OFFSETS[:3]},
)  # fmt: skip
"""What goes together: groups and layouts where there are experts, offsets and modes where there is room for them."""


def _shape(case: ScalePackCase) -> str:
    if not case.experts:
        return counted(case.columns, "scale")
    return f"{counted(case.experts, 'expert')} x {counted(case.groups, 'group')} x {case.columns}"


@dataclass(frozen=True)
class ScalePackCase(Case):
    """One call, as sizes and recipes."""

    columns: int = axis(
        "columns of the weight, which have a scale each", COUNTS,
        drawn=lambda case: (1, 2, 7, 16, 33) if case.far else (1, 2, 7, 16, 33, 256, 1030), shown=_shape,
    )  # fmt: skip
    groups: int = axis(
        "groups of rows of the weight, which have scales each",
        range(1, 257),
        1,
        drawn=lambda case: (1, 2) if case.huge else (1, 2, 3, 5),
        shown="",
    )
    experts: int = axis(
        "experts; 0 is a tensor of one axis",
        range(1025),
        0,
        drawn=lambda case: (0, 1) if case.huge else (0, 1, 2, 8, 17),
        shown="",
        region="experts",
    )
    form: str = axis(
        "plain bits of the float32, or what npu_trans_quant_param returns", FORMS, "bits", always=True,
        region=lambda case: case.form,
    )  # fmt: skip
    round_mode: int = axis(
        "bits are cut off, or rounded to the nearest", ROUND_MODES, 0, shown="rounded", region="rounded"
    )
    offset: str = axis("offsets beside the scales", OFFSETS, "none", shown="offset {}", region="offset")
    recipe: str = axis("how the scales are made", RECIPES, "usual", region="{}")
    layout: str = axis("how the scales lie in memory", LAYOUTS, "contiguous")
    seed: int = seed()

    drawn_first = ("experts",)
    outliers = ("experts", "groups", "columns")
    huge_axes = ("columns",)
    rules = Constraints(_RULES)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if max(self.experts, 1) * self.groups * self.columns > 2**24:
            yield f"there would be more than {2**24} scales"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {"transposed": self.layout == "transposed" and self.groups > 1 and self.columns > 1}


def build_inputs(case: ScalePackCase) -> ScalePackInputs:
    """Build the inputs of a case."""
    shape = (case.experts, case.groups, case.columns) if case.experts else (case.columns,)
    scale = _scales(case, int(np.prod(shape))).reshape(shape)
    if case.layout == "transposed":
        scale = scale.transpose(1, 2).contiguous().transpose(1, 2)
    offset = None
    if case.offset != "none":
        picked = (torch.arange(scale.numel()) + case.seed) % len(_SOME_OFFSETS)
        offset = torch.tensor(_SOME_OFFSETS)[picked].reshape(shape)
        offset = offset.flatten()[:1] if case.offset == "one" else offset
        scale = scale[:1] if case.offset == "many for one scale" else scale
    return ScalePackInputs(scale, offset, case.form, case.round_mode)


def _scales(case: ScalePackCase, count: int) -> torch.Tensor:
    """Finite float32 numbers, made of sign, exponent and fraction; none is a half where halves may go either way."""
    stream = Stream(case.seed, "scale")
    low, high = _EXPONENTS.get(case.recipe, (113, 124))
    exponents = torch.tensor(stream.integers(low, high, count))
    words = torch.from_numpy((stream.random_uint64(count) >> 24).astype("int64"))
    fractions = words % 2**23 | 1
    fractions[0] |= 2 ** (CUT_BITS - 1)  # the first of any case is one that rounding makes larger
    if case.recipe == "19 bits":
        fractions -= fractions % 2**CUT_BITS
    if case.recipe == "near half":
        fractions += (words >> 25) % 3 - 1 + 2 ** (CUT_BITS - 1) - fractions % 2**CUT_BITS
    if case.recipe == "all ones":
        fractions |= 2**23 - 2**CUT_BITS
    if case.round_mode == 1:
        fractions += fractions % 2**CUT_BITS == 2 ** (CUT_BITS - 1)
    bits = exponents * 2**23 + fractions
    if case.recipe == "negative":
        bits -= 2**31 * (words >> 30 & 1 | (torch.arange(count) == 0))
    if case.recipe == "zero":
        bits[::2] = 0
        bits[::4] = -(2**31)  # -0.0
    return bits.to(torch.int32).view(torch.float32)


def coordinates(inputs: ScalePackInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the words: expert, group and column."""
    del output  # there is one
    shape = inputs.scale.shape
    if inputs.offset is not None and inputs.offset.numel() > inputs.scale.numel():
        shape = inputs.offset.shape
    names = ("expert", "group", "column")[-len(shape) :]
    return dict(zip(names, torch.meshgrid(*map(torch.arange, shape), indexing="ij"), strict=True))


def _scales_can_be_read(subject: Subject, case: ScalePackCase) -> Comparison:
    """The low half of a word, as the bits of a float32, is the scale but for what was cut off or rounded."""
    inputs = build_inputs(case)
    low = subject.run(inputs)["packed"].bitwise_and(2**32 - 1)
    bits = inputs.scale.view(torch.int32).to(torch.int64).bitwise_and(2**32 - 1).expand(low.shape)
    step = 2**CUT_BITS if case.form == "fixpipe" else 1
    off = (step - 1) / 2 if case.round_mode == 0 else step / 2
    middle = bits.to(torch.float64) - (off if case.round_mode == 0 else 0)
    right = {"packed": Derived(middle, torch.full_like(middle, off), torch.int64)}
    return compare(right, {"packed": low}, "scale before and after")


def _offset_leaves_the_scale(subject: Subject, case: ScalePackCase) -> Comparison:
    subject.require(replace(case, offset="none"), "without an offset")
    inputs = build_inputs(case)
    kept = MARKER | 2**37 - 1
    after = subject.run(inputs)["packed"].bitwise_and(kept)
    before = subject.run(replace(inputs, offset=None))["packed"].bitwise_and(kept).expand(after.shape)
    right = {"packed": Derived(before, torch.zeros(before.shape, dtype=torch.float64), torch.int64)}
    return compare(right, {"packed": after}, "scale and marker, with and without an offset")


def _sizes(model: Model) -> Box:
    return {"columns": (2 * model.width, model.hidden), "experts": (0, 8), "groups": (1,)}


component = Component(
    name="scale_pack",
    summary="float32 scales as the hardware takes them, their bits in words of 64",
    case_type=ScalePackCase,
    outputs=("packed",),
    inputs=build_inputs,
    reference=scale_pack,
    coordinates=coordinates,
    highlighted_region="offset",
    relations=(
        Property("scales_can_be_read", "the low half of a word is the scale, but for what has no room",
                 _scales_can_be_read),
        Property("offset_leaves_the_scale", "an offset changes no bit of the scale", _offset_leaves_the_scale,
                 within={"form": ("fixpipe",), "offset": ("each", "one", "many for one scale")},
                 needs={"offset": ("none",)}),
    ),
    profiles=of_experts(_sizes),
    baselines=BASELINES["scale_pack"],
)  # fmt: skip
