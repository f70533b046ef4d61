"""Latent attention's write into the cache in a prefill of sglang: ``forward_mha_prepare_npu``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.modules.deepseek_v2_attention_mla_npu import forward_mha_prepare_npu

from npudiff import Target, implementation
from npudiff.device.ascend.kv_rmsnorm_rope_cache import OPERATOR, PAGED
from npudiff.device.ascend.mlapo import neighbours_to_halves
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.latent_layer import deepseek_rope, forward_pass, norm, plain_rope
from npudiff.device.backends.sglang.pool_world import NZ, buffers, of_mla
from npudiff.device.backends.sglang.world import options_of
from npudiff.model.constraints import Box
from npudiff.reference.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheInputs

Outputs = dict[str, torch.Tensor]

_LAYER = 1

MLAPO = "SGLANG_NPU_USE_MLAPO"
SCALING = "rope_scaling"
"""Whether a model's configuration scales its rope, as DeepSeek's do, or not, as LongCat-Flash's does not."""

_PAGES: Box = {**OPERATOR, **PAGED, "page_size": (PAGE,), "quantised": (False,), "padding": ("slot 0",)}
_SCALED: Box = {**_PAGES, SCALING: ("yarn",)}
_PLAIN: Box = {**_PAGES, SCALING: ("unscaled",), NZ: ("0",), "layout": ("PA_BSND",), "batch": range(1, 9),
               "length": range(1, 5)}  # fmt: skip
"""A Triton kernel rotates there, whose interpreter wants few rows."""


class _Prefill:
    """The attention of a layer without a latent of queries, as DeepSeek-V2-Lite has; it keeps what its last steps get.

    Parameters
    ----------
    inputs : KvRmsnormRopeCacheInputs
        On the device.
    scaled : bool
        Whether the configuration scales the rope.
    """

    layer_id, num_local_heads, qk_nope_head_dim, v_head_dim = _LAYER, 1, 128, 128
    q_lora_rank, use_dsa = None, False

    def __init__(self, inputs: KvRmsnormRopeCacheInputs, *, scaled: bool) -> None:
        rope = deepseek_rope if scaled else plain_rope
        self.kv_lora_rank, self.qk_rope_head_dim = inputs.latent_dim, inputs.rope_dim
        self.qk_head_dim = self.qk_nope_head_dim + inputs.rope_dim
        self.kv_a_layernorm = norm(inputs.weight, inputs.epsilon)
        self.rotary_emb: Any = rope(inputs.cos_sin_cache, inputs.kv.dtype)
        self.use_deepseek_yarn_rope = scaled
        self.outputs: Outputs = {}

    def kv_a_proj_with_mqa(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the states, which are latents and rope keys here."""
        return states, None

    def q_proj(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return queries of which nothing is asked."""
        return states.new_zeros(len(states), self.qk_head_dim), None

    def kv_b_proj(self, latents: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Keep the latents that keys and values are made of."""
        self.outputs["latent"] = latents
        return latents.new_zeros(len(latents), self.qk_nope_head_dim + self.v_head_dim), None

    def _concat_and_cast_mha_k(self, nope: torch.Tensor, rope: torch.Tensor, batch: object) -> torch.Tensor:
        """Keep the rope keys."""
        del batch
        self.outputs["rope"] = rope
        return nope


def _as_neighbours(rope: torch.Tensor) -> torch.Tensor:
    """Put the parts of pairs, which lie in two halves, beside each other."""
    return torch.stack(rope.chunk(2, dim=-1), dim=-1).flatten(-2)


@implementation(
    "kv_rmsnorm_rope_cache",
    name="forward_mha_prepare_npu",
    supports=[
        {**_SCALED, NZ: ("0",), "layout": ("PA_BSND",)},
        {**_SCALED, NZ: ("1",), "layout": ("PA_NZ",)},
        _PLAIN,
    ],
    options={NZ: ("0", "1"), SCALING: ("yarn", "unscaled"), MLAPO: ("0", "1")},
    on_device=True,
)
def of_prefill(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """forward_mha_prepare_npu: npu_kv_rmsnorm_rope_cache, or norm, rope and the pool's writer where nothing is scaled.

    Rope keys lie in halves where decode has them so. Without scaling and without MLAPO it has pairs as neighbours, and
    so has prefill: these are put into halves here.
    """
    options = options_of(inputs)
    pairs = options[SCALING] == "unscaled" and options[MLAPO] == "0"
    before = _as_neighbours(inputs.rope_cache) if pairs else inputs.rope_cache
    pool = of_mla(inputs.latent_cache, before, PAGE, inputs, layer=_LAYER)
    model = _Prefill(inputs, scaled=options[SCALING] == "yarn")
    batch = SimpleNamespace(out_cache_loc=inputs.slots.flatten())
    with forward_pass(pool, inputs.latent_dim, inputs.rope_dim, inputs):
        forward_mha_prepare_npu(model, inputs.positions.flatten(), inputs.kv.flatten(0, 1), batch, None, False)
    (requests, length, _), (latent, rope) = inputs.kv.shape, buffers(pool, _LAYER)
    outputs = {name: rows.reshape(requests, length, -1) for name, rows in model.outputs.items()}
    outputs["latent_cache"] = latent.view(-1).view(inputs.latent_cache.shape)
    outputs["rope_cache"] = rope.view(-1).view(inputs.rope_cache.shape)
    if pairs:
        outputs |= {name: neighbours_to_halves(outputs[name], 0) for name in ("rope", "rope_cache")}
    return outputs
