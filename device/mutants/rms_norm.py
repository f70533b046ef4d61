"""Wrong RMS norms."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from device.ascend.rms_norm import Outputs, add_rms_norm, native_rms_norm
from npudiff import Target
from reference.rms_norm import RmsNormInputs


@npudiff.implementation(
    "rms_norm",
    name="gemma_weight_without_one",
    supports={"kind": ("gemma",)},
    wrong="a Gemma weight used as it is stored",
)
def gemma_weight_without_one(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Normalise with the stored weight of a Gemma norm."""
    return native_rms_norm(replace(inputs, kind="plain"), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rms_norm",
    name="residual_dropped",
    supports={"residual": (True,)},
    wrong="NRM-07 https://github.com/sgl-project/sglang/pull/40131: the native fallback loses the residual",
)
def residual_dropped(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Normalise the states alone where a residual is given."""
    return native_rms_norm(replace(inputs, residual=None), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "rms_norm",
    name="variance_halved",
    supports={"hidden_size": range(2, 2**16)},
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
    name="epsilon_outside_the_root",
    wrong="epsilon added after the square root",
)
def epsilon_outside_the_root(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Divide by the root mean square plus epsilon."""
    right = native_rms_norm(inputs, target)
    wide = right["sum"].float()
    rstd = 1 / (wide.pow(2).mean(dim=-1, keepdim=True).sqrt() + inputs.epsilon)
    return {"output": (right["output"].float() / right["rstd"] * rstd).to(right["output"].dtype), "rstd": rstd}


@npudiff.implementation(
    "rms_norm",
    name="sum_returned_unadded",
    supports={"kind": ("plain",), "residual": (True,)},
    wrong="the next layer's residual is the old one: the sum is computed and not returned",
)
def sum_returned_unadded(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Return the residual as it came in."""
    on_device = inputs.to(target.device)
    return {**add_rms_norm(on_device, on_device.weight), "sum": on_device.residual}  # type: ignore[dict-item]
