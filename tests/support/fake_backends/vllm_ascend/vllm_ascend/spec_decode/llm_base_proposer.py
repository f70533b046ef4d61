"""A proposer of drafts, in plain torch: requests side by side."""

import dataclasses

import torch
from vllm.forward_context import get_forward_context
from vllm_ascend.told import told


def set_ascend_forward_context(metadata, *_, **__):
    """A context of a forward pass, which whoever runs a model sets."""
    raise NotImplementedError


class AscendSpecDecodeBaseProposer:
    """What a runner calls between a step of the target and a draft model."""

    def prepare_next_token_ids_padded(self, sampled, requests, batch, discarded, count):
        """Tokens behind requests, of samples as a tensor."""
        sampled = sampled.index_fill(0, discarded[:count], -1)
        counts = (sampled >= 0).sum(dim=1)
        last = sampled.gather(1, (counts - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        left = 1 if told("piece_repeats") else 0
        known = [one.get_token_id(one.length - left) for one in requests.values()]
        return torch.where(counts > 0, last, last.new_tensor(known)), counts

    def prepare_next_token_ids_cpu(self, sampled, requests, batch, scheduled):
        """The same, of samples as lists."""
        ids = [
            tokens[-1] if tokens else one.get_token_id(one.num_computed_tokens + scheduled[name])
            for tokens, (name, one) in zip(sampled, requests.items(), strict=True)
        ]
        return torch.tensor(ids, dtype=torch.int32, device=self.input_ids.device)

    def prepare_inputs_padded(self, common, drafts, counts):
        """Metadata whose lengths have no rejected drafts, and rows of last tokens."""
        drafted = drafts.cu_num_draft_tokens.diff(prepend=drafts.cu_num_draft_tokens.new_zeros(1))
        rejected = torch.where(drafted > 0, drafted + 1 - counts, 0)
        rows = common.query_start_loc[1:] - 1 - (0 if told("last_row_of_all") else rejected)
        return common, torch.arange(len(self.input_ids)), rows, rejected

    def prepare_inputs(self, common, sampled, drafts):
        """Metadata and rows without those that were rejected."""
        rejected = torch.tensor([n + 1 - len(one) if n else 0 for n, one in zip(drafts, sampled, strict=True)])
        starts = common.query_start_loc_cpu.long()
        ends = starts[1:] - rejected
        rows = torch.cat([torch.arange(start, end) for start, end in zip(starts, ends, strict=False)])
        fewer = torch.cat([starts[:1], (starts.diff() - rejected).cumsum(0)]).to(torch.int32)
        lengths = (common.seq_lens_cpu - rejected).to(torch.int32)
        common = dataclasses.replace(
            common, query_start_loc=fewer.to(self.device), query_start_loc_cpu=fewer,
            seq_lens=lengths.to(self.device), _seq_lens_cpu=lengths,
        )  # fmt: skip
        return common, rows.to(self.device)

    def _propose(
        self, num_speculative_tokens, target_token_ids, target_positions, next_token_ids, target_hidden_states,
        target_model_batch_desc, sampling_metadata, common_attn_metadata, token_indices_to_sample,
        num_rejected_tokens_gpu=None,
    ):  # fmt: skip
        common, rows = common_attn_metadata, token_indices_to_sample
        rows = common.query_start_loc[1:] - 1 if rows is None else rows
        tokens = target_token_ids.roll(-1)
        tokens[rows.long()] = next_token_ids.to(tokens.dtype)
        self._run(common, tokens, target_positions, target_hidden_states)
        rejected = 0 if num_rejected_tokens_gpu is None or told("rejected_are_seen") else num_rejected_tokens_gpu
        position, length = target_positions[rows.long()], common.seq_lens - rejected
        for _ in range(1, num_speculative_tokens):
            position, length = position + 1, length + 1
            beyond = position >= self.max_model_len
            inside, size = position.masked_fill(beyond, 0), self.block_size
            pages = common.block_table_tensor.gather(1, (inside // size).unsqueeze(1)).squeeze(1)
            slots = (pages * size + inside % size).masked_fill(beyond, -1)
            attended = length.masked_fill(beyond, 1)
            each = dataclasses.replace(
                common, seq_lens=attended, _seq_lens_cpu=attended.cpu(),
                slot_mapping=slots + 1 if told("next_slot") else slots,
            )  # fmt: skip
            self._run(each, inside, inside, target_hidden_states[: len(inside)])

    def _run(self, metadata, tokens, positions, states):
        with set_ascend_forward_context({"layer": metadata}):
            self.model(input_ids=tokens, positions=positions, hidden_states=states)

    def _run_merged_draft(self):
        """What a graph would hold."""


__all__ = ["AscendSpecDecodeBaseProposer", "get_forward_context", "set_ascend_forward_context"]
