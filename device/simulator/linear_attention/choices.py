"""What no source settles of causal convolutions and gated delta rules.

DOC is op-plugin's documentation of ``npu_chunk_gated_delta_rule`` and ``npu_recurrent_gated_delta_rule``, TEST its
tests of both, VLLM the kernel in vllm-ascend (``csrc/attention/recurrent_gated_delta_rule``), SGL the sources of
sgl-kernel-npu.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LinearAttentionChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # npu_recurrent_gated_delta_rule, actual_seq_lengths: DOC and TEST have [B] lengths. VLLM has [B + 1], the first of
    # which is the number of tokens to skip, and installs its kernel over CANN's under the same name.
    recurrent_lengths: Literal["lengths", "skipped_and_lengths"] = "lengths"

    # The same, the longest sequence of a call: DOC has 8, VLLM 16.
    recurrent_longest: int = 8

    # The same, dtypes of state: DOC has bfloat16, VLLM float32 too. Names of torch dtypes.
    recurrent_state_dtypes: tuple[str, ...] = ("bfloat16",)

    # States that two sequences of one call use, of which one writes, and lines of convolutions alike: cores run in any
    # order. Padded rows of sglang all have slot 0. "unpredictable" fills states, and rows that depend on them, with
    # what nobody wrote.
    linear_shared_states: Literal["in_order", "unpredictable"] = "in_order"

    # npu_chunk_gated_delta_rule: where CANN's kernel rounds is not known. SGL's kernel for A2 and A3, which seems to be
    # a copy of it, and a calculation in TEST round products and states between chunks to bfloat16; "float32" rounds
    # outputs only.
    chunk_rounding: Literal["bfloat16", "float32"] = "bfloat16"

    # The same, decay between two tokens of a chunk: SGL takes the exponential of the difference, which is finite; TEST
    # divides exponentials, which is 0 / 0 once the gates of a chunk sum up to less than -87.
    chunk_decay: Literal["difference", "quotient"] = "difference"

    # causal_conv1d with activation: SGL applies SiLU in float32 and rounds once; its pull request 742 rounds before.
    causal_conv1d_silu: Literal["float32", "of_rounded"] = "float32"
