"""Wrong RMS norms."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from device.ascend.rms_norm import Outputs, native_rms_norm
from npudiff import Target
from reference.rms_norm import RmsNormInputs


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
