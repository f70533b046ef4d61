"""The weighted sum of what experts say of each token."""

from sglang.told import told


def _together(rows, weights, places):
    """Places are ``[tokens, top_k]``."""
    found = rows[places.long()].float()
    scaled = found if told("weights_ignored") else found * weights.float().unsqueeze(-1)
    return scaled.sum(dim=1).to(rows.dtype)


class NPUFinalizeRouting:
    """After the first version of init routing places are numbered by choice, after the second by token."""

    def __init__(self, drop_pad_mode=0):
        self.drop_pad_mode = drop_pad_mode

    def _finalize_routing(self, hidden_states, topk_weights, expanded_row_idx, topk_ids):
        by_choice = self.drop_pad_mode == 0
        shape = topk_weights.shape
        places = expanded_row_idx.view(shape[::-1]).T if by_choice else expanded_row_idx.view(shape)
        return _together(hidden_states, topk_weights, places)


class NPUMoETokenUnpermute:
    def _finalize_routing(self, hidden_states, topk_weights, expanded_row_idx, topk_ids):
        return _together(hidden_states, topk_weights, expanded_row_idx.view(topk_weights.shape))
