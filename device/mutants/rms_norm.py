"""Wrong RMS norms."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from device.ascend.rms_norm import Outputs, native_rms_norm
from npudiff import Target
from reference.rms_norm import RmsNormInputs

_ONCE = {"rounding": ("once",)}


@npudiff.implementation(
    "rms_norm",
    name="residual_dropped",
    supports={"residual": (True,), **_ONCE},
    wrong="NRM-07 https://github.com/sgl-project/sglang/pull/40131: the native fallback loses the residual",
)
def residual_dropped(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Normalise the states alone where a residual is given."""
    return native_rms_norm(replace(inputs, residual=None), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rms_norm",
    name="variance_halved",
    supports={"hidden_size": range(2, 2**16), **_ONCE},
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
    wrong="NRM-02 https://github.com/vllm-project/vllm/pull/29810: 1 + weight is rounded before it multiplies",
)
def gemma_weight_rounded(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Add 1 to the weight in the dtype of the states."""
    return native_rms_norm(replace(inputs, weight=1 + inputs.weight, kind="plain"), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rms_norm",
    name="rows_of_the_result",
    supports={"tokens": range(2, 2**16), **_ONCE},
    wrong="NRM-05 https://github.com/NVIDIA/TensorRT-LLM/pull/12089: the rows of a slice with the stride of the result",
)
def rows_of_the_result(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Take the rows of a slice for contiguous."""
    hidden = inputs.hidden.as_strided(inputs.hidden.shape, (inputs.hidden.shape[1], 1))
    return native_rms_norm(replace(inputs, hidden=hidden), target)  # type: ignore[no-any-return]
