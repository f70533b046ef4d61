"""What no source settles of ATB's attention; fields of the CANN profile.

SOURCE is the repository ascend-transformer-boost, for A2 and A3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AtbAttentionChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # Kernels of the default precision, with float16: SOURCE keeps scores and mask in float16, and divides there
    # (unpad_flash_attention_mix.cce, PagedAttentionParallelAiv), as "bmm:float16" of its KERNELTYPE_DEFAULT says. Those
    # of decoding and of high precision have float32, with every dtype. Which kernels a CANN version has is not known.
    atb_float16_scores: Literal["float16", "float32"] = "float16"

    # _npu_paged_attention, a sequence of length 0: op-plugin's golden skips it and has zeros in the output before.
    atb_empty_context: Literal["untouched", "zero"] = "untouched"
