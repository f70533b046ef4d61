"""Packing of weights of four bits, as sglang and vllm-ascend do it after loading.

Sources: sglang 0.5.23, ``hardware_backend/npu/quantization/moe_methods.py`` (777-781, 919-938, 880-1012); vllm-ascend,
``quantization/methods/w4a16.py`` and ``w4a8.py``.
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.int4_pack import Int4PackInputs


def signed(inputs: Int4PackInputs) -> torch.Tensor:
    """Elements whose low four bits are two's complement: 8 is taken off where offset binary is given."""
    return inputs.values - 8 if inputs.encoding == "offset binary" else inputs.values


@implementation("int4_pack", on_device=True)
def npu_convert_weight_to_int4pack(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """npu_convert_weight_to_int4pack, matrices flattened first: of rank 3 it returns the first alone."""
    values = signed(inputs)
    words: torch.Tensor = torch.ops.npu.npu_convert_weight_to_int4pack(values.flatten(0, -2).contiguous())
    return words.view(*values.shape[:-1], -1)


@implementation("int4_pack", supports={"source": ("integers",)}, on_device=True)
def npu_quantize_quint4x2(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """npu_quantize to quint4x2 with scales of 1: integers as floats, which it would limit if they were larger."""
    values = inputs.values
    flat = values.flatten(0, -2).float().contiguous()
    scales = torch.ones(1, dtype=torch.float32, device=flat.device)
    words: torch.Tensor = torch.ops.npu.npu_quantize(flat, scales, None, torch.quint4x2, -1, False)
    return words.view(*values.shape[:-1], -1)


@implementation("int4_pack", on_device=True)
def bytes_viewed_as_words(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Two to a byte, the even column in the lower half, and four bytes viewed as a word."""
    values = signed(inputs).contiguous()
    return paired(values[..., 0::2], values[..., 1::2])


def paired(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Words of bytes from the integers of their lower and upper halves."""
    return ((high & 15) << 4 | low & 15).to(torch.uint8).view(torch.int32)


@implementation("int4_pack", on_device=True)
def shifted_words(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Composed of shifts, one column of each eight after the other."""
    return shifted(signed(inputs), range(8))


def shifted(values: torch.Tensor, order: range | tuple[int, ...]) -> torch.Tensor:
    """Words from integers, int32 ``[..., 8 * n]``; ``order`` says which of eight comes first, second and so on."""
    words = torch.zeros_like(values[..., 0::8])
    for place, column in enumerate(order):
        words |= (values[..., column::8] & 15) << 4 * place
    return words
