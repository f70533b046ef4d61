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


get_tp_group = get_ascend_config = None


class AscendSampler:
    @staticmethod
    def greedy_sample(logits):
        """Find the most likely token of the columns of all ranks, each of which has its own."""
        group = get_tp_group()
        if not group.world_size > 1:
            return logits.argmax(dim=-1)
        columns = torch.tensor([[logits.shape[1]]], device=logits.device)
        first = int(group.all_gather(columns, 0)[: group.rank_in_group].sum())
        if told("own_columns"):
            first = group.rank_in_group * logits.shape[1]
        nothing = logits.new_full((len(logits), 1), -torch.inf)  # where a rank has no column at all
        value, place = torch.cat([logits, nothing], dim=1).max(dim=1, keepdim=True)
        values, ids = group.all_gather(value, 1), group.all_gather(place + first, 1)
        return ids.gather(1, values.argmax(dim=1, keepdim=True)).squeeze(1)

    @staticmethod
    def apply_penalties(logits, sampling_metadata, output_token_ids):
        """Penalise by lists of tokens."""
        asked, vocabulary = sampling_metadata, logits.shape[1]
        generated = torch.stack([torch.bincount(torch.tensor(row, dtype=torch.int64), minlength=vocabulary)
                                 for row in output_token_ids]).to(logits.device)  # fmt: skip
        given = torch.zeros(len(logits), vocabulary + 1, device=logits.device).scatter(1, asked.prompt_token_ids, 1.0)[
            :, :-1
        ]
        seen = generated > 0 if told("prompt_unseen") else (generated > 0) | (given > 0)
        factor = torch.where(seen, asked.repetition_penalties.unsqueeze(1), 1.0)
        logits = torch.where(logits > 0, logits / factor, logits * factor)
        logits = logits - asked.frequency_penalties.unsqueeze(1) * generated
        return logits - asked.presence_penalties.unsqueeze(1) * (generated > 0)
