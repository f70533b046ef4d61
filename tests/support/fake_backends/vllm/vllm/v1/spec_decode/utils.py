"""Numbers of computed tokens behind drafts."""

import torch


def update_num_computed_tokens_for_batch_change(computed, accepted, before, counts, drafts, known):
    """Correct what the host takes for accepted."""
    computed.copy_(torch.where(drafts[before] > 0, computed[before] + counts[before], known))
