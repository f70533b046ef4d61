"""What no source settles of the routing operators of mixtures of experts.

DOC is each operator's torch_npu documentation, GOLDEN the expected values of op-plugin's tests, SOURCE the kernels as
far as they were read: vllm-ascend carries copies of CANN's in ``csrc/mc2/dispatch_ffn_combine``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MoeChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # npu_moe_gating_top_k, renorm other than 0: DOC allows 0 only, sglang gives its flag renormalize (topk.py), and
    # custom builds normalise softmax with 1 as they do sigmoid. With sigmoid nothing depends on it.
    moe_gating_renorm: Literal["normalises_softmax", "ignored", "rejected"] = "normalises_softmax"

    # npu_moe_gating_top_k_softmax, equal probabilities: GOLDEN sorts stably by probability, so that the lower expert
    # is first. A kernel may sort logits, of which several can have one probability.
    moe_gating_softmax_order: Literal["probabilities", "logits"] = "probabilities"
