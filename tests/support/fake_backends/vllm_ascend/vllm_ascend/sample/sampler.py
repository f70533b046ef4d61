"""Filters of logits, in plain torch."""

import torch
from vllm_ascend.told import told


def _apply_top_k_top_p_torch_npu(logits, k, p, top_k=None):
    """Keep what is as likely as the last of top-k, and of these what top-p needs."""
    values, index = logits.sort(dim=-1)
    if k is not None:
        place = values.shape[1] - (torch.ones_like(k) if told("one_of_each") else k).long()
        values = values.masked_fill(values < values.gather(1, place.unsqueeze(1)), -torch.inf)
    if p is not None:
        gone = values.softmax(dim=-1).cumsum(dim=-1) <= 1 - p.unsqueeze(1)
        gone[:, -1] = False
        values = values.masked_fill(gone, -torch.inf)
    return torch.empty_like(values).scatter(1, index, values)


_apply_top_k_top_p_pytorch = _apply_top_k_top_p_torch_npu


class AscendSampler:
    @staticmethod
    def apply_penalties(logits, sampling_metadata, output_token_ids):
        """Penalise by lists of tokens."""
        asked, vocabulary = sampling_metadata, logits.shape[1]
        generated = torch.stack([torch.bincount(torch.tensor(row, dtype=torch.int64), minlength=vocabulary)
                                 for row in output_token_ids])  # fmt: skip
        given = torch.zeros(len(logits), vocabulary + 1).scatter(1, asked.prompt_token_ids, 1.0)[:, :-1]
        seen = generated > 0 if told("prompt_unseen") else (generated > 0) | (given > 0)
        factor = torch.where(seen, asked.repetition_penalties.unsqueeze(1), 1.0)
        logits = torch.where(logits > 0, logits / factor, logits * factor)
        logits = logits - asked.frequency_penalties.unsqueeze(1) * generated
        return logits - asked.presence_penalties.unsqueeze(1) * (generated > 0)
