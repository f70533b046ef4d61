"""Wrong on purpose: implementations that re-create real bugs, each as a small difference from a correct one.

``wrong`` names the bug: its id in our catalogue of real bugs, and the link.
"""

from device.mutants.kv_rmsnorm_rope_cache import (
    cache_mode_is_a_tuple,
    latent_with_the_stride_of_its_output,
    nz_cache_written_as_nd,
    outputs_that_were_not_asked_for,
    rope_key_read_as_halves,
)
from device.mutants.page_allocation import (
    decode_last_slot_shared,
    decode_new_page_late,
    extend_crosses_page,
    extend_skips_partial_page,
)
from device.mutants.paged_cache import (
    cache_mode_default_on_nd,
    nz_pool_written_as_nd,
    nz_rows_of_key_dim,
    slots_int64_as_int32,
    slots_truncated,
)
from device.mutants.rms_norm import residual_dropped, variance_halved
from device.mutants.rotary import (
    always_halves,
    half_of_the_frequencies,
    head_dim_for_rotary_dim,
    positions_without_offset,
    sine_at_padded_offset,
)
from device.mutants.sliding_attention import (
    decode_block_size_128,
    decode_left_context_512,
    decode_nz_pages_as_nd,
    decode_one_key_few,
    decode_one_key_many,
    decode_pre_tokens,
    extend_one_key_few,
    extend_one_key_many,
    extend_value_as_key_dim,
    extend_wrong_pool,
)
from device.mutants.swa_mask import mask_left_context_512, mask_minus_one, mask_without_tail

__all__ = [
    "always_halves",
    "cache_mode_default_on_nd",
    "cache_mode_is_a_tuple",
    "decode_block_size_128",
    "decode_last_slot_shared",
    "decode_left_context_512",
    "decode_new_page_late",
    "decode_nz_pages_as_nd",
    "decode_one_key_few",
    "decode_one_key_many",
    "decode_pre_tokens",
    "extend_crosses_page",
    "extend_one_key_few",
    "extend_one_key_many",
    "extend_skips_partial_page",
    "extend_value_as_key_dim",
    "extend_wrong_pool",
    "half_of_the_frequencies",
    "head_dim_for_rotary_dim",
    "latent_with_the_stride_of_its_output",
    "mask_left_context_512",
    "mask_minus_one",
    "mask_without_tail",
    "nz_cache_written_as_nd",
    "nz_pool_written_as_nd",
    "nz_rows_of_key_dim",
    "outputs_that_were_not_asked_for",
    "positions_without_offset",
    "residual_dropped",
    "rope_key_read_as_halves",
    "sine_at_padded_offset",
    "slots_int64_as_int32",
    "slots_truncated",
    "variance_halved",
]
