"""A linear layer as a checkpoint has it, the part of it that a rank holds, and sums over ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import FLOAT32_ROUNDOFF, accumulation_error, underflow_step, unit_roundoff
from npudiff.reference.dynamic_quant import as_terms
from npudiff.reference.expert_weights import ExpertProduct, ExpertRows, ExpertWeights, times
from npudiff.reference.inexact import Inexact
from npudiff.reference.linear import carried
from npudiff.reference.weight_quant_matmul import dequantised_product

FORMATS = ("float", "w8a8_static", "w8a8_dynamic", "w4a8", "w4a16")
"""float: no integers. w8a8_static: states become int8 by a scale and an offset of the checkpoint. w8a8_dynamic: by the
largest element of a row. w4a8: the same, with a weight of int4. w4a16: states stay floats, and int4 become floats."""

BIAS_CHUNKS = 16
"""Columns of ``scale_bias`` of a layer whose inner axis is divided: sums over as many equal parts of that axis, so that
ranks add up those of their own part."""

TWO_VALUED = math.sqrt(3)
"""By how much the deviation of an error that is one of two values, as far from their middle as its bound, is larger
than that of a rounding, which is anywhere within it. A sum of such errors needs as much more room for the same
certainty (``reference.linear.carried``)."""

ROW_BITS = 8
LEAST, MOST = -128, 127
"""Of the integers that states become."""


@dataclass(frozen=True)
class LinearCheckpoint:
    """One linear layer, whole, as a checkpoint has it; projections that read the same states stand in one matrix."""

    weight: torch.Tensor
    """``[columns, inner]``: a float dtype, or int8; integers of four bits stand one in each element."""
    projections: tuple[int, ...]
    """Columns of each projection (gate and up; queries, keys and values), one after the other."""
    copies: tuple[int, ...]
    """Ranks in a row that hold the same columns of a projection, which has fewer heads than there are ranks; else 1."""
    format: str = "float"
    """One of ``FORMATS``."""
    bias: torch.Tensor | None = None
    """``[columns]`` of the dtype of the states; a layer with ``quant_bias`` has it in there."""
    scale: torch.Tensor | None = None
    """``[columns, groups]``: what an integer of the weight is worth. float32; ``w4a16`` has the dtype of the states."""
    group_size: int = 0
    """Elements along ``inner`` that share a scale, the last of them perhaps fewer; 0 for one scale per column."""
    input_scale: torch.Tensor | None = None
    """``[1]`` of the dtype of the states, a power of two: what an integer of the states is worth (static)."""
    input_offset: torch.Tensor | None = None
    """int8 ``[1]``: the integer that 0 becomes (static)."""
    quant_bias: torch.Tensor | None = None
    """int32 ``[columns]``: bias and ``-offset * sum(weight)`` over all of ``inner``, added to sums of integers."""
    deq_scale: torch.Tensor | None = None
    """float32 ``[columns]``, ``input_scale * scale`` (static); of float16 models the lower 13 bits are zero."""
    scale_bias: torch.Tensor | None = None
    """float32 ``[columns, 1]``, or ``[columns, BIAS_CHUNKS]`` where ``inner`` is divided: ``8 * sum(weight * scale)``,
    which makes up for the offset of the lower halves of int8 (``w4a8``)."""

    @property
    def inner(self) -> int:
        """Elements of a sum."""
        return self.weight.shape[1]


def own_columns(layer: LinearCheckpoint, rank: int, ranks: int) -> torch.Tensor:
    """Return the columns that a rank computes: its part of each projection, one after the other, int64.

    A projection is divided by itself (Shoeybi et al., "Megatron-LM", 2019, section 3); one with fewer heads than ranks
    is held several times.
    """
    found, start = [], 0
    for width, copies in zip(layer.projections, layer.copies, strict=True):
        size = width * copies // ranks
        first = start + rank // copies * size
        found.append(torch.arange(first, first + size))
        start += width
    return torch.cat(found)


def own_inner(layer: LinearCheckpoint, rank: int, ranks: int) -> slice:
    """Return the part of the inner axis that a rank sums over.

    All are as long as each other. Where groups with a scale each do not allow that, each rank has whole groups, the
    first ranks one more than others, and the last rank has the last group, which may be shorter.
    """
    if layer.inner % (ranks * max(layer.group_size, 1)) == 0:
        size = layer.inner // ranks
        return slice(rank * size, (rank + 1) * size)
    size = layer.group_size
    each, more = divmod(-(-layer.inner // size), ranks)
    ends = [min(layer.inner, size * (each * place + min(place, more))) for place in (rank, rank + 1)]
    return slice(*ends)


def of_columns(rows: Inexact, layer: LinearCheckpoint, rank: int, ranks: int, dtype: torch.dtype) -> ExpertProduct:
    """Return what a rank has of a layer whose columns are divided, bias included, as a device has it in a dtype."""
    columns = own_columns(layer, rank, ranks)
    everything = slice(0, layer.inner)
    product = _product(rows, layer, columns, everything, dtype, has_quant_bias=True)
    return added([product], None if layer.bias is None else layer.bias[columns], dtype)


def of_inner(rows: Sequence[Inexact], layer: LinearCheckpoint, dtype: torch.dtype) -> ExpertProduct:
    """Return the sum of what all ranks have of a layer whose inner axis is divided, with its bias once.

    Each rank quantises what it has of a row by itself. ``rows`` holds ``[tokens, part of inner]`` of each rank.
    """
    columns = torch.arange(len(layer.weight))
    parts = [
        _product(own, layer, columns, own_inner(layer, rank, len(rows)), dtype, has_quant_bias=rank == 0)
        for rank, own in enumerate(rows)
    ]
    return added(parts, layer.bias, dtype)


def added(parts: Sequence[ExpertProduct], bias: torch.Tensor | None, dtype: torch.dtype) -> ExpertProduct:
    """Return the sum of products that ranks have in a dtype, and of a bias, in any order.

    Notes
    -----
    The bias may be added to any product before it is rounded, or to the sum. Every number between is a sum of some
    of the addends: it is no larger than that of the positive ones or of the negative ones, is rounded to the dtype,
    and is infinite where the dtype ends. A device that adds in float32 and rounds once is within. What the errors of
    rows became on different ranks has nothing to do with each other: the inner axis is divided.
    """
    values = torch.stack([part.value for part in parts])
    own = torch.stack([part.representable(dtype).independent for part in parts]).sum(dim=0)
    brought = torch.stack([part.brought for part in parts]).square().sum(dim=0).sqrt().nan_to_num(nan=torch.inf)
    if bias is not None:
        values = torch.cat([values, bias.to(torch.float64).expand_as(values[:1])])
    total, additions = values.sum(dim=0), len(values) - 1
    if not additions:
        return ExpertProduct(total, own, brought)
    rounding, step = unit_roundoff(dtype) + 2 * FLOAT32_ROUNDOFF, underflow_step(dtype)
    largest = torch.maximum(values.clamp(min=0).sum(dim=0), (-values).clamp(min=0).sum(dim=0)) + own + brought
    largest = largest * (1 + 2 * additions * rounding)
    between = (additions - 1) * (largest * rounding + step)
    last = (total.abs() + own + brought + between) * rounding + step
    own = torch.where(largest <= torch.finfo(dtype).max, own + between + last, torch.inf)
    return ExpertProduct(total, own, brought)


def static_terms(rows: Inexact, scale: float, offset: int) -> Inexact:
    """Return the integers that rows become by a scale and an offset, as terms of a sum.

    ``clamp(round(x / scale + offset))`` (Jacob et al., "Quantization and training of neural networks", 2018, eq. 1).
    An integer is what it must be, or the middle of those that it may be and off by a half. A number that is not known
    so well, inside the range, is itself, off by what it is off and by half a step. Devices differ in where halves go.
    """
    steps = rows.times(1 / scale).plus(float(offset)).in_float32(2)
    low, high = ((steps.value + sign * steps.error).round().clamp(LEAST, MOST) for sign in (-1.0, 1.0))
    middle, half = (low + high) / 2, (high - low) / 2
    rounded = torch.hypot(steps.error, torch.full((), 0.5, dtype=torch.float64))
    inside = (steps.value - steps.error > LEAST) & (steps.value + steps.error < MOST)
    loose = inside & (rounded < half)
    return Inexact(torch.where(loose, steps.value, middle), torch.where(loose, rounded, half))


def _product(
    rows: Inexact,
    layer: LinearCheckpoint,
    columns: torch.Tensor,
    inner: slice,
    dtype: torch.dtype,
    *,
    has_quant_bias: bool,
) -> ExpertProduct:
    """Rows ``[tokens, part of inner]`` times a part of the weight, without a float bias."""
    values = layer.weight[columns][:, inner].t()
    if layer.format == "w4a16":
        return _floats_by_int4(rows, values, _worth(layer, columns, inner), dtype)
    stacked = values.unsqueeze(0)
    if layer.format == "float":
        return times(ExpertRows(rows), ExpertWeights(stacked), 0, dtype)
    if layer.format == "w8a8_static":
        terms = _open(static_terms(rows, _number(layer.input_scale), int(_number(layer.input_offset))))
        bias = _given(layer.quant_bias)[columns].unsqueeze(0) if has_quant_bias else None
        weights = ExpertWeights(stacked, 8, _given(layer.deq_scale)[columns].view(1, 1, -1), bias=bias)
        return times(ExpertRows(terms, None, quantised=True), weights, 0, dtype)
    terms, size = as_terms(rows, ROW_BITS)
    terms = _open(terms)
    bits = 8 if layer.format == "w8a8_dynamic" else 4
    scale = _given(layer.scale)[columns]
    if layer.group_size:
        scale = scale[:, inner.start // layer.group_size : inner.stop // layer.group_size]
    product = times(
        ExpertRows(terms, size, quantised=True), ExpertWeights(stacked, bits, scale.t().unsqueeze(0)), 0, dtype
    )
    return product if bits == 8 else _with_chunks(product, values, scale, size)


def _open(terms: Inexact) -> Inexact:
    """Terms of a sum with room for those that are open: the middle of two integers, of which a device has one."""
    is_open = (terms.error > 0) & (2 * terms.error == (2 * terms.error).round())
    return Inexact(terms.value, torch.where(is_open, terms.error * TWO_VALUED, terms.error))


def _with_chunks(product: ExpertProduct, values: torch.Tensor, scale: torch.Tensor, size: Inexact) -> ExpertProduct:
    """Add what summing ``scale_bias`` over the parts of the inner axis, in float32, makes."""
    each = scale.t().to(torch.float64).repeat_interleave(len(values) // scale.shape[1], dim=0)
    sums = 8 * (values.abs() * each).sum(dim=0)
    error = (size.value + size.error).unsqueeze(1) * sums * accumulation_error(BIAS_CHUNKS)
    return ExpertProduct(product.value, product.independent + error, product.brought)


def _floats_by_int4(rows: Inexact, values: torch.Tensor, worth: torch.Tensor, dtype: torch.dtype) -> ExpertProduct:
    matrix = values.to(torch.float64)
    total = dequantised_product(rows.value, matrix, worth, dtype).stored(dtype)
    return ExpertProduct(total.value, total.error, carried(rows.error, matrix * worth))


def _worth(layer: LinearCheckpoint, columns: torch.Tensor, inner: slice) -> torch.Tensor:
    """What each integer of a part of the weight is worth, float64 ``[part of inner, columns]``."""
    scale = _given(layer.scale).to(torch.float64)[columns]
    place = torch.arange(inner.start, inner.stop)
    group = place // layer.group_size if layer.group_size else torch.zeros_like(place)
    return scale[:, group].t()


def _given(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ValueError("a tensor of the format is missing in the checkpoint")
    return tensor


def _number(tensor: torch.Tensor | None) -> float:
    return float(_given(tensor))


_NEEDS = {
    "float": (),
    "w8a8_static": ("input_scale", "input_offset", "quant_bias", "deq_scale"),
    "w8a8_dynamic": ("scale",),
    "w4a8": ("scale", "scale_bias"),
    "w4a16": ("scale",),
}


def check_layer(layer: LinearCheckpoint, ranks: int, divided: str) -> None:
    """Refuse a layer that contradicts itself, or cannot be divided.

    Parameters
    ----------
    layer : LinearCheckpoint
        To check.
    ranks : int
        Among whom it is divided.
    divided : str
        ``columns`` or ``inner``.

    Raises
    ------
    ValueError
        If the format is not known, one of its tensors is missing, a scale of the states is no power of two, shapes
        contradict each other, or ranks would have unequal parts of columns.
    """
    columns, inner = layer.weight.shape
    missing = [name for name in _NEEDS.get(layer.format, ()) if getattr(layer, name) is None]
    if layer.format not in FORMATS or missing:
        raise ValueError(f"format {layer.format} is not known, or there is no {' and no '.join(missing)}")
    if layer.input_scale is not None and torch.frexp(layer.input_scale.double()).mantissa.item() != 0.5:
        raise ValueError(f"input_scale must be a power of two, got {float(layer.input_scale)}")
    if sum(layer.projections) != columns or len(layer.copies) != len(layer.projections):
        raise ValueError(f"projections {layer.projections} must have {columns} columns, and copies {layer.copies} each")
    chunks = BIAS_CHUNKS if divided == "inner" else 1
    groups = -(-inner // layer.group_size) if layer.group_size else 1
    shapes = {"bias": (columns,), "scale": (columns, groups), "input_scale": (1,), "input_offset": (1,),
              "quant_bias": (columns,), "deq_scale": (columns,), "scale_bias": (columns, chunks)}  # fmt: skip
    for name, shape in shapes.items():
        given = getattr(layer, name)
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(given.shape)}")
    for width, copies in zip(layer.projections, layer.copies, strict=True):
        if divided == "columns" and (ranks % copies or width * copies % ranks):
            raise ValueError(f"{ranks} ranks cannot have equal parts of {width} columns, {copies} of them the same")
    if divided == "inner" and inner % ranks and not layer.group_size:
        raise ValueError(f"{ranks} ranks cannot have equal parts of an inner axis of {inner}")
