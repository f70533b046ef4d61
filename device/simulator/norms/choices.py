"""What no source settles of norms that quantise.

KERNEL is CANN's operator source for A2 and A3 (ops-nn), GOLDEN op-plugin's test, DOC the documentation in op-plugin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NormChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # npu_add_rms_norm_quant, which sum is normalised and where the product rounds. KERNEL (add_rms_norm_quant.h) adds
    # and multiplies by gamma in float16; bfloat16 is added in float32, and rounded before the norm only with beta.
    # GOLDEN is float32 to the end.
    add_rms_norm_quant_chain: Literal["kernel", "float32"] = "kernel"

    # npu_rms_norm_quant, scale: KERNEL (rms_norm_quant.h) multiplies by its reciprocal and GOLDEN divides, DOC
    # multiplies.
    rms_norm_quant_scale: Literal["divides", "multiplies"] = "divides"
