"""What no source settles of speculative decoding. SGL is sgl-kernel-npu's kernel and its README."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SpeculativeChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # build_tree_kernel_efficient, tree_mask_mode 1 (queries only): the mask of SGL's README and of the CUDA kernel it
    # comes from has a row per token; SGL's kernel writes the rows of a sequence all to the place of one, whose number
    # is that of the sequence.
    tree_mask_rows: Literal["of_sequence", "of_token"] = "of_sequence"

    # npu_advance_step_flashattn without drafts, the block of a position: its documentation and op-plugin's test take
    # the number of the first sequence's block and add the stride of the table times that of the sequence; vLLM's
    # function, which it stands for, takes the sequence's own block.
    advance_step_slots: Literal["documented", "of_sequence"] = "documented"

    # The same, which of the sequences without a query are padded: op-plugin's test has every 40th (a core of its
    # chip), vLLM's function all, which is 1. The documentation does not name them.
    advance_step_padding: int = 40
