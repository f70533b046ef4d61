"""What stands around experts whose tokens are gathered."""

from types import SimpleNamespace

import torch

_EXTRA_CTX = None
get_dp_group = None


class PrepareAndFinalizeWithAllGather:
    def _prepare_with_dp_group(self, states, logits):
        """Pad to the longest rank, and gather."""
        self.tokens = len(states)
        padded = torch.nn.functional.pad(states, (0, 0, 0, _EXTRA_CTX.max_tokens_across_dp - len(states)))
        return SimpleNamespace(hidden_states=get_dp_group().all_gather(padded, 0), router_logits=logits)

    def _finalize_with_dp_group(self, states, *, reduce_results):
        """Add up, and take the own tokens."""
        return get_dp_group().reduce_scatter(states, 0)[: self.tokens]
