"""Linear layers of sglang with weights of four bits: AWQ and GPTQ, loaded as their checkpoints have them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.quantization.awq_kernels import AWQAscendLinearKernel
from sglang.srt.hardware_backend.npu.quantization.gptq_kernels import GPTQLinearAscendKernel

from npudiff import Target, implementation
from npudiff.device.backends import NoSuchCheckpoint
from npudiff.device.backends.sglang.world import configured, options_of
from npudiff.model.constraints import Box
from npudiff.reference.weight_quant_matmul import WeightQuantMatmulInputs

INTEGERS_OF_A_WORD = 8

ORDER_OF_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours each four bits of a word hold, the lowest first."""

LARGEST = 15
ZERO = 8
"""Of unsigned integers of four bits: the largest, and the one that is worth nothing without an offset."""

FORMAT = "checkpoint_format"
"""Whether a checkpoint of GPTQ has zero points less 1, as the first version has them."""

_WORDS: Box = {"bits": (4,), "offset": ("none", "whole"), "columns": range(8, 2**16, 8)}
_GROUPS: tuple[Box, ...] = (
    *({**_WORDS, "scale_per": ("groups",), "group_size": (size,), "inner": range(2 * size, 2**16, size)}
      for size in (32, 64, 96, 128, 256)),
    {**_WORDS, "scale_per": ("columns",), "inner": range(8, 2**16, 8), "bias": (False,)},
)  # fmt: skip
"""Groups divide a column, or are all of it, which configurations call -1; AWQ then adds a bias of the model's dtype,
which a case has in float32."""


def words(integers: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Pack unsigned integers ``[rows, columns]`` of four bits along the columns, in an order."""
    packed = torch.zeros_like(integers[:, ::INTEGERS_OF_A_WORD], dtype=torch.int32)
    for place, column in enumerate(order):
        packed |= integers[:, column::INTEGERS_OF_A_WORD].to(torch.int32) << (4 * place)
    return packed


def _zero_points(inputs: WeightQuantMatmulInputs, stored_less: int = 0) -> torch.Tensor:
    """Return what is taken from unsigned integers, ``[groups, columns]``, as a checkpoint has it."""
    zeros = torch.full_like(inputs.scale, ZERO) if inputs.offset is None else ZERO - inputs.offset
    stored = zeros.to(torch.int32).view(-1, inputs.weight.shape[1]) - stored_less
    if bool(((stored < 0) | (stored > LARGEST)).any()):
        raise NoSuchCheckpoint("zero points are integers of four bits")
    return stored


def _layer(**parameters: torch.Tensor) -> Any:  # noqa: ANN401 - a module with any parameters
    layer = torch.nn.Module()
    for name, values in parameters.items():
        layer.register_parameter(name, torch.nn.Parameter(values.contiguous(), requires_grad=False))
    return layer


@implementation("weight_quant_matmul", name="AWQAscendLinearKernel", supports=_GROUPS, on_device=True)
def awq(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """AWQAscendLinearKernel, which has another way for groups that the operator does not take."""
    configured()
    kernel = AWQAscendLinearKernel(SimpleNamespace(pack_factor=INTEGERS_OF_A_WORD))
    weight, zeros = (words(one, ORDER_OF_AWQ) for one in (inputs.weight + ZERO, _zero_points(inputs)))
    layer = _layer(qweight=weight, qzeros=zeros, scales=inputs.scale.view(-1, inputs.weight.shape[1]))
    kernel.process_weights_after_loading(layer)
    answer: torch.Tensor = kernel.apply(layer, inputs.x, inputs.bias)
    return answer


@implementation(
    "weight_quant_matmul",
    name="GPTQLinearAscendKernel",
    supports=_GROUPS,
    options={FORMAT: ("gptq", "gptq_v2")},
    on_device=True,
)
def gptq(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """GPTQLinearAscendKernel, of both versions of the format."""
    configured()
    version = options_of(inputs)[FORMAT]
    kernel = GPTQLinearAscendKernel(
        SimpleNamespace(weight_bits=4, group_size=inputs.group_size or -1, checkpoint_format=version)
    )
    order = tuple(range(INTEGERS_OF_A_WORD))
    zeros = words(_zero_points(inputs, int(version == "gptq")), order)
    layer = _layer(
        qweight=words((inputs.weight + ZERO).t(), order).t(),
        qzeros=zeros,
        scales=inputs.scale.view(-1, inputs.weight.shape[1]),
    )
    kernel.process_weights_after_loading(layer)
    answer: torch.Tensor = kernel.apply(layer, inputs.x, inputs.bias)
    return answer
