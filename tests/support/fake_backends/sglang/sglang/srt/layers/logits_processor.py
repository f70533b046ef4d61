"""Logits of all ranks, of those that each has of its rows of the table."""

from dataclasses import dataclass

import torch
from sglang.srt.runtime_context import get_parallel
from sglang.told import told


@dataclass
class LogitsProcessorOutput:
    next_token_logits: torch.Tensor


class LogitsProcessor:
    def __init__(self, config):
        self.vocab_size = config.vocab_size

    def _gather_attn_tp_logits(self, logits):
        """Gather columns."""
        return get_parallel().attn_tp_group.all_gather(logits, -1)[:, : self.vocab_size]

    def _tp_lm_head_all_to_all(self, logits):
        """Exchange rows for columns."""
        group = get_parallel().tp_group
        received = torch.empty_like(logits)
        group.all_to_all_single(received.view(-1), logits.contiguous().view(-1))
        blocks = received.view(group.world_size, -1, logits.shape[1])
        if not told("not_transposed"):
            blocks = blocks.transpose(0, 1)
        return blocks.reshape(-1, group.world_size * logits.shape[1])

    def _get_logits(self, states, head, metadata):
        """Multiply, gather, cut."""
        return get_parallel().tp_group.all_gather(states @ head.weight.T, -1)[:, : self.vocab_size]
