"""The data of a case: checkpoints, states, and what stands beside them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.properties.tensor_parallel.case import DTYPES, PADDINGS, TensorParallelCase
from npudiff.reference.sharded_linear import BIAS_CHUNKS, LinearCheckpoint
from npudiff.reference.tensor_parallel import TensorParallelInputs

STEP = 2.0**-3
"""What an integer of the states is worth: a power of two, whose reciprocal every dtype holds."""

SPREAD = {8: 24.0, 4: 2.5}
MEAN = {8: 9.0, 4: 0.4}
"""Integers of a weight; they do not add up to 0, so that an offset of the states shows in every sum."""

CANCELLING = 16.0
"""How large sums of parts are."""


def build_inputs(case: TensorParallelCase) -> TensorParallelInputs:
    """Build the inputs of all ranks."""
    by_inner = case.layer in ("row", "row_norm_column")
    dtype, both = DTYPES[case.dtype], case.layer in ("column_row", "row_norm_column")
    columns, inner = (case.hidden, case.divided) if by_inner else (sum(case.widths), case.hidden)
    has_norm = case.layer == "row_norm_column"
    return TensorParallelInputs(
        layer=case.layer,
        form=case.form,
        ranks=case.ranks,
        states=_states(case, inner, divided=by_inner),
        first=_layer(case, "first", columns, inner, divided=by_inner),
        second=_second(case) if both else None,
        gated=case.layer == "column_row" and case.projections == "gate_up",
        residual=case.normal("residual", case.tokens, case.hidden, dtype=dtype) if has_norm else None,
        norm_weight=(1 + case.normal("norm", case.hidden) / 4).to(dtype) if has_norm else None,
        padding=PADDINGS[case.padding],
    )


def _second(case: TensorParallelCase) -> LinearCheckpoint:
    if case.layer == "column_row":
        return _layer(case, "second", case.hidden, case.divided, divided=True)
    return _layer(case, "second", sum(case.widths), case.hidden, divided=False)


def _states(case: TensorParallelCase, inner: int, *, divided: bool) -> torch.Tensor:
    states = case.normal("states", case.tokens, inner)
    if case.recipe == "cancelling" and divided:
        states[:, inner - inner // 2 :] = states[:, : inner // 2]
    if case.recipe == "zero rows":
        states[1 if case.tokens > 1 else 0 :: 2] = 0
    if case.recipe == "one rank" and divided:
        states[:, case.width :] = 0
    states = states.to(DTYPES[case.dtype])
    if case.format == "w8a8_static":  # devices differ in where halves go: none of these is one
        steps = states.float() / STEP
        states = torch.where((steps - steps.floor()) == 0.5, steps.floor() * STEP, states.float()).to(states.dtype)
    return states


def _layer(case: TensorParallelCase, name: str, columns: int, inner: int, *, divided: bool) -> LinearCheckpoint:
    """One layer. Its output is about normal, or its sums over parts of the inner axis are ``CANCELLING`` times that."""
    dtype, cancels = DTYPES[case.dtype], case.recipe == "cancelling" and divided
    bits = {"float": 16, "w4a8": 4, "w4a16": 4}.get(case.format, 8)
    numbers = case.normal(f"{name} weight", columns, inner)
    if bits < 16:
        numbers = (numbers * SPREAD[bits] + MEAN[bits]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if cancels:
        numbers[:, inner - inner // 2 :] = -numbers[:, : inner // 2].clamp(min=1 - 2 ** (bits - 1))
    size = (CANCELLING if cancels else 1.0) / math.sqrt(inner) / SPREAD.get(bits, 1.0)
    bias = case.normal(f"{name} bias", columns) * 2 if case.biased else None
    projections, copies = ((columns,), (1,)) if divided else (case.widths, case.copies)
    layer = LinearCheckpoint(numbers, projections, copies, case.format, _of(bias, dtype), group_size=case.group_size)
    if case.format == "float":
        return replace(layer, weight=(numbers * size).to(dtype))
    layer = replace(layer, weight=numbers.to(torch.int8))
    groups = -(-inner // case.group_size) if case.group_size else 1
    words = Stream(case.seed, f"{name} scale").integer_array(0, 2**16, columns * groups)
    scale = (0.5 + torch.from_numpy(words).view(columns, groups).float() / 2**16) * size
    if case.format == "w8a8_static":
        return _static(case, replace(layer, bias=None), scale, bias)
    if case.format == "w4a16":
        return replace(layer, scale=scale.to(dtype))
    if case.scale_dtype == "states":
        scale = scale.to(dtype).float()
    chunks = _chunks(layer.weight, scale, BIAS_CHUNKS if divided else 1) if case.format == "w4a8" else None
    return replace(layer, scale=scale, scale_bias=chunks)


def _of(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.to(dtype)


def _static(
    case: TensorParallelCase, layer: LinearCheckpoint, scale: torch.Tensor, bias: torch.Tensor | None
) -> LinearCheckpoint:
    """What a checkpoint of static W8A8 has besides: scales of float16 models are cut to 19 bits there."""
    deq_scale = scale[:, 0] * STEP
    if case.dtype == "float16":
        deq_scale = (deq_scale.view(torch.int32) & -(2**13)).view(torch.float32)
    quant_bias = -case.offset * layer.weight.to(torch.int64).sum(dim=1)
    if bias is not None:
        quant_bias = quant_bias + (bias.double() / deq_scale.double()).round().to(torch.int64)
    return replace(
        layer,
        scale=scale,
        input_scale=torch.tensor([STEP], dtype=DTYPES[case.dtype]),
        input_offset=torch.tensor([case.offset], dtype=torch.int8),
        quant_bias=quant_bias.to(torch.int32),
        deq_scale=deq_scale,
    )


def _chunks(weight: torch.Tensor, scale: torch.Tensor, parts: int) -> torch.Tensor:
    """``8 * sum(weight * scale)`` over as many equal parts of the inner axis, float32 ``[columns, parts]``."""
    each = scale.double().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    return (8 * (weight.double() * each).view(len(weight), parts, -1).sum(dim=2)).float()
