"""What all of ATB's attention operators ask of their arguments.

Sources: op-plugin, ``AtbCommon.cpp`` (WRAPPER: inputs with gaps are copied, outputs with gaps refused);
ATB, ``paged_attention_operation.cpp`` and ``self_attention_operation.cpp``,
and the checks of the kernels' tiling below them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from npudiff.device.simulator.errors import DeviceFault, ErrorCode
from npudiff.device.simulator.fused_attention.paging import PagedTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from npudiff.device.simulator.argument_checks import ArgumentChecks

DTYPES = ("float16", "bfloat16")


def key_heads(check: ArgumentChecks, heads: int, kv_heads: int) -> int:
    """Return the number of key heads, which 0 leaves to that of the query heads.

    Raises
    ------
    OperatorRejected
        Numbers of heads that are no multiples.
    """
    if heads <= 0:
        raise check.rejected("num_heads", heads, "greater than 0")
    if kv_heads < 0:
        raise check.rejected("num_kv_heads", kv_heads, "0 or more")
    if kv_heads and heads % kv_heads:
        raise check.rejected("num_heads", heads, f"a multiple of num_kv_heads, {kv_heads}")
    return kv_heads or heads


def lengths_of(check: ArgumentChecks, name: str, lengths: Tensor) -> list[int]:
    """Return lengths as ATB reads them on the host.

    Raises
    ------
    OperatorRejected
        Another rank or dtype than int32 [batch], or a negative length.
    """
    check.rank(name, lengths, 1, "[batch]")
    check.dtype(name, lengths, "int32")
    numbers: list[int] = lengths.tolist()
    if min(numbers, default=0) < 0:
        raise check.rejected(name, f"{numbers}", "0 or more each")
    return numbers


def check_output(check: ArgumentChecks, out: Tensor, query: Tensor, *shapes: Sequence[int], meaning: str) -> None:
    """Require an output without gaps in the query's dtype and one of some shapes."""
    check.contiguous(out=out, code=ErrorCode.WRAPPER)
    check.same_dtype("out", out, "query", query)
    check.shape("out", out, *shapes, meaning=meaning)


def paged_tokens(check: ArgumentChecks, table: Tensor, batch: int, length: int, cache: Tensor) -> PagedTokens:
    """Return the tokens of one sequence in a cache [blocks, block size, kv heads, dim].

    Raises
    ------
    DeviceFault
        The block table has no row for the sequence, or its row is too short.
    """
    block_size = cache.shape[1]
    width = table.shape[1]
    if batch >= len(table):
        raise DeviceFault(f"{check.operator}: block_table has {len(table)} rows, and sequence {batch} reads its own")
    if length > width * block_size:
        place = f"block_table[{batch}]"
        raise DeviceFault(
            f"{check.operator}: {place} has {width} blocks of {block_size}, and the sequence {length} tokens"
        )
    blocks: list[int] = table[batch].tolist()
    return PagedTokens(check.operator, batch, blocks, cache.flatten(2), block_size, cache.shape[2])


def by_head(check: ArgumentChecks, name: str, tensor: Tensor, heads: int, rank: int) -> Tensor:
    """Return a tensor with an axis of heads, which may be one with the last."""
    if tensor.dim() == rank:
        return tensor
    check.rank(name, tensor, (rank - 1, rank), "with heads and dim in one axis or in two")
    if tensor.shape[-1] % heads:
        raise check.rejected(name, f"of last axis {tensor.shape[-1]}", f"a multiple of {heads} heads")
    return tensor.view(*tensor.shape[:-1], heads, -1)
