"""A worker of drafts, in plain torch, on chains."""

from types import SimpleNamespace

import torch
from sglang.kernels.ops.speculative.cache_locs import assign_extend_cache_locs_uniform_func
from sglang.told import told


class EagleDraftWorker:
    """Between a scheduler and a draft model."""

    def draft(self, batch):
        """Draft what follows the first tokens, and return what is verified."""
        chosen, lengths, steps = batch.spec_info.topk_index, batch.seq_lens, self.speculative_num_steps
        table, rows, count = self.req_to_token_pool.req_to_token, batch.req_pool_indices, len(lengths)
        slots = assign_extend_cache_locs_uniform_func(rows, table, lengths, count, steps + 1, self.device)
        slots, tokens = slots.view(count, -1), [chosen]
        for step, attention in enumerate(self.draft_attn_backend.attn_backends[: steps - 1]):
            attended = lengths + step + (0 if told("own_token_unseen") else 1)
            attention.forward_metadata = SimpleNamespace(seq_lens=attended, seq_lens_cpu_int=attended.cpu())
            given = SimpleNamespace(
                input_ids=chosen.flatten(), positions=lengths + step, out_cache_loc=slots[:, step],
            )  # fmt: skip
            chosen = self.draft_runner.forward(given).logits_output.next_token_logits.argmax(dim=1, keepdim=True)
            tokens.append(chosen)
        places = lengths.unsqueeze(1) + torch.arange(steps + 1, device=lengths.device)
        verified = torch.cat([batch.spec_info.bonus_tokens.unsqueeze(1), *tokens], dim=1)
        return SimpleNamespace(
            draft_token=verified.flatten(), positions=places.flatten(), prepared_out_cache_loc=slots.flatten()
        )

    def _draft_extend_for_decode(self, batch, answer):
        """Go through what was verified, and take the row of the last token that counts."""
        each, count = self.speculative_num_draft_tokens, len(batch.seq_lens)
        places = (batch.seq_lens.unsqueeze(1) + torch.arange(each, device=batch.seq_lens.device)).flatten()
        given = SimpleNamespace(
            input_ids=answer.next_token_ids.long(), positions=places, out_cache_loc=batch.out_cache_loc
        )
        states = self.draft_runner.forward(given).logits_output.hidden_states
        last = answer.accept_lens.long() - (0 if told("row_behind") else 1)
        answer.next_draft_input.hidden_states = states[torch.arange(count, device=last.device) * each + last]
