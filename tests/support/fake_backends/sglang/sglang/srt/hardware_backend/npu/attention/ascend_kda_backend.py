"""Linear attention of Kimi: the same, with decays of channels."""

import torch
from sglang.srt.hardware_backend.npu.attention.ascend_gdn_backend import AscendGDNAttnBackend
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.told import told


def fused_kda_gate_npu(*_, **__):
    raise AssertionError("a Triton kernel")


def kda_target_verify_npu(
    *, q, k, v, a, b, initial_state_source, initial_state_indices, intermediate_states_buffer, cache_steps, **_
):  # fmt: skip
    """Outputs of drafts; the state behind each goes into a row of its own."""
    added = 1.0 if told("long_epsilon") else 1e-6
    query, key = (one.float() * (one.float().square().sum(-1, True) + added).rsqrt() for one in (q, k))
    output = torch.zeros_like(v)
    for request, slot in enumerate(initial_state_indices.tolist()):
        state = initial_state_source[slot].float()
        for place in range(cache_steps):
            token = request * cache_steps + place
            state = state * a[token].float().exp().unsqueeze(1)
            new = (v[token].float() - (state * key[token].unsqueeze(1)).sum(-1)) * b[token].float().unsqueeze(-1)
            state = state + new.unsqueeze(-1) * key[token].unsqueeze(1)
            output[token] = ((state * query[token].unsqueeze(1)).sum(-1) * q.shape[-1] ** -0.5).to(v.dtype)
            intermediate_states_buffer[request, place] = state.to(intermediate_states_buffer.dtype)
    return output


class AscendKDAAttnBackend(AscendGDNAttnBackend):
    def forward_extend(self, layer, batch, mixed_qkv, a, b):
        cache = self.pool.mamba2_layer_cache(0)
        if batch.forward_mode == ForwardMode.TARGET_VERIFY:
            count = batch.spec_info.draft_token_num
            accepted = torch.full_like(self.slots, count)
            rows = self._convolved(layer, mixed_qkv, cache.conv[0], num_accepted_tokens=accepted, run_mode=1)
            query, key, value = self._split(layer, rows)
            return kda_target_verify_npu(
                q=query, k=key, v=value, a=fused_kda_gate_npu(a, layer.A_log), b=b.float().sigmoid(),
                initial_state_source=cache.temporal, initial_state_indices=self.slots,
                intermediate_states_buffer=cache.intermediate_ssm, cache_steps=count,
            )  # fmt: skip
        known = batch.extend_prefix_lens >= (0 if told("history_of_others") else 1)
        rows = self._prompts_convolved(layer, mixed_qkv, cache.conv[0], known)
        query, key, value = self._split(layer, rows)
        return self.kernel_dispatcher.extend(q=query, k=key, v=value)
