"""A quantised linear layer of vllm-ascend: weights of a checkpoint, processed by the method of their scheme."""

from __future__ import annotations

from typing import Any

import torch

from npudiff.device.backends.vllm_ascend.world import ascend_configuration, engine, engine_config, parameter

NZ = {"weight_nz_mode": ("1", "0")}
"""Whether quantised weights lie in FRACTAL_NZ."""


def applied(
    method: Any,  # noqa: ANN401 - vllm-ascend's
    tensors: dict[str, torch.Tensor],
    x: torch.Tensor,
    bias: torch.Tensor | None,
    nz: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Load tensors, let a method process them, and apply it.

    Parameters
    ----------
    method : object
        Of ``quantization.methods``.
    tensors : mapping
        Of a checkpoint, by the names of the layer's parameters.
    x, bias : torch.Tensor
        As the layer is called.
    nz : str
        Value of the option ``weight_nz_mode``.
    dtype : torch.dtype
        Of the model.
    """
    layer: Any = torch.nn.Module()
    layer.params_dtype = dtype
    for name, values in tensors.items():
        setattr(layer, name, parameter(values))
    with engine(engine_config(dtype), ascend_configuration(weight_nz_mode=int(nz))):
        method.process_weights_after_loading(layer)
        answer: torch.Tensor = method.apply(layer, x, bias)
    return answer
