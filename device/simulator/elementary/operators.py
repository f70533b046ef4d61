"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.elementary import activations, arrangement, products, schemas
from npudiff.device.simulator.library import Operator

_IN_ORDER = ("input",)
"""What is moved, in whatever format it is."""

OPERATORS = (
    Operator(schemas.GELU, activations.gelu, activations.like),
    Operator(schemas.GELU_BACKWARD, activations.gelu_backward, activations.broadcast_like),
    Operator(schemas.GELU_MUL, activations.gelu_mul, activations.half_like),
    Operator(schemas.SILU, activations.silu, activations.like),
    Operator(schemas.SILU_IN_PLACE, activations.silu_in_place, activations.itself),
    Operator(schemas.SILU_BACKWARD, activations.silu_backward, activations.like),
    Operator(schemas.MISH, activations.mish, activations.like),
    Operator(schemas.MISH_BACKWARD, activations.mish_backward, activations.like),
    Operator(schemas.BROADCAST, arrangement.broadcast, arrangement.broadcast_meta, _IN_ORDER),
    Operator(schemas.RESHAPE, arrangement.reshape, arrangement.reshape_meta),
    Operator(schemas.TRANSPOSE, arrangement.transpose, arrangement.transpose_meta, _IN_ORDER),
    Operator(
        schemas.CONFUSION_TRANSPOSE, arrangement.confusion_transpose, arrangement.confusion_transpose_meta, _IN_ORDER
    ),
    Operator(
        schemas.CONFUSION_TRANSPOSE_BACKWARD,
        arrangement.confusion_transpose_backward,
        arrangement.confusion_transpose_backward_meta,
        ("grad",),
    ),
    Operator(schemas.SLICE, arrangement.slice_of, arrangement.slice_meta, _IN_ORDER),
    Operator(schemas.INDEXING, arrangement.indexing, arrangement.indexing_meta, _IN_ORDER),
    Operator(schemas.PAD, arrangement.pad, arrangement.pad_meta, _IN_ORDER),
    Operator(schemas.ONE_HOT, arrangement.one_hot, arrangement.one_hot_meta),
    Operator(schemas.SORT, arrangement.sort, activations.like, _IN_ORDER),
    Operator(schemas.MAX, arrangement.maximum, arrangement.reduced_meta, _IN_ORDER),
    Operator(schemas.MIN, arrangement.minimum, arrangement.reduced_meta, _IN_ORDER),
    Operator(schemas.MAX_BACKWARD, arrangement.reduced_backward, arrangement.reduced_backward_meta),
    Operator(schemas.MIN_BACKWARD, arrangement.reduced_backward, arrangement.reduced_backward_meta),
    Operator(schemas.SIGN_BITS_PACK, arrangement.sign_bits_pack, arrangement.sign_bits_pack_meta),
    Operator(schemas.SIGN_BITS_UNPACK, arrangement.sign_bits_unpack, arrangement.sign_bits_unpack_meta),
    Operator(schemas.LINEAR, products.linear, products.linear_meta, ("input", "weight")),
    Operator(schemas.LINEAR_BACKWARD, products.linear_backward, products.linear_backward_meta, ("input", "weight")),
    Operator(schemas.BMM, products.batch_product, products.batch_product_meta, ("input", "mat2")),
    Operator(schemas.BMM_BACKWARD_OF_FIRST, products.gradient_of_first, products.gradient_meta, ("mat1", "mat2")),
    Operator(schemas.BMM_BACKWARD_OF_SECOND, products.gradient_of_second, products.gradient_meta, ("mat1", "mat2")),
    Operator(schemas.LAYER_NORM_EVAL, products.layer_norm_eval, products.layer_norm_eval_meta),
    Operator(schemas.BATCH_NORM_REDUCE, products.batch_norm_reduce, products.batch_norm_reduce_meta),
    Operator(schemas.ONES_IN_PLACE, arrangement.ones_in_place, activations.itself),
    Operator(schemas.CROSS_ENTROPY, products.cross_entropy, products.cross_entropy_meta),
)
"""Every operator of the family."""
