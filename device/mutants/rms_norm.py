"""Wrong RMS norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.rms_norm import Outputs, native_rms_norm
from npudiff.device.mutants.kept import keeping
from npudiff.model.implementation import ImplementationFunction
from npudiff.reference.rms_norm import RmsNormInputs

BUFFER = 192 * 2**10
"""Bytes of a vector core's memory."""

ROWS_AT_ONCE = 16
"""Rows that a kernel has in it, in float32."""


@perturbed(
    native_rms_norm,
    "NRM-07 sgl-project/sglang/pull/40131: the native fallback loses the residual",
    supports={"residual": (True,)},
)
def residual_dropped(inputs: RmsNormInputs) -> RmsNormInputs:
    """Normalise the states alone where a residual is given."""
    return replace(inputs, residual=None)


@mutant(
    native_rms_norm,
    "NRM-04 vllm-project/vllm-ascend/issues/12642: the mean of squares is wrong for one shape",
    supports={"hidden_size": range(2, 2**16)},
)
def variance_halved(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Take the mean of squares over the first half of a row, for rows whose size is no power of two."""
    right = native_rms_norm(inputs, target)
    size = inputs.hidden.shape[1]
    if size & (size - 1) == 0:
        return right
    wide = right["sum"].float()
    rstd = torch.rsqrt(wide[:, : size // 2].pow(2).sum(dim=-1, keepdim=True) / size + inputs.epsilon)
    return {"output": (right["output"].float() / right["rstd"] * rstd).to(right["output"].dtype), "rstd": rstd}


@perturbed(
    native_rms_norm,
    "NRM-02 vllm-project/vllm/pull/29810: 1 + weight is rounded before it multiplies",
    supports={"kind": ("gemma",), "dtype": ("bfloat16", "float16")},
)
def gemma_weight_rounded(inputs: RmsNormInputs) -> RmsNormInputs:
    """Add 1 to the weight in the dtype of the states."""
    return replace(inputs, weight=1 + inputs.weight, kind="plain")


@perturbed(
    native_rms_norm,
    "NRM-05 NVIDIA/TensorRT-LLM/pull/12089: the rows of a slice with the stride of the result",
    supports={"tokens": range(2, 2**16)},
)
def rows_of_the_result(inputs: RmsNormInputs) -> RmsNormInputs:
    """Take the rows of a slice for contiguous."""
    hidden = inputs.hidden.as_strided(inputs.hidden.shape, (inputs.hidden.shape[1], 1))
    return replace(inputs, hidden=hidden)


@mutant(
    native_rms_norm, "TRI-05 triton-lang/triton-ascend/issues/302: a tile has more bytes than a vector core's memory"
)
def rows_beyond_the_buffer(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Write the columns for which there is no room over the first ones of the row."""
    right = native_rms_norm(inputs, target)
    room = BUFFER // (ROWS_AT_ONCE * torch.float32.itemsize)
    column = torch.arange(right["output"].shape[1], device=right["output"].device)
    return {**right, "output": right["output"][:, column % room]}


@mutant(
    native_rms_norm,
    "NRM-01 vllm-project/vllm/issues/42325: kernel and model do not agree on whether states are rounded before the "
    "weight multiplies",
    supports={"kind": ("plain",), "dtype": ("bfloat16", "float16")},
)
def rounded_before_the_weight(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Round the normalised states, and then once more their product with the weight."""
    ones = torch.ones_like(inputs.weight)
    normalised = native_rms_norm(replace(inputs, weight=ones), target)
    return {**normalised, "output": normalised["output"] * inputs.weight.to(normalised["output"].device)}


@mutant(
    native_rms_norm,
    "GRF-10 vllm-project/vllm-ascend/pull/5965: a replay does not wait for what it reads",
    supports={"tokens": range(2, 2**16)},
    stateful=True,
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
        return native_rms_norm(replace(inputs, hidden=hidden), target)

    return norm


@mutant(
    native_rms_norm,
    "InfiniTensor/InfiniCore/pull/1461: a graph reads the temporary copy that was made of a tensor with gaps",
    stateful=True,
    graph=True,
)
def copy_of_the_capture() -> ImplementationFunction[RmsNormInputs, Outputs]:
    """Make states contiguous once, for the dummy run."""
    return keeping(native_rms_norm, "hidden")
