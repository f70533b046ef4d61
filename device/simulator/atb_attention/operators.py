"""The operators of this family."""

from __future__ import annotations

from collections.abc import Callable

from npudiff.device.simulator.atb_attention import packed, paged, schemas
from npudiff.device.simulator.library import Operator

_LENGTHS = ("context_lens", "seq_len")
"""ATB reads lengths on the host: they may be there."""


def _operator(schema: str, cpu: Callable[..., None]) -> Operator:
    return Operator(schema, cpu, paged.nothing_meta, host=_LENGTHS)


OPERATORS = (
    _operator(schemas.PAGED_ATTENTION, paged.paged_attention),
    Operator(
        schemas.PAGED_ATTENTION_WORKSPACE,
        paged.paged_attention_workspace,
        paged.paged_attention_workspace_meta,
        host=_LENGTHS,
    ),
    _operator(schemas.PAGED_ATTENTION_MLA, paged.paged_attention_mla),
    _operator(schemas.PAGED_ATTENTION_SPLITFUSE, paged.paged_attention_splitfuse),
    _operator(schemas.FLASH_ATTENTION_QLENS, paged.flash_attention_qlens),
    _operator(schemas.FLASH_ATTENTION, packed.flash_attention),
    _operator(schemas.FLASH_ATTENTION_V3, packed.flash_attention_v3),
    _operator(schemas.FLASH_ATTENTION_UNPAD, packed.flash_attention_unpad),
    _operator(schemas.FLASH_ATTENTION_UNPAD_V2, packed.flash_attention_unpad_v2),
)
"""Every operator of the family."""
