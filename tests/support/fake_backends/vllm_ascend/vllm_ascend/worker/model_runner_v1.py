"""Tokens of the next step of the target."""

import torch
from vllm_ascend.told import told


class NPUModelRunner:
    """A runner whose drafts stay on the device."""

    def _prepare_input_ids(self, scheduled, count, total, ends):
        drafts = self._draft_token_ids.flip(1) if told("drafts_turned") else self._draft_token_ids
        tokens = torch.cat([self.input_batch.prev_sampled_token_ids.to(drafts.dtype), drafts], dim=1)
        self.input_ids.gpu[:total] = tokens.flatten().to(torch.int32)
