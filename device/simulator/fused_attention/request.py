"""One call of either operator version, with one set of names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention.axes import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class ArgumentNames:
    """What the two operator versions call the same thing; used in messages."""

    heads: str
    scale: str
    query_lengths: str
    key_lengths: str
    return_lse: str
    out_scale: str
    out_offset: str
    full_quant: tuple[str, ...] = ()
    """The scales of int8 queries without rotated parts: of scores, of probabilities, of values."""
    first: bool = False
    """Whether the first version's words are used for keys and values of integers."""
    queries: Literal["any", "one", "several"] = "any"
    """Which branches an operator has: that of one query, that of several, or both."""
    halves: bool = False
    """Whether float16 is computed in float16 where ``inner_precise`` asks for speed."""


V1_NAMES = ArgumentNames(
    heads="num_heads",
    scale="scale",
    query_lengths="actual_seq_lengths",
    key_lengths="actual_seq_lengths_kv",
    return_lse="softmax_lse_flag",
    out_scale="quant_scale2",
    out_offset="quant_offset2",
    full_quant=("dequant_scale1", "quant_scale1", "dequant_scale2"),
    first=True,
)

V2_NAMES = ArgumentNames(
    heads="num_query_heads",
    scale="softmax_scale",
    query_lengths="actual_seq_qlen",
    key_lengths="actual_seq_kvlen",
    return_lse="return_softmax_lse",
    out_scale="quant_scale_out",
    out_offset="quant_offset_out",
)


@dataclass(frozen=True)
class FusedAttentionRequest:
    """A call of ``npu_fused_infer_attention_score`` or its second version."""

    check: ArgumentChecks
    """Of the operator that was called."""
    names: ArgumentNames
    """The caller's words, for messages."""
    query: Tensor
    key: Tensor
    value: Tensor
    """As passed; with ``block_table`` the last two are caches."""
    query_rope: Tensor | None
    key_rope: Tensor | None
    """The rotated parts of query and key, head dim 64, shaped like them; the scores are those of both parts."""
    layout: str
    """``input_layout``."""
    heads: int
    kv_heads: int
    """Query heads and key heads; key heads 0 has been replaced by the number of query heads."""
    scale: float
    """Multiplies the scores."""
    pre_tokens: int
    next_tokens: int
    sparse_mode: int
    inner_precise: int
    """As passed."""
    mask: Tensor | None
    """``atten_mask``; 1 hides."""
    query_lengths: tuple[int, ...] | None
    key_lengths: tuple[int, ...] | None
    """As passed: cumulative or not, depending on layout and paging."""
    block_table: Tensor | None
    """int32 [batch, blocks per sequence]."""
    block_size: int
    """Tokens per block."""
    sink: Tensor | None
    """``learnable_sink`` [heads]."""
    shift: Tensor | None
    """``pse_shift``: [1 or batch, heads, rows, keys], added to the scaled scores."""
    out_scale: Tensor | None
    out_offset: Tensor | None
    """What makes int8 of the output."""
    return_lse: bool
    """Whether the log-sum-exp is wanted."""
    out: Sequence[Tensor]
    """What the ``.out`` forms write into: attention and log-sum-exp."""
    extras: tuple[tuple[str, object], ...]
    """Other arguments that were given, by name: those of quantised caches, and what is not simulated."""

    @property
    def axes(self) -> str:
        """The query's axes, which are those of key and value too where they are not paged."""
        return LAYOUTS[self.layout].query

    @property
    def packed(self) -> bool:
        """Whether all sequences lie one after the other on one T axis."""
        return "T" in self.axes

    @property
    def integer_cache(self) -> bool:
        """Whether keys or values are integers of 8 or 4 bits, which a 16-bit query meets as numbers."""
        integers = (torch.int8, torch.int32)
        cached = self.key.dtype in integers or self.value.dtype in integers
        return cached and self.query.dtype in (torch.float16, torch.bfloat16)

    def given_extra(self, name: str) -> object | None:
        """Return the argument of that name if it was given and has no place of its own."""
        return dict(self.extras).get(name)


# Arguments with a place in FusedAttentionRequest, per version, beside those of ArgumentNames.
_COMMON = frozenset(
    {
        "atten_mask",
        "block_size",
        "block_table",
        "inner_precise",
        "input_layout",
        "key_rope",
        "learnable_sink",
        "next_tokens",
        "num_key_value_heads",
        "pre_tokens",
        "pse_shift",
        "query_rope",
        "sparse_mode",
    }
)

# DOC: reserved, or without meaning for 16-bit inputs.
_WITHOUT_EFFECT = frozenset(
    {
        "dequant_scale_key_rope",
        "dequant_scale_key_dtype",
        "dequant_scale_key_rope_dtype",
        "dequant_scale_query_dtype",
        "dequant_scale_value_dtype",
        "key_dtype",
        "key_rope_antiquant_scale",
        "key_rope_dtype",
        "key_shared_prefix_dtype",
        "out_dtype",
        "padding_mask",
        "query_dtype",
        "query_rope_dtype",
        "value_dtype",
        "value_shared_prefix_dtype",
        "workspace",
    }
)

# The schemas' defaults, for arguments that a caller left out: the dispatcher strips them.
_MAXIMUM = 2147483647


def normalise(
    operator: str,
    names: ArgumentNames,
    query: Tensor,
    value: Tensor,
    key: Tensor | None = None,
    out: Sequence[Tensor] = (),
    **arguments: Any,  # noqa: ANN401 - those of the schemas
) -> FusedAttentionRequest:
    """Translate the arguments of one operator version; nothing is checked.

    Parameters
    ----------
    operator : str
        Name for messages.
    names : ArgumentNames
        ``V1_NAMES`` or ``V2_NAMES``.
    query, value, key : Tensor
        Forms that only say the shapes of outputs have no key.
    out : sequence of Tensor
        Of the ``.out`` forms.
    **arguments : object
        In the words of the version; absent ones have the schema's default.
    """
    heads = arguments.get(names.heads, 1)
    own = {name for name in vars(names).values() if isinstance(name, str)}
    known = _COMMON | _WITHOUT_EFFECT | own
    return FusedAttentionRequest(
        check=ArgumentChecks(operator, default=ErrorCode.TILING),
        names=names,
        query=query,
        key=value if key is None else key,
        value=value,
        query_rope=arguments.get("query_rope"),
        key_rope=arguments.get("key_rope"),
        layout=arguments.get("input_layout", "BSH"),
        heads=heads,
        kv_heads=arguments.get("num_key_value_heads", 0) or heads,
        scale=arguments.get(names.scale, 1.0),
        pre_tokens=arguments.get("pre_tokens", _MAXIMUM),
        next_tokens=arguments.get("next_tokens", _MAXIMUM),
        sparse_mode=arguments.get("sparse_mode", 0),
        inner_precise=arguments.get("inner_precise", 0),
        mask=arguments.get("atten_mask"),
        query_lengths=_lengths(arguments.get(names.query_lengths)),
        key_lengths=_lengths(arguments.get(names.key_lengths)),
        block_table=arguments.get("block_table"),
        block_size=arguments.get("block_size", 0),
        sink=arguments.get("learnable_sink"),
        shift=arguments.get("pse_shift"),
        out_scale=arguments.get(names.out_scale),
        out_offset=arguments.get(names.out_offset),
        return_lse=arguments.get(names.return_lse, False),
        out=out,
        # A mode of 0 is the default, hence not given.
        extras=tuple(
            (name, given)
            for name, given in arguments.items()
            if name not in known and given is not None and not (isinstance(given, int) and given == 0)
        ),
    )


def _lengths(lengths: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if lengths is None else tuple(lengths)
