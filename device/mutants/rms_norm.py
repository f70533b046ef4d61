"""Wrong RMS norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.rms_norm import Outputs, native_rms_norm
from npudiff.reference.rms_norm import RmsNormInputs

_ONCE = {"rounding": ("once",)}

BUFFER = 192 * 2**10
"""Bytes of a vector core's memory."""

ROWS_AT_ONCE = 16
"""Rows that a kernel has in it, in float32."""


@npudiff.implementation(
    "rms_norm",
    name="residual_dropped",
    supports={"residual": (True,), **_ONCE},
    mutant_of="native_rms_norm",
    wrong="NRM-07 https://github.com/sgl-project/sglang/pull/40131: the native fallback loses the residual",
)
def residual_dropped(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Normalise the states alone where a residual is given."""
    return native_rms_norm(replace(inputs, residual=None), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rms_norm",
    name="variance_halved",
    supports={"hidden_size": range(2, 2**16), **_ONCE},
    mutant_of="native_rms_norm",
    wrong="NRM-04 https://github.com/vllm-project/vllm-ascend/issues/12642: the mean of squares is wrong for one shape",
)
def variance_halved(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Take the mean of squares over the first half of a row, for rows whose size is no power of two."""
    right = native_rms_norm(inputs, target)
    size = inputs.hidden.shape[1]
    if size & (size - 1) == 0:
        return right  # type: ignore[no-any-return]
    on_device = inputs.to(target.device)
    wide = right["sum"].float()
    rstd = torch.rsqrt(wide[:, : size // 2].pow(2).sum(dim=-1, keepdim=True) / size + on_device.epsilon)
    return {"output": (right["output"].float() / right["rstd"] * rstd).to(right["output"].dtype), "rstd": rstd}


@npudiff.implementation(
    "rms_norm",
    name="gemma_weight_rounded",
    supports={"kind": ("gemma",), "dtype": ("bfloat16", "float16"), **_ONCE},
    mutant_of="native_rms_norm",
    wrong="NRM-02 https://github.com/vllm-project/vllm/pull/29810: 1 + weight is rounded before it multiplies",
)
def gemma_weight_rounded(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Add 1 to the weight in the dtype of the states."""
    return native_rms_norm(replace(inputs, weight=1 + inputs.weight, kind="plain"), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rms_norm",
    name="rows_of_the_result",
    supports={"tokens": range(2, 2**16), **_ONCE},
    mutant_of="native_rms_norm",
    wrong="NRM-05 https://github.com/NVIDIA/TensorRT-LLM/pull/12089: the rows of a slice with the stride of the result",
)
def rows_of_the_result(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Take the rows of a slice for contiguous."""
    hidden = inputs.hidden.as_strided(inputs.hidden.shape, (inputs.hidden.shape[1], 1))
    return native_rms_norm(replace(inputs, hidden=hidden), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rms_norm",
    name="rows_beyond_the_buffer",
    supports=_ONCE,
    mutant_of="native_rms_norm",
    wrong="TRI-05 https://github.com/triton-lang/triton-ascend/issues/302: a tile has more bytes than a vector core's "
    "memory",
)
def rows_beyond_the_buffer(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Write the columns for which there is no room over the first ones of the row."""
    right = native_rms_norm(inputs, target)
    room = BUFFER // (ROWS_AT_ONCE * torch.float32.itemsize)
    column = torch.arange(right["output"].shape[1], device=right["output"].device)
    return {**right, "output": right["output"][:, column % room]}


@npudiff.implementation(
    "rms_norm",
    name="rounded_before_the_weight",
    supports={"kind": ("plain",), "dtype": ("bfloat16", "float16"), **_ONCE},
    mutant_of="native_rms_norm",
    wrong="NRM-01 https://github.com/vllm-project/vllm/issues/42325: kernel and model do not agree on whether states "
    "are rounded before the weight multiplies",
)
def rounded_before_the_weight(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Round the normalised states, and then once more their product with the weight."""
    ones = torch.ones_like(inputs.weight)
    normalised = native_rms_norm(replace(inputs, weight=ones), target)
    return {**normalised, "output": normalised["output"] * inputs.weight.to(normalised["output"].device)}


@npudiff.implementation(
    "rms_norm",
    name="replay_before_its_rows",
    supports={"tokens": range(2, 2**16), **_ONCE},
    stateful=True,
    mutant_of="native_rms_norm",
    wrong="GRF-10 https://github.com/vllm-project/vllm-ascend/pull/5965: a replay does not wait for what it reads",
)
def replay_before_its_rows() -> Callable[[RmsNormInputs, Target], Outputs]:
    """Copy rows into a captured buffer, of which the later half arrives when they were read already."""
    buffers: dict[object, torch.Tensor] = {}

    def norm(inputs: RmsNormInputs, target: Target) -> Outputs:
        key = (inputs.hidden.shape, inputs.hidden.dtype)
        hidden = inputs.hidden.clone()
        before, buffers[key] = buffers.get(key, hidden), hidden.clone()
        half = len(hidden) // 2
        hidden[half:] = before[half:]
        return native_rms_norm(replace(inputs, hidden=hidden), target)  # type: ignore[no-any-return]

    return norm
