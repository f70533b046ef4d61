"""Adapters: one call path each, with the operators and arguments that a production backend uses.

Every adapter is an implementation of its own, and runs unchanged on every target.
"""

from device.ascend.sliding_attention import (
    fia_decode_mask,
    fia_decode_tnd,
    fia_extend_bsnd,
    fia_extend_tnd,
    fia_v1_decode_bsh,
    fia_v1_extend_tnd,
    fia_verify_tnd,
    torch_native,
)
from device.ascend.swa_mask import swa_mask_eager, swa_mask_graph

__all__ = [
    "fia_decode_mask",
    "fia_decode_tnd",
    "fia_extend_bsnd",
    "fia_extend_tnd",
    "fia_v1_decode_bsh",
    "fia_v1_extend_tnd",
    "fia_verify_tnd",
    "swa_mask_eager",
    "swa_mask_graph",
    "torch_native",
]
