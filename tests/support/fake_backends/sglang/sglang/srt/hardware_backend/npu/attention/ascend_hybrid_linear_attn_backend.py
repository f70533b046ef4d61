"""What follows the verification of drafts."""

from sglang.told import told


class AscendHybridLinearAttnBackend:
    def update_mamba_state_after_mtp_verify(
        self, last_correct_step_indices, mamba_track_indices, mamba_steps_to_track, model, req_pool_indices=None
    ):  # fmt: skip
        backend = self.linear_attn_backend
        cache = backend.pool.mamba_pool.mamba_cache
        lines, states, each = cache.conv[0][0], cache.temporal[0], cache.intermediate_ssm[0]
        for row, last in enumerate(last_correct_step_indices.tolist()):
            slot, back = int(backend.slots[row]), each.shape[1] - 1 - last
            states[slot] = each[row, last]
            if not told("lines_not_rolled_back"):
                lines[slot, back:] = lines[slot, : lines.shape[1] - back].clone()
