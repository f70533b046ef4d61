"""Float32 scales as the hardware takes them: their bits in a word of 64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected
from npudiff.reference.views import moved_inputs

FORMS = ("bits", "fixpipe")
"""bits: those of the float32 in the low half, nothing above (products of W4A8). fixpipe: the upper 19 bits of the
float32, a marker above them, and an offset (products of int8 that are scaled as they are written)."""

CUT_BITS = 13
"""Bits of a float32 that the fixpipe form does not have room for."""

MARKER = 2**46

OFFSET_PLACE = 2**37

OFFSET_RANGE = (-256, 255)
"""Of an integer of nine bits."""

ROUND_MODES = (0, 1)
"""0: bits are cut off. 1: rounded to the nearest."""


@dataclass(frozen=True)
class ScalePackInputs:
    """Scales to pack."""

    scale: torch.Tensor
    """float32 of any shape; it may be a view."""
    offset: torch.Tensor | None
    """float32 that broadcasts with ``scale``: what is added after scaling, in the fixpipe form only."""
    form: str
    """One of ``FORMS``."""
    round_mode: int = 0
    """One of ``ROUND_MODES``; 0 in the form of plain bits, which has room for all."""

    def to(self, device: str | torch.device) -> ScalePackInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def scale_pack(inputs: ScalePackInputs) -> dict[str, Expected]:
    """Return the words that carry the scales.

    ``bits``: the bit pattern of the float32, as an unsigned number. ``fixpipe``: the same without its lower 13 bits,
    plus ``2**46``, plus the offset, rounded to an integer (halves to even) and limited to nine bits, at bit 37.
    Sources: ``npu_trans_quant_param`` of torch_npu, its tests, and the W4A8 weights of sglang and vllm-ascend.

    Returns
    -------
    dict
        ``packed``: int64, of the shape to which scale and offset broadcast. All bits are asked for, but for halves in
        ``round_mode`` 1: no source says to which side they go, so both are right (and what lies between, as a bound
        says no more).

    Raises
    ------
    ValueError
        If a scale is not a finite float32, the form or mode is not known, or plain bits come with an offset or a mode.
    """
    _validate(inputs)
    bits = _bits(inputs.scale)
    if inputs.form == "bits":
        return {"packed": _expected(bits, torch.zeros_like(bits))}
    step = 2**CUT_BITS
    below = bits - bits % step
    rest = bits % step
    free = torch.zeros_like(bits)
    if inputs.round_mode == 1:
        half = rest == step // 2
        below = torch.where(rest > step // 2, below + step, torch.where(half, bits, below))
        free = torch.where(half, step // 2, 0)
    offset = torch.zeros_like(inputs.scale) if inputs.offset is None else inputs.offset
    integer = offset.to(torch.float64).round().clamp(*OFFSET_RANGE).to(torch.int64) % 2**9
    packed = below + MARKER + integer * OFFSET_PLACE
    return {"packed": _expected(packed, free.expand(packed.shape))}


def _bits(scale: torch.Tensor) -> torch.Tensor:
    """The bit patterns of float32 numbers as unsigned ones, int64."""
    signed = scale.view(torch.int32).to(torch.int64)
    return torch.where(signed < 0, signed + 2**32, signed)


def cut_to_19_bits(scale: torch.Tensor) -> torch.Tensor:
    """Return the float32 scales that the fixpipe form keeps in ``round_mode`` 0, float32."""
    bits = scale.contiguous().view(torch.int32).bitwise_and(-(2**CUT_BITS))
    return bits.view(torch.float32)


def _expected(packed: torch.Tensor, free: torch.Tensor) -> Expected:
    return Expected(packed, free.to(torch.float64), torch.int64)


def _validate(inputs: ScalePackInputs) -> None:
    if inputs.form not in FORMS or inputs.round_mode not in ROUND_MODES:
        raise ValueError(f"no form {inputs.form} or round_mode {inputs.round_mode}")
    if inputs.scale.dtype != torch.float32 or not bool(inputs.scale.isfinite().all()):
        raise ValueError(f"scales must be finite float32, got {inputs.scale.dtype}")
    if inputs.form == "bits" and (inputs.offset is not None or inputs.round_mode != 0):
        raise ValueError("plain bits have no room for an offset, and no need to round")
    if inputs.offset is not None and inputs.offset.dtype != torch.float32:
        raise ValueError(f"offsets must be float32, got {inputs.offset.dtype}")
