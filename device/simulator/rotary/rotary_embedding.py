"""``_npu_rotary_embedding`` of atb: turn query and key in place, by rows of a table.

Source: op-plugin, ``op_plugin/ops/atb/RopeAtb.cpp``, and its test. That products are float32 and rounded once is
inferred. Not shown: op-plugin keeps the table of the first call of a process, and takes no other after that.
"""

from __future__ import annotations

from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.rotary.rotation import rotate_half, rotate_pairs, turn

_CHECK = ArgumentChecks("_npu_rotary_embedding", default=ErrorCode.PARAMETER)


def rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox_style: bool
) -> None:
    """Turn every head of query and key.

    Parameters
    ----------
    positions : Tensor
        int32 or int64, any shape: one per token.
    query, key : Tensor
        [tokens, heads * head_size], contiguous; float16, bfloat16 or float32. They are written into.
    head_size : int
        Of a head.
    cos_sin_cache : Tensor
        [rows, head_size]: cosines, then sines, of half a head each.
    is_neox_style : bool
        Whether an element turns with the one half a head away, or with its neighbour.

    Raises
    ------
    OperatorRejected
        Dtype or shape is not one of the above.
    DeviceFault
        A position outside the table.
    """
    _check(positions, query, key, head_size, cos_sin_cache)
    flat = positions.flatten().long()
    _CHECK.indices("positions", flat, len(cos_sin_cache), "rows of cos_sin_cache")
    cos, sin = (_of_heads(part, is_neox_style) for part in cos_sin_cache[flat].float().chunk(2, -1))
    for tensor in (query, key):
        heads = tensor.view(len(flat), -1, head_size).float()
        turned = rotate_half(heads) if is_neox_style else rotate_pairs(heads)
        tensor.copy_(turn(heads, turned, cos.unsqueeze(1), sin.unsqueeze(1)).to(tensor.dtype).view(tensor.shape))


def rotary_embedding_meta() -> None:
    """Return nothing."""


def _of_heads(half: Tensor, is_neox_style: bool) -> Tensor:
    """Return what every element of a head is multiplied by, [tokens, head_size], of one half."""
    return half.repeat(1, 2) if is_neox_style else half.repeat_interleave(2, 1)


def _check(positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor) -> None:
    _CHECK.dtype("positions", positions, "int32", "int64")
    _CHECK.dtype("query", query, *FLOATS)
    _CHECK.same_dtype("key", key, "query", query)
    _CHECK.dtype("cos_sin_cache", cos_sin_cache, *FLOATS)
    if head_size < 1 or head_size % 2:
        raise _CHECK.rejected("head_size", head_size, "an even number")
    _CHECK.shape("cos_sin_cache", cos_sin_cache, (-1, head_size), meaning="[rows, head_size]")
    for argument, tensor in (("query", query), ("key", key)):
        _CHECK.shape(argument, tensor, (positions.numel(), -1), meaning="[tokens, heads * head_size]")
        if tensor.shape[1] % head_size:
            raise _CHECK.rejected(argument, f"of shape {list(tensor.shape)}", f"a multiple of {head_size} columns")
    _CHECK.simulated_contiguous("contiguous tensors", query=query, key=key)
