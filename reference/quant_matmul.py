"""Products of integers, summed exactly, and scaled to floats or to integers again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected, exactly
from npudiff.reference.dynamic_quant import nearest
from npudiff.reference.inexact import Inexact
from npudiff.reference.scale_pack import cut_to_19_bits
from npudiff.reference.views import moved_inputs

OUTPUTS = (torch.bfloat16, torch.float16, torch.int8, torch.int32)

RANGES = {8: (-128, 127), 4: (-8, 7)}
"""Smallest and largest integer of as many bits."""


@dataclass(frozen=True)
class QuantMatmulInputs:
    """Quantised states and a quantised weight, and what turns their product into an output."""

    x: torch.Tensor
    """int8 ``[tokens, inner]``; its rows may be slices of wider ones. Integers of four bits stand one in each
    element."""
    weight: torch.Tensor
    """int8 ``[inner, columns]``; it may be a transposed view."""
    scale: torch.Tensor
    """float32 or bfloat16 ``[columns]`` or ``[1]``."""
    token_scale: torch.Tensor | None
    """float32 ``[tokens]``."""
    offset: torch.Tensor | None
    """float32 ``[columns]`` or ``[1]``, whole numbers; with int8 output only."""
    bias: torch.Tensor | None
    """``[columns]``: int32 is added to the sums, floats of any dtype after scaling."""
    output_dtype: torch.dtype
    """One of ``OUTPUTS``."""
    bits: int = 8
    """8 or 4: of the integers of ``x`` and ``weight``."""

    @property
    def scale_is_cut(self) -> bool:
        """Whether the hardware scales sums as it writes them, by the upper 19 bits of a float32."""
        written = self.output_dtype in (torch.float16, torch.int8)
        return written and self.token_scale is None and self.scale.dtype == torch.float32

    def to(self, device: str | torch.device) -> QuantMatmulInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def quant_matmul(inputs: QuantMatmulInputs) -> dict[str, Expected]:
    """Return ``(x @ weight + bias) * scale * token_scale``, or with a float bias that is added at the end.

    Sums are exact: they are those of int32. int8 output is the nearest integer of the scaled sum and the offset,
    limited to -128..127. int32 output is the sums themselves, without any scale: the documentation of torch_npu has
    one formula for all outputs, while vllm-ascend has the scale applied by the operator after this one. Where the
    output is float16 or int8 and there is no scale per token, the scale is the one of 19 bits that the hardware keeps
    (``reference.scale_pack``); the wrapper of ``npu_quant_matmul`` cuts it without being asked. Source: documentation
    and tests of that operator; for the formula Dettmers et al., "LLM.int8()", 2022, eq. 3.

    Returns
    -------
    dict
        ``output``: ``[tokens, columns]`` of ``output_dtype``.

    Raises
    ------
    ValueError
        If shapes or dtypes contradict each other, integers have more bits than they should, an offset is no whole
        number or comes with another output than int8, or a sum does not fit int32.

    Notes
    -----
    A correct device rounds the sum to float32, each product with a scale, and the sum with a float bias or an offset;
    then to the output. An int8 may differ where the scaled sum lies that close to the middle between two.
    """
    _validate(inputs)
    sums = _sums(inputs)
    if inputs.output_dtype == torch.int32:
        return {"output": exactly(sums.to(torch.int32))}
    scale = cut_to_19_bits(inputs.scale) if inputs.scale_is_cut else inputs.scale
    scaled = Inexact.exact(sums).in_float32().times(Inexact.exact(scale)).in_float32()
    if inputs.token_scale is not None:
        scaled = scaled.times(Inexact.exact(inputs.token_scale.unsqueeze(1))).in_float32()
    if inputs.output_dtype == torch.int8:
        least, most = RANGES[8]
        return {"output": nearest(scaled if inputs.offset is None else _plus(scaled, inputs.offset), most, least)}
    if inputs.bias is not None and inputs.bias.is_floating_point():
        scaled = _plus(scaled, inputs.bias)
    result = scaled.stored(inputs.output_dtype)
    return {"output": Expected(result.value, result.error, inputs.output_dtype)}


def _sums(inputs: QuantMatmulInputs) -> torch.Tensor:
    """Products and int32 bias, float64 of whole numbers: none of the partial sums reaches 2**53."""
    sums = inputs.x.to(torch.float64) @ inputs.weight.to(torch.float64)
    if inputs.bias is not None and inputs.bias.dtype == torch.int32:
        sums = sums + inputs.bias
    if sums.numel() and float(sums.abs().max()) >= 2**31:
        raise ValueError("sums must fit int32")
    return sums


def _plus(scaled: Inexact, addend: torch.Tensor) -> Inexact:
    return scaled.plus(Inexact.exact(addend)).in_float32()


def _validate(inputs: QuantMatmulInputs) -> None:
    tokens, inner = inputs.x.shape
    columns = inputs.weight.shape[1]
    if inputs.output_dtype not in OUTPUTS or inputs.bits not in RANGES:
        raise ValueError(f"no output {inputs.output_dtype} or integers of {inputs.bits} bits")
    if len(inputs.weight) != inner:
        raise ValueError(f"weight must have {inner} rows, got {len(inputs.weight)}")
    for name in ("x", "weight"):
        given, (low, high) = getattr(inputs, name), RANGES[inputs.bits]
        if given.dtype != torch.int8 or bool(((given < low) | (given > high)).any()):
            raise ValueError(f"{name} must hold integers of {inputs.bits} bits in int8")
    lengths = {"scale": (1, columns), "offset": (1, columns), "bias": (columns,), "token_scale": (tokens,)}
    for name, allowed in lengths.items():
        given = getattr(inputs, name)
        if given is not None and (given.dim() != 1 or len(given) not in allowed):
            raise ValueError(f"{name} must have length {' or '.join(map(str, allowed))}, got {list(given.shape)}")
    offset = inputs.offset
    if offset is not None and (inputs.output_dtype != torch.int8 or not bool((offset == offset.round()).all())):
        raise ValueError("an offset is a whole number, and goes with int8 output")
    floats = (torch.bfloat16, torch.float16)
    if inputs.bias is not None and inputs.bias.is_floating_point() and inputs.output_dtype not in floats:
        raise ValueError(f"a float bias goes with float output, got {inputs.output_dtype}")
