"""Adapters: one call path each, with the operators and arguments that a production backend uses.

Every adapter is an implementation of its own, and runs unchanged on every target.
"""

from device.ascend.page_allocation import alloc_decode, alloc_extend
from device.ascend.paged_cache import (
    index_put,
    reshape_and_cache,
    scatter_nd_update,
    scatter_nz_rows,
    scatter_pa_norm,
    scatter_pa_nz,
)
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
    "alloc_decode",
    "alloc_extend",
    "fia_decode_mask",
    "fia_decode_tnd",
    "fia_extend_bsnd",
    "fia_extend_tnd",
    "fia_v1_decode_bsh",
    "fia_v1_extend_tnd",
    "fia_verify_tnd",
    "index_put",
    "reshape_and_cache",
    "scatter_nd_update",
    "scatter_nz_rows",
    "scatter_pa_norm",
    "scatter_pa_nz",
    "swa_mask_eager",
    "swa_mask_graph",
    "torch_native",
]
