"""``npu_convert_weight_to_int4pack``: eight integers of 4 bits in every word.

Sources: op-plugin's code, which packs on the host, and the wheel's documentation of the operator. The documentation
calls the order interleaved; the code packs one after the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.cache.formats import Format, StorageFormat, format_of, note
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.integers import PER_WORD, packed

_CHECK = ArgumentChecks("npu_convert_weight_to_int4pack", default=ErrorCode.WRAPPER)


def convert_weight_to_int4pack(weight: Tensor) -> Tensor:
    """Pack a weight along its last axis, the first of eight integers into the lowest bits of a word.

    Parameters
    ----------
    weight : Tensor
        int32, [k, n] or [matrices, k, n], contiguous, in ND or FRACTAL_NZ. n is a multiple of 8; only the low 4 bits
        of an element count.

    Returns
    -------
    Tensor
        int32, [k, n / 8], in the format of weight. Of several matrices it is the first.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or format is not one of the above.
    """
    _CHECK.contiguous(weight=weight)
    _CHECK.rank("weight", weight, range(2, 4))
    if weight.dtype != torch.int32:
        raise _CHECK.rejected("weight", dtype_name(weight), "int32; float32 is of Ascend 950")
    if not weight.numel() or weight.shape[-1] % PER_WORD:
        allowed = f"no empty axis, and a last one that is a multiple of {PER_WORD}"
        raise _CHECK.rejected("weight", f"of shape {list(weight.shape)}", allowed)
    storage = format_of(weight)
    if storage not in (Format.ND, Format.NCL, Format.FRACTAL_NZ):
        raise _CHECK.rejected("weight", f"in {storage.name}", "ND, NCL or FRACTAL_NZ")
    words = packed(weight)
    if weight.dim() == 3 and active_profile().int4pack_rank_3 == "first_matrix":
        words = words[0].clone()
    if storage == Format.FRACTAL_NZ:
        note(words, StorageFormat(Format.FRACTAL_NZ, tuple(words.shape), words.dtype))
    return words


def convert_weight_to_int4pack_meta(weight: Tensor) -> Tensor:
    """Allocate the output; torch_npu 2.13.0 has no META for this operator."""
    leading = weight.shape[-2:-1] if active_profile().int4pack_rank_3 == "first_matrix" else weight.shape[:-1]
    return weight.new_empty((*leading, weight.shape[-1] // PER_WORD), dtype=torch.int32)
