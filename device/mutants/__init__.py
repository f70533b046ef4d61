"""Wrong on purpose: implementations that re-create real bugs, each as a small difference from a correct one.

``wrong`` names the bug: its id in our catalogue of real bugs, and the link.
"""

from device.mutants.sliding_attention import (
    decode_block_size_128,
    decode_left_context_512,
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
    "decode_block_size_128",
    "decode_left_context_512",
    "decode_one_key_few",
    "decode_one_key_many",
    "decode_pre_tokens",
    "extend_one_key_few",
    "extend_one_key_many",
    "extend_value_as_key_dim",
    "extend_wrong_pool",
    "mask_left_context_512",
    "mask_minus_one",
    "mask_without_tail",
]
