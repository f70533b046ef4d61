"""Products of states with what a rank has loaded of a linear layer, as vllm-ascend and sglang call operators for them.

Sources: vllm-ascend, ``quantization/methods/w8a8_static.py``, ``w8a8_dynamic.py`` and ``w4a8.py``; sglang 0.5.23,
``hardware_backend/npu/quantization/linear_method_npu.py`` and ``layers/quantization/unquant.py``.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from npudiff.device.ascend import packed_weights
from npudiff.device.ascend.quant_matmul import words
from npudiff.reference.sharded_linear import LinearCheckpoint

ROWS, ONE_OUTPUT, COUNTS = 0, 2, 1
"""group_type, split_item and group_list_type of npu_grouped_matmul."""


def product(
    layer: LinearCheckpoint, states: torch.Tensor, bias: torch.Tensor | None, quant_bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply states ``[tokens, inner]`` with what was loaded, in the format of the layer.

    Parameters
    ----------
    layer : LinearCheckpoint
        What a rank has loaded.
    states : torch.Tensor
        ``[tokens, inner]``.
    bias : torch.Tensor or None
        Added to the product.
    quant_bias : torch.Tensor or None
        int32, added to sums of integers where the format has it.
    """
    if layer.format == "float":
        return functional.linear(states, layer.weight, bias)
    if layer.format == "w8a8_static":
        return _static(layer, states, quant_bias)
    if layer.format == "w8a8_dynamic":
        quantised, scale = torch.ops.npu.npu_dynamic_quant(states)
        return _quant_matmul(layer, quantised, given(layer.scale).flatten(), states.dtype, scale.flatten(), bias)
    if layer.format == "w4a16":
        return _weight_only(layer, states, bias)
    result = _int8_by_int4(layer, states)
    return result if bias is None else result + bias


def given(tensor: torch.Tensor | None) -> torch.Tensor:
    """Return a tensor that the format of a layer has."""
    if tensor is None:
        raise ValueError("the checkpoint has no tensor that its format needs")
    return tensor


def quantised_by_offset(layer: LinearCheckpoint, states: torch.Tensor) -> torch.Tensor:
    """Quantise states by the scale of the checkpoint: what multiplies is its reciprocal, one for each element."""
    expanded = given(layer.input_scale).repeat(states.shape[1])
    offset = given(layer.input_offset).repeat(states.shape[1]).to(states.dtype)
    integers: torch.Tensor = torch.ops.npu.npu_quantize(states, 1 / expanded, offset, torch.qint8, -1, False)
    return integers


def _static(layer: LinearCheckpoint, states: torch.Tensor, quant_bias: torch.Tensor | None) -> torch.Tensor:
    return _quant_matmul(
        layer, quantised_by_offset(layer, states), given(layer.deq_scale), states.dtype, None, quant_bias
    )


def _quant_matmul(
    layer: LinearCheckpoint,
    quantised: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
    token_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    weight = layer.weight.transpose(0, 1).contiguous()
    result: torch.Tensor = torch.ops.npu.npu_quant_matmul(
        quantised, weight, scale, pertoken_scale=token_scale, bias=bias, output_dtype=dtype
    )
    return result


def _weight_only(layer: LinearCheckpoint, states: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    scale = given(layer.scale).transpose(0, 1).contiguous()
    if bias is not None and bias.dtype == torch.bfloat16:
        bias = bias.float()  # what the operator takes beside states of bfloat16
    result: torch.Tensor = torch.ops.npu.npu_weight_quant_batchmatmul(
        states,
        words(layer.weight.transpose(0, 1)),
        scale if layer.group_size else scale[0],
        bias=bias,
        antiquant_group_size=layer.group_size,
    )
    return result


def _int8_by_int4(layer: LinearCheckpoint, states: torch.Tensor) -> torch.Tensor:
    """One group of all rows; the parts of ``scale_bias`` that a rank has are added up."""
    quantised, token_scale = torch.ops.npu.npu_dynamic_quant(states)
    outputs = torch.ops.npu.npu_grouped_matmul(
        [quantised],
        [packed_weights.words(layer.weight.transpose(0, 1).contiguous().unsqueeze(0))],
        scale=[packed_weights.bits_of(given(layer.scale).transpose(0, 1).unsqueeze(0))],
        bias=[given(layer.scale_bias).transpose(0, 1).contiguous().sum(dim=0).unsqueeze(0)],
        per_token_scale=[token_scale.flatten()],
        group_list=torch.tensor([len(states)], device=states.device),
        split_item=ONE_OUTPUT,
        group_type=ROWS,
        group_list_type=COUNTS,
        output_dtype=states.dtype,
    )
    return outputs[0]  # type: ignore[no-any-return]
