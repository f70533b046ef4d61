"""The layer of DeepSeek as sglang's Ascend backend runs it: heads of their own in prefill, absorbed ones in decode.

Sources: sglang 0.5.23, ``hardware_backend/npu/modules/deepseek_v2_attention_mla_npu.py`` 104-369,
``hardware_backend/npu/attention/mla_preprocess.py`` 455-707, ``attention/ascend_backend.py`` 2102-2383 and 3387-3479.
"""

from __future__ import annotations

import itertools

import torch

from npudiff.device.ascend import mla_preprocess
from npudiff.device.ascend.fused_attention import FusedCall, compressed_mask
from npudiff.device.ascend.layer_experts import rounded
from npudiff.device.ascend.layer_steps import AscendLayer, Outputs
from npudiff.reference.decoder_layer import LatentWeights, LayerStep
from npudiff.reference.mla_preprocess import MlaPreprocessInputs

STRIP = 16
"""C0 of two-byte elements: columns per strip of PA_NZ."""

PROLOG_SIZES = (6144, 7168, 7680)
PROLOG_RANK = 1536
"""Sizes of hidden states, and of the query's latent, that npu_mla_prolog_v3 is made for."""


class LatentLayer(AscendLayer):
    """Plain norms, latents and rope keys in a pool of pages, experts in groups."""

    kind = "plain"

    @property
    def weights(self) -> LatentWeights:
        """Weights of attention."""
        assert isinstance(self.inputs.attention, LatentWeights)  # noqa: S101 - the kind of the layer
        return self.inputs.attention

    def attention(self, step: LayerStep, rows: slice, states: torch.Tensor) -> torch.Tensor:
        """Prepare queries and the cache, attend, and project."""
        given = self.preprocess_inputs(rows, states)
        attended = self.decode(step, given) if set(step.query_lengths) == {1} else self.prefill(step, given)
        return rounded(attended.flatten(1), self.weights.output)

    def preprocess_inputs(self, rows: slice, states: torch.Tensor) -> MlaPreprocessInputs:
        """Weights, positions and slots of the step's tokens, and the caches as the flags lay them out."""
        own, inputs = self.weights, self.inputs
        latent, rope = (self.as_laid(cache) for cache in (self.key_cache, self.value_cache))
        return MlaPreprocessInputs(
            hidden=states,
            q_a_weight=own.q_a,
            q_a_norm=own.q_a_norm,
            q_b_weight=own.q_b,
            k_up_weight=own.k_up,
            kv_a_weight=own.kv_a,
            kv_a_norm=own.kv_a_norm,
            epsilon=inputs.epsilon,
            positions=inputs.positions[rows],
            cos_sin_cache=inputs.cos_sin_cache,
            latent_cache=latent,
            rope_cache=rope,
            slots=inputs.own_slots[rows],
            page_size=inputs.page_size,
            layout="PA_NZ" if self.written_in_nz else "PA_BSND",
        )

    @property
    def written_in_nz(self) -> bool:
        """Whether what is written to the cache lies in NZ."""
        return self.inputs.fia_nz

    @property
    def read_in_nz(self) -> bool:
        """Whether attention takes the cache for NZ."""
        return self.inputs.fia_nz

    def as_laid(self, cache: torch.Tensor) -> torch.Tensor:
        """A pool ``[pages, page_size, 1, dim]`` in the shape of the writer's layout; the bytes are the same."""
        if not self.written_in_nz:
            return cache
        pages, size, _, dim = cache.shape
        return cache.view(pages, dim // STRIP, size, STRIP)

    def keep(self, outputs: Outputs) -> None:
        """Take what was written for the cache of the next step."""
        self.key_cache = outputs["latent_cache"].view(self.inputs.key_cache.shape)
        self.value_cache = outputs["rope_cache"].view(self.inputs.value_cache.shape)

    def prefill(self, step: LayerStep, given: MlaPreprocessInputs) -> torch.Tensor:
        """Heads of their own: keys and values from the latents of all tokens, those of the prefix from the pages."""
        nope, rope = self.queries(given)
        mla_preprocess.write_keys(given, "PA_NZ" if self.written_in_nz else "PA_BNSD")
        self.keep(mla_preprocess.caches(given))
        keys, values = zip(*(self.expanded(*cached) for cached in self.gathered(step)), strict=True)
        query = torch.cat([nope, rope], dim=-1)
        attend = self.fused if self.inputs.use_fia else self.composed
        return attend(step, query, torch.cat(keys), torch.cat(values))

    def queries(self, given: MlaPreprocessInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Both parts of the queries of all heads, ``[tokens, heads, dim]``, the second one rotated."""
        normed, _ = torch.ops.npu.npu_rms_norm(rounded(given.hidden, given.q_a_weight), given.q_a_norm, given.epsilon)
        heads = rounded(normed, given.q_b_weight).view(len(normed), given.heads, -1)
        cosine, sine = (table[:, None, None, :] for table in mla_preprocess.tables(given))
        rope = heads[..., given.nope_dim :].unsqueeze(2).contiguous()
        return heads[..., : given.nope_dim], torch.ops.npu.npu_interleave_rope(rope, cosine, sine).squeeze(2)

    def gathered(self, step: LayerStep) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Latents ``[tokens, latent_dim]`` and rope keys of each request of the step, in order of their positions."""
        result = []
        for request, total in zip(step.requests, step.kv_lengths, strict=True):
            token = torch.arange(total, device=self.target.device)
            page = self.inputs.own_table[request, token // self.inputs.page_size].to(torch.int64)
            slots = page * self.inputs.page_size + token % self.inputs.page_size
            latents, ropes = (self.read(cache, slots) for cache in (self.key_cache, self.value_cache))
            result.append((latents, ropes))
        return result

    def read(self, cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Rows of a pool, ``[tokens, dim]``."""
        pages, size, _, dim = cache.shape
        if self.read_in_nz:
            cache = cache.view(pages, dim // STRIP, size, STRIP).transpose(1, 2)
        return cache.reshape(pages * size, dim)[slots]

    def expanded(self, latents: torch.Tensor, ropes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys ``[tokens, heads, nope_dim + rope_dim]`` and values ``[tokens, heads, value_dim]``."""
        nope = rounded(latents, self.weights.k_up.transpose(1, 2)).transpose(0, 1)
        values = rounded(latents, self.weights.v_up).transpose(0, 1)
        rope = ropes.unsqueeze(1).expand(-1, self.weights.heads, -1)
        return torch.cat([nope, rope], dim=-1), values.contiguous()

    def fused(self, step: LayerStep, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """FIA v2 TND without pages: both lists of lengths are cumulative."""
        arguments = {
            "input_layout": "TND",
            "actual_seq_qlen": list(itertools.accumulate(step.query_lengths)),
            "actual_seq_kvlen": list(itertools.accumulate(step.kv_lengths)),
            "atten_mask": compressed_mask(str(query.device)),
            "num_query_heads": self.weights.heads,
            "num_key_value_heads": self.weights.heads,
            "softmax_scale": self.scale,
            "sparse_mode": 3,
            "return_softmax_lse": True,
        }
        output, _ = FusedCall("npu_fused_infer_attention_score_v2", query, key, value, arguments)()
        return output

    def composed(self, step: LayerStep, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """scaled_dot_product_attention, request by request."""
        new, total = list(step.query_lengths), list(step.kv_lengths)
        requests = zip(torch.split(query, new), torch.split(key, total), torch.split(value, total), strict=True)
        return torch.cat([self.one(*(part.transpose(0, 1) for part in request)) for request in requests])

    def one(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Causal attention of the last rows of one request, ``[rows, heads, value_dim]``."""
        rows, keys = query.shape[1], key.shape[1]
        seen = torch.ones(rows, keys, dtype=torch.bool, device=query.device).tril(keys - rows)
        result = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=self.scale)
        return result.transpose(0, 1)

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return self.inputs.scale

    def decode(self, step: LayerStep, given: MlaPreprocessInputs) -> torch.Tensor:
        """Absorbed: queries in the latent space, and the output of attention brought up from it.

        The simulator has no attention with rope inputs, nor the paged one of ATB: what both compute is composed.
        """
        outputs = self.preprocessed(given)
        self.keep(outputs)
        return self.absorbed(step, torch.cat([outputs["query_nope"], outputs["query_rope"]], dim=-1))

    def absorbed(self, step: LayerStep, query: torch.Tensor) -> torch.Tensor:
        """Attention of queries ``[tokens, heads, latent_dim + rope_dim]`` over latents, brought up to values."""
        results = []
        for rows, (latents, ropes) in zip(
            torch.split(query, list(step.query_lengths)), self.gathered(step), strict=True
        ):
            keys = torch.cat([latents, ropes], dim=-1).float()
            scores = rows.transpose(0, 1).float() @ keys.T * self.scale  # [heads, rows, tokens]
            seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=query.device).tril(len(keys) - len(rows))
            weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1).to(latents.dtype)
            results.append(rounded(weights, latents))
        return rounded(torch.cat(results, dim=1), self.weights.v_up).transpose(0, 1)

    def preprocessed(self, given: MlaPreprocessInputs) -> Outputs:
        """Queries and caches of a decode: fused where the sizes allow it, by norm and cache operators, or composed."""
        if not self.inputs.mlapo:
            return mla_preprocess.native_mla_preprocess(given, self.target)
        size, rank = given.q_a_weight.shape
        if size in PROLOG_SIZES and rank == PROLOG_RANK:
            return mla_preprocess.prolog_v3(given, given.layout)
        return mla_preprocess.rms_norm_cache_path(given, self.target)

    def cached(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the pool, as they were written."""
        pools = (self.as_laid(cache) for cache in (self.key_cache, self.value_cache))
        latents, ropes = (
            (pool.transpose(1, 2) if self.written_in_nz else pool).reshape(-1, 1, size)[slots]
            for pool, size in zip(pools, (cache.shape[-1] for cache in (self.key_cache, self.value_cache)), strict=True)
        )
        return latents, ropes
