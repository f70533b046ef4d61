"""Attention over the pages of a pool, in plain torch of float32."""

from dataclasses import dataclass

import torch
from sglang.srt.hardware_backend.npu.attention.mla_cache import gather_mla_cache_pages
from sglang.srt.hardware_backend.npu.attention.mla_preprocess import is_fia_nz
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import get_parallel
from sglang.told import told


class AscendAttnMaskBuilder:
    """Masks, in which True hides."""

    def __init__(self, model_runner, device, use_fia, use_mla=False):
        self.device = device

    def get_swa_mask(self, seq_lens, s2_size, left_context=512):
        """Hide what is not there yet, and all but the last ``left_context`` keys, ``[batch, 1, s2_size]``."""
        place, lengths = torch.arange(s2_size, device=seq_lens.device), seq_lens.view(-1, 1, 1)
        oldest = lengths - left_context + int(told("mask_off_by_one"))
        return (place >= lengths) | (place < oldest)


@dataclass
class ForwardMetadata:
    """Pages and lengths of a batch, of graphs in memory that stays where it is."""

    block_tables: torch.Tensor
    lengths: torch.Tensor
    block_tables_swa: torch.Tensor | None = None


def attend(query, keys, values, lengths, scale, window=None, sinks=None, chunk=None):
    """Return attention of the last rows of requests, ``[batch, rows, heads, value_dim]`` in float32.

    Parameters
    ----------
    query : torch.Tensor
        ``[batch, rows, heads, dim]``.
    keys, values : torch.Tensor
        ``[batch, places, kv_heads, dim]``, of which the first ``lengths`` are there.
    window : int or None
        Number of visible keys, the row's own included.
    sinks : torch.Tensor or None
        ``[heads]``.
    chunk : int or None
        Positions of a chunk, of which a row sees its own.
    """
    batch, rows, heads, dim = query.shape
    kv_heads, places = keys.shape[2], torch.arange(keys.shape[1], device=query.device)
    grouped = query.float().view(batch, rows, kv_heads, heads // kv_heads, dim)
    if told("heads_side_by_side"):
        grouped = query.float().view(batch, rows, heads // kv_heads, kv_heads, dim).transpose(2, 3)
    own = lengths.view(-1, 1) - rows + torch.arange(rows, device=query.device)
    hidden = places > own.unsqueeze(2)
    if chunk is not None:
        hidden |= places < own.unsqueeze(2) // chunk * chunk
    if window is not None:
        hidden |= places <= own.unsqueeze(2) - window - int(told("window_off_by_one"))
    scores = torch.einsum("brkgd,blkd->bkgrl", grouped, keys.float()) * scale
    scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
    if sinks is not None and not told("no_sinks"):
        column = sinks.float().view(1, kv_heads, -1, 1, 1).expand(*scores.shape[:4], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    answer = torch.einsum("bkgrl,blkd->brkgd", weights, values.float())
    return answer.reshape(batch, rows, heads, -1)


def get_cp_strategy():
    """How prompts are shared out among ranks, which a server sets."""


class AscendAttnBackend:
    """Attention of all layers of a model. A layer's ``sliding_window_size`` leaves the row's own key out in prefill,
    and counts it in decode and verification, which is how models are configured that come to each."""

    def __init__(self, model_runner, speculative_step_id=0):
        self.token_to_kv_pool, self.req_to_token_pool = model_runner.token_to_kv_pool, model_runner.req_to_token_pool
        self.page_size, self.use_mla = model_runner.page_size, model_runner.use_mla_backend
        self.forward_metadata, self._graph_metadata = None, None
        self.tokens_ahead, self.chunk = 0, model_runner.attention_chunk_size

    def _chunk(self, layer):
        return self.chunk if layer.use_irope and not told("chunks_not_seen") else None

    def do_cp_attn_fia(self, q, k_cache, v_cache, layer, forward_batch):
        """Attention of the blocks of a rank over the pages of their requests."""
        meta, start, found = forward_batch.attn_cp_metadata, 0, []
        for half, lengths in zip(meta.rows[get_parallel().attn_cp_rank], meta.lengths, strict=True):
            for rows, length, pages in zip(half, lengths, self.forward_metadata.block_tables.long(), strict=True):
                keys, values = (cache[pages].flatten(0, 1)[None] for cache in (k_cache, v_cache))
                own = q[None, start : start + len(rows)]
                found.append(attend(own, keys, values, torch.tensor([length]).to(q.device), layer.scaling)[0])
                start += len(rows)
        return torch.cat(found).to(q.dtype)

    def get_cuda_graph_seq_len_fill_value(self):
        return 1

    def init_forward_metadata(self, forward_batch):
        longest = int(self._lengths(forward_batch).max())
        tables = self._tables(forward_batch.req_pool_indices, -(-longest // self.page_size))
        self.forward_metadata = ForwardMetadata(tables[0], self._lengths(forward_batch), tables[1])

    def init_cuda_graph_state(self, max_bs, max_num_tokens):
        width = -(-self.req_to_token_pool.req_to_token.shape[1] // self.page_size)
        device = self.req_to_token_pool.req_to_token.device
        tables = [torch.zeros(max_bs, width, dtype=torch.int32, device=device) for _ in range(2)]
        lengths = torch.zeros(max_bs, dtype=torch.int64, device=device)
        self._graph_metadata = ForwardMetadata(tables[0], lengths, tables[1])

    def init_forward_metadata_out_graph(self, forward_batch, in_capture=False):
        """Bring the metadata of a graph up to date."""
        batch, kept = forward_batch.batch_size, self._graph_metadata
        now = self._tables(forward_batch.req_pool_indices, kept.block_tables.shape[1])
        for buffer, table in zip((kept.block_tables, kept.block_tables_swa), now, strict=True):
            if table is not None and (in_capture or not told("stale_tables")):
                buffer[:batch].copy_(table)
        kept.lengths[:batch].copy_(self._lengths(forward_batch))
        self.forward_metadata = ForwardMetadata(
            kept.block_tables[:batch], kept.lengths[:batch], None if now[1] is None else kept.block_tables_swa[:batch]
        )

    def _lengths(self, forward_batch):
        verified = forward_batch.forward_mode == ForwardMode.TARGET_VERIFY and not told("drafts_not_counted")
        return forward_batch.seq_lens + (forward_batch.spec_info.draft_token_num if verified else self.tokens_ahead)

    def _tables(self, rows, width):
        table, pool = self.req_to_token_pool.req_to_token, self.token_to_kv_pool
        first = table[rows.long()][:, :: self.page_size][:, :width].long()
        own = pool.translate_loc_from_full_to_swa(first) // self.page_size if isinstance(pool, SWAKVPool) else None
        return (first // self.page_size).int(), None if own is None else own.int()

    def forward_extend(
        self, q, k, v, layer, forward_batch, save_kv_cache=True, q_rope=None, k_rope=None, sinks=None, topk_indices=None
    ):  # fmt: skip
        if topk_indices is not None:
            self._save(k, v, k_rope, layer, forward_batch, save_kv_cache)
            return self._sparse(torch.cat([q, q_rope], dim=-1), layer, forward_batch, topk_indices)
        if forward_batch.forward_mode == ForwardMode.TARGET_VERIFY:
            return self._uniform(q, k, v, layer, forward_batch, save_kv_cache, q_rope, k_rope, sinks)
        if self.use_mla:
            return self._expanded(q, k, v, layer, forward_batch)
        self._save(k, v, None, layer, forward_batch, save_kv_cache)
        query = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        answer = query.new_zeros(*query.shape[:2], layer.v_head_dim)
        window = None if layer.sliding_window_size == -1 else layer.sliding_window_size + 1
        keys, values = self._read(layer)
        first = 0
        for request, count in enumerate(forward_batch.extend_seq_lens_cpu):
            part = slice(first, first + count)
            answer[part] = attend(
                query[None, part], keys[request : request + 1], values[request : request + 1],
                self.forward_metadata.lengths[request], layer.scaling, window, sinks, self._chunk(layer),
            )[0].to(q.dtype)  # fmt: skip
            first += count
        return answer.flatten(1)

    def forward_decode(
        self, q, k, v, layer, forward_batch, save_kv_cache=True, q_rope=None, k_rope=None, sinks=None, topk_indices=None
    ):  # fmt: skip
        if topk_indices is not None:
            self._save(k, v, k_rope, layer, forward_batch, save_kv_cache)
            return self._sparse(torch.cat([q, q_rope], dim=-1), layer, forward_batch, topk_indices)
        return self._uniform(q, k, v, layer, forward_batch, save_kv_cache, q_rope, k_rope, sinks)

    def _uniform(self, q, k, v, layer, forward_batch, save_kv_cache, q_rope, k_rope, sinks):
        """As many rows of each request, one in decode."""
        self._save(k, v, k_rope, layer, forward_batch, save_kv_cache)
        query = q if q_rope is None else torch.cat([q, q_rope], dim=-1)
        batch, drafts = forward_batch.batch_size, getattr(forward_batch.spec_info, "draft_token_num", 1)
        query = query.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        real = query[: batch * drafts].view(batch, drafts, *query.shape[1:])
        window = None if layer.sliding_window_size == -1 else layer.sliding_window_size
        keys, values = self._read(layer)
        seen = (window, sinks, self._chunk(layer))
        answer = attend(real, keys, values, self.forward_metadata.lengths, layer.scaling, *seen)
        answer = answer.reshape(batch * drafts, -1).to(q.dtype)
        return torch.nn.functional.pad(answer, (0, 0, 0, len(query) - len(answer)))

    def counts(self, forward_batch):
        """New tokens of each request."""
        drafts = getattr(forward_batch.spec_info, "draft_token_num", 1)
        return forward_batch.extend_seq_lens_cpu or [drafts] * forward_batch.batch_size

    def _sparse(self, query, layer, forward_batch, chosen):
        """Rows over the keys that are chosen for each."""
        keys, values = self._read(layer)
        answer, row = query.new_zeros(*query.shape[:2], values.shape[-1]), 0
        for request, count in enumerate(self.counts(forward_batch)):
            length = int(self.forward_metadata.lengths[request])
            for position in range(length - count, length):
                there = chosen[row][(chosen[row] >= int(told("first_key_unseen"))) & (chosen[row] <= position)].long()
                if len(there):
                    every = torch.tensor(len(there), device=query.device)
                    picked = keys[request, there], values[request, there]
                    answer[row] = attend(query[None, row : row + 1], *(one[None] for one in picked), every,
                                         layer.scaling)[0, 0].to(query.dtype)  # fmt: skip
                row += 1
        return answer

    def _save(self, k, v, k_rope, layer, forward_batch, save_kv_cache):
        if not save_kv_cache:
            return
        pool, slots = self.token_to_kv_pool, forward_batch.out_cache_loc[: len(k)]
        sliding = pool.translate_loc_from_full_to_swa(slots) if isinstance(pool, SWAKVPool) else None
        pool.set_kv_buffer(layer, KVWriteLoc(slots, sliding), k, v if k_rope is None else k_rope)

    def _read(self, layer):
        """Keys and values of all requests, ``[batch, places, heads, dim]``."""
        pool, said = self.token_to_kv_pool, self.forward_metadata
        sliding = isinstance(pool, SWAKVPool) and pool.is_swa(layer.layer_id) and not told("full_table_everywhere")
        table = (said.block_tables_swa if sliding else said.block_tables).flatten()
        caches = (pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id))
        is_nz = self.use_mla and is_fia_nz() and not told("nz_read_as_nd")
        found = [gather_mla_cache_pages(cache, table, is_nz=is_nz) for cache in caches]
        key, value = (one.reshape(len(said.block_tables), -1, *one.shape[2:]) for one in found)
        return (torch.cat([key, value], dim=-1), key) if self.use_mla else (key, value)

    def _expanded(self, q, k, v, layer, forward_batch):
        """Prefill of MLA over heads: prefixes are brought up from latents, and stand before the new tokens."""
        latents = self._read(layer)[0]
        rank, heads = self.token_to_kv_pool.k_buffer.shape[-1], layer.tp_q_head_num
        answer = q.new_zeros(len(q), heads, layer.v_head_dim)
        first = 0
        counts = zip(forward_batch.extend_seq_lens_cpu, forward_batch.extend_prefix_lens_cpu, strict=True)
        for request, (count, prefix) in enumerate(counts):
            part = slice(first, first + count)
            latent, rope = latents[request, :prefix].split((rank, latents.shape[-1] - rank), dim=-1)
            brought, _ = layer.kv_b_proj(latent.reshape(prefix, rank))
            parts = k.shape[-1] - rope.shape[-1], v.shape[-1]
            nope, value = brought.view(prefix, heads, sum(parts)).split(parts, dim=-1)
            before = torch.cat([nope, rope.expand(-1, heads, -1)], dim=-1)
            keys, values = torch.cat([before, k[part]]), torch.cat([value, v[part]])
            if told("prefix_behind"):
                keys, values = torch.cat([k[part], before]), torch.cat([v[part], value])
            length = torch.tensor(prefix + count, device=q.device)
            answer[part] = attend(q[None, part], keys[None], values[None], length, layer.scaling)[0].to(q.dtype)
            first += count
        return answer.flatten(1)


class AscendAttnMultiStepDraftBackend:
    """Attention of a model that drafts: one for each pass, which sees a token more."""

    def __init__(self, model_runner, topk, speculative_num_steps):
        self.attn_backends = [AscendAttnBackend(model_runner, step) for step in range(speculative_num_steps - 1)]
        for step, backend in enumerate(self.attn_backends):
            backend.tokens_ahead = step + 1

    def init_cuda_graph_state(self, max_bs, max_num_tokens):
        for backend in self.attn_backends:
            backend.init_cuda_graph_state(max_bs, max_num_tokens)

    def init_forward_metadata_out_graph(self, forward_batch, in_capture=False):
        for backend in self.attn_backends:
            backend.init_forward_metadata_out_graph(forward_batch, in_capture)
