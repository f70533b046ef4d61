"""What no source settles of trees of drafted tokens. SGL is sgl-kernel-npu's kernel and its README."""

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
