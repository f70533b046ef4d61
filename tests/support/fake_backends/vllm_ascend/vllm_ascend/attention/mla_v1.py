"""Latent attention: of decodes and drafts over latents, of prefills over heads, in chunks of the prefix."""

import itertools
from types import SimpleNamespace

import torch
from vllm.model_executor.layers.rotary_embedding import rotated
from vllm_ascend.ascend_forward_context import _EXTRA_CTX
from vllm_ascend.attention.attention_v1 import AscendAttentionState  # noqa: F401 - adapters look for it here
from vllm_ascend.attention.plain import attend
from vllm_ascend.compilation.acl_graph import awaited, updated
from vllm_ascend.device.device_op import BaseDeviceAdaptor
from vllm_ascend.told import told

STRIP = 16


class AscendMLAMetadataBuilder:
    def build_chunked_metadata(self, common_prefix_len, common_attn_metadata):
        """Return which tokens of prefixes are loaded at once: as many pages of each as the workspace holds."""
        prefixes = self.seq_lens - self.query_lens
        if not self.chunked_prefill_enabled or not prefixes.any():
            return None
        step = self.chunked_prefill_workspace_size // int((prefixes > 0).sum())
        step = step // self.block_size * self.block_size
        starts = range(0, int(prefixes.max()), step)
        chunks = [(torch.full_like(prefixes, start), (prefixes - start).clamp(0, step)) for start in starts]
        return SimpleNamespace(chunks=chunks)


class AscendMLAImpl:
    def exec_kv_prefill(self, kv_no_split, cos, sin, kv_cache, slots):
        """Normalise latents, rotate keys, write both, and return what was written: keys first."""
        rank, norm = self.kv_lora_rank, self.kv_a_layernorm
        latent = kv_no_split[:, :rank].float()
        inverse = torch.rsqrt(latent.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon)
        latent = (latent * inverse * norm.weight.float()).to(kv_no_split.dtype).unsqueeze(1)
        half = cos.shape[-1] // 2
        table = torch.cat([cos[:, 0, 0, :half], sin[:, 0, 0, :half]], dim=-1)
        keys = kv_no_split[:, None, rank:]
        rope = rotated(keys, table, is_neox_style=told("keys_in_halves"), to_halves=True)
        there = slots >= 0
        for cache, rows in zip(kv_cache, (latent, rope), strict=True):
            cache.view(-1, *cache.shape[2:])[slots[there].long()] = rows[there]
        return rope, latent

    def exec_kv_decode(self, kv_no_split, cos, sin, kv_cache, slots):
        self.exec_kv_prefill(kv_no_split, cos, sin, kv_cache, slots)
        return kv_cache[1], kv_cache[0]

    def _forward_decode(self, q_nope, q_pe, k_nope, k_pe, block_size, attn_metadata):
        """Attend to latents, and bring the answer up; rows of all requests lie one after the other."""
        said = attn_metadata.decode
        if _EXTRA_CTX.capturing:
            lengths = torch.empty(len(said.seq_lens_list), dtype=torch.int64, device=q_nope.device)
            lengths = awaited(len(q_nope), lengths)
        else:
            lengths = torch.tensor(said.seq_lens_list, device=q_nope.device)
        query = torch.cat([q_nope, q_pe], dim=-1)
        answer = torch.zeros(*query.shape[:2], self.kv_lora_rank, device=query.device)
        first = 0
        for request, end in enumerate(said.actual_seq_lengths_q):
            table = said.block_table[request].long()
            latent, rope = (self._rows(cache, table, block_size) for cache in (k_nope, k_pe))
            keys = torch.cat([latent, rope], dim=-1)
            answer[first:end], _ = attend(query[first:end], keys, latent, lengths[request], self.scale)
            first = end
        brought = torch.einsum("thr,hrv->thv", answer, self.W_UV.float())
        return brought.to(q_nope.dtype).flatten(1)

    def _rows(self, cache, table, block_size):
        """Rows of some pages, ``[tokens, 1, dim]``; in NZ a page lies in strips of 16 columns."""
        pages = cache.reshape(len(cache), -1)[table]
        if self.enable_kv_nz and not told("nz_read_as_nd"):
            pages = pages.view(len(table), -1, block_size, STRIP).transpose(1, 2)
        return pages.reshape(len(table) * block_size, 1, -1)

    def _forward_prefill(self, q_nope, q_pe, k_nope, k_pe, value, kv_c_and_k_pe_cache, attn_metadata):
        """Attend to the new tokens, and to prefixes chunk by chunk; parts are put together by their sums."""
        said, query = attn_metadata.prefill, torch.cat([q_nope, q_pe], dim=-1)
        keys = torch.cat([k_nope, k_pe], dim=-1)
        ends = [0, *said.actual_seq_lengths_q]
        spans = [slice(first, end) for first, end in itertools.pairwise(ends)]
        found = [attend(query[span], keys[span], value[span], span.stop - span.start, self.scale) for span in spans]
        chunks = [] if said.chunked_context is None else said.chunked_context.chunks
        for starts, counts in chunks[: 1 if told("first_chunk_only") else None]:
            keys, values = self._loaded(starts, counts, kv_c_and_k_pe_cache, said.block_table, q_nope)
            first = 0
            for request, count in enumerate(counts.tolist()):
                part = slice(first, first + count)
                other = attend(query[spans[request]], keys[part], values[part], count, self.scale, causal=False)
                found[request] = _merged(found[request], other) if count else found[request]
                first += count
        return torch.cat([answer for answer, _ in found]).flatten(1)

    def _loaded(self, starts, counts, caches, block_table, q_nope):
        """Load tokens of prefixes, and bring their latents up to keys and values of all heads."""
        total, device = int(counts.sum()), q_nope.device
        latent, rope = (cache.new_empty(total, 1, cache.shape[-1]) for cache in caches)
        BaseDeviceAdaptor.kv_cache_load(*caches, block_table, counts.to(device), starts.to(device), latent, rope)
        brought, _ = self.kv_b_proj(latent.squeeze(1))
        parts = self.qk_nope_head_dim, self.v_head_dim
        nope, values = brought.view(total, self.num_heads, sum(parts)).split(parts, dim=-1)
        return torch.cat([nope, rope.expand(-1, self.num_heads, -1)], dim=-1), values

    @staticmethod
    def update_graph_params(update_stream, forward_context, num_tokens, vllm_config=None, speculative_config=None):
        (said,) = forward_context.attn_metadata.values()
        updated(update_stream, num_tokens, said.decode.seq_lens_list)


def _merged(one, other):
    """Put together what rows see of two parts of their keys."""
    total = torch.logaddexp(one[1], other[1])
    parts = [answer * (sums - total).exp().unsqueeze(-1) for answer, sums in (one, other)]
    return parts[0] + parts[1], total
