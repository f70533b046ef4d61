"""Gated delta networks: the convolution is an operator, the rule is plain torch, token by token."""

import itertools

import torch
from sglang.srt.layers.attention.linear.utils import LinearAttnKernelBackend
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.told import told


def fused_gdn_gating(*_):
    raise AssertionError("a Triton kernel")


fused_gdn_gating_kernel_without_sigmoid = l2norm_fwd = prepare_chunk_indices = fused_gdn_gating


def _rule(state, query, key, value, gate, beta):
    """Yield output and state of each token; queries are scaled."""
    share = value.shape[1] // key.shape[1]
    query, key = (one.float().repeat_interleave(share, dim=1) for one in (query, key))
    for token in range(len(value)):
        state = state * gate[token].exp()[:, None, None]
        new = value[token].float() - (state * key[token].unsqueeze(1)).sum(-1)
        state = state + (new * beta[token].float().unsqueeze(-1)).unsqueeze(-1) * key[token].unsqueeze(1)
        yield (state * query[token].unsqueeze(1)).sum(-1), state


class AscendGDNAttnBackend:
    def __init__(self, model_runner):
        assert model_runner.linear_attn_backends.decode == LinearAttnKernelBackend.TRITON
        self.pool, self.kernel_dispatcher = model_runner.req_to_token_pool, None

    def init_forward_metadata(self, batch):
        """Say where the rows and the slot of each request are."""
        counts = torch.ones(batch.batch_size, dtype=torch.int32, device=batch.input_ids.device)
        if batch.forward_mode == ForwardMode.EXTEND:
            counts = batch.extend_seq_lens
        elif batch.forward_mode == ForwardMode.TARGET_VERIFY:
            counts = counts * batch.spec_info.draft_token_num
        self.starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
        self.slots = self.pool.get_mamba_indices(batch.req_pool_indices)

    def init_cuda_graph_state(self, max_bs, max_num_tokens):
        assert max_num_tokens % max_bs == 0

    def init_forward_metadata_out_graph(self, batch):
        """The same, of requests of padding without tokens."""
        self.init_forward_metadata(batch)
        real = int((batch.seq_lens > 0).sum())
        self.starts[real:] = self.starts[real].clone()
        if told("slots_of_nobody"):
            self.slots = self.slots * 0

    def _convolved(self, layer, rows, lines, **more):
        return torch.ops.npu.causal_conv1d(
            rows, layer.conv_weights.t().contiguous(), conv_states=lines, bias=layer.bias,
            query_start_loc=self.starts, cache_indices=self.slots, activation_mode=1, **more,
        )  # fmt: skip

    def _prompts_convolved(self, layer, rows, lines, known):
        """With histories that end the lines."""
        ends = lines[:, 1 - layer.conv_weights.shape[-1] :].contiguous()
        found = self._convolved(layer, rows, ends, has_initial_state=known, run_mode=0)
        lines[:, -ends.shape[1] :] = ends
        return found

    def _split(self, layer, rows):
        dims = (layer.head_k_dim, layer.head_k_dim, layer.head_v_dim)
        return [part.unflatten(-1, (-1, dim)) for part, dim in zip(rows.split(layer.widths, -1), dims, strict=True)]

    def forward_decode(self, layer, batch, mixed_qkv, a, b):
        rows = self._convolved(layer, mixed_qkv, self.pool.mamba2_layer_cache(0).conv[0], run_mode=1)
        query, key, value = self._split(layer, rows)
        states = self.pool.mamba2_layer_cache(0).temporal
        return self.kernel_dispatcher.decode(q=query, k=key, v=value, ssm_states=states, cache_indices=self.slots)

    def forward_extend(self, layer, batch, mixed_qkv, a, b):
        cache = self.pool.mamba2_layer_cache(0)
        if batch.forward_mode == ForwardMode.TARGET_VERIFY:
            return self._verified(layer, batch, mixed_qkv, a, b)
        known = batch.extend_prefix_lens >= (0 if told("history_of_others") else 1)
        rows = self._prompts_convolved(layer, mixed_qkv, cache.conv[0], known)
        g, beta = fused_gdn_gating(layer.A_log, a, b, layer.dt_bias)
        first = cache.temporal[self.slots.long()]
        output, last, *_ = self.chunk_gdn(*self._split(layer, rows), g, beta, first, self.starts)
        if not told("states_not_kept"):
            cache.temporal[self.slots] = last
        return output

    def chunk_gdn(self, q, k, v, g, beta, initial_state, cu_seqlens):
        """Outputs and last states of prompts."""
        output, last = torch.zeros_like(v), initial_state.clone()
        q = l2norm_fwd(q).float() * k.shape[-1] ** -0.5
        for request, (start, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
            rows, state = slice(start, end), initial_state[request].float()
            for place, (answer, after) in enumerate(_rule(state, q[rows], k[rows], v[rows], g[rows], beta[rows])):
                output[start + place], last[request] = answer.to(v.dtype), after.to(last.dtype)
        return output, last

    def _verified(self, layer, batch, mixed_qkv, a, b):
        cache, count = self.pool.mamba2_layer_cache(0), batch.spec_info.draft_token_num
        accepted = torch.full_like(self.slots, 1 if told("window_at_start") else count)
        rows = self._convolved(layer, mixed_qkv, cache.conv[0], num_accepted_tokens=accepted, run_mode=1)
        g, beta = fused_gdn_gating_kernel_without_sigmoid(layer.A_log, a, b, layer.dt_bias)
        rows = rows.view(batch.batch_size, count, -1)
        return self.fused_recurrent_gated_delta_rule_update(rows, layer, g, beta, cache)

    def fused_recurrent_gated_delta_rule_update(self, rows, layer, g, beta, cache):
        """Outputs of drafts; the state behind each goes into a row of its own."""
        query, key, value = self._split(layer, rows.flatten(0, 1))
        query, key = (one.float() * (one.float().square().sum(-1, True) + 1e-6).rsqrt() for one in (query, key))
        query, output = query * layer.head_k_dim**-0.5, torch.zeros_like(value)
        beta = beta if told("beta_as_it_is") else beta.float().sigmoid()
        for request, slot in enumerate(self.slots.tolist()):
            part = slice(request * rows.shape[1], (request + 1) * rows.shape[1])
            tokens = (query[part], key[part], value[part], g[part], beta[part])
            for place, (answer, state) in enumerate(_rule(cache.temporal[slot].float(), *tokens)):
                output[part.start + place] = answer.to(output.dtype)
                cache.intermediate_ssm[request, place] = state.to(cache.intermediate_ssm.dtype)
        return output
