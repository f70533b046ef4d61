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
from device.mutants.mla_preprocess import (
    nd_mode_on_nz_caches,
    pages_of_16_whatever_they_are,
    rope_rows_not_reordered,
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
from device.mutants.rope_cache import (
    coarse_range_reduction,
    growth_counts_from_zero,
    last_table_wins,
    mscale_missing,
    mscale_on_the_base_class,
    mscale_twice,
    offsets_added_twice,
    offsets_ignored,
    overwritten_sector,
    sections_count_through,
    sine_beyond_padding,
    softmax_scale_of_padding,
    softmax_scale_uncorrected,
    table_of_the_head_dim,
    yarn_for_every_layer,
)
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
    "coarse_range_reduction",
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
    "growth_counts_from_zero",
    "half_of_the_frequencies",
    "head_dim_for_rotary_dim",
    "last_table_wins",
    "latent_with_the_stride_of_its_output",
    "mask_left_context_512",
    "mask_minus_one",
    "mask_without_tail",
    "mscale_missing",
    "mscale_on_the_base_class",
    "mscale_twice",
    "nd_mode_on_nz_caches",
    "nz_cache_written_as_nd",
    "nz_pool_written_as_nd",
    "nz_rows_of_key_dim",
    "offsets_added_twice",
    "offsets_ignored",
    "outputs_that_were_not_asked_for",
    "overwritten_sector",
    "pages_of_16_whatever_they_are",
    "positions_without_offset",
    "residual_dropped",
    "rope_key_read_as_halves",
    "rope_rows_not_reordered",
    "sections_count_through",
    "sine_at_padded_offset",
    "sine_beyond_padding",
    "slots_int64_as_int32",
    "slots_truncated",
    "softmax_scale_of_padding",
    "softmax_scale_uncorrected",
    "table_of_the_head_dim",
    "variance_halved",
    "yarn_for_every_layer",
]
