"""What stands before MLA attention in sglang: ``hardware_backend/npu/attention/mla_preprocess.py``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.attention import mla_preprocess as module
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from npudiff import Target, implementation
from npudiff.device.ascend.mla_preprocess import DIMS, NO_SKIPPING, PROLOG
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.pool_world import NZ, buffers, of_mla
from npudiff.device.backends.sglang.world import configured, environment, filled, flags_of
from npudiff.model.constraints import Box
from npudiff.reference.mla_preprocess import MlaPreprocessInputs

Outputs = dict[str, torch.Tensor]

_LAYER = 0
"""The first layer of a pass looks up the angles, and leaves them for the others."""

_ORDERS: tuple[Box, ...] = ({NZ: ("0",), "layout": ("PA_BSND",)}, {NZ: ("1",), "layout": ("PA_NZ",)})
_UNQUANTISED: Box = {**DIMS, **NO_SKIPPING, "page_size": (PAGE,), "quantised": (False,)}


class _Projection(torch.nn.Module):
    """A linear layer as sglang's are called: it returns a bias besides, which it has not."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.t().contiguous(), requires_grad=False)
        self.input_size, self.quant_method = weight.shape[0], SimpleNamespace()

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the product."""
        return torch.nn.functional.linear(states, self.weight), None


def _norm(weight: torch.Tensor, epsilon: float) -> Any:  # noqa: ANN401 - sglang's
    made: Any = RMSNorm(len(weight), epsilon).to(weight.device, weight.dtype)
    filled(made.weight, weight)
    return made


def _prepared(inputs: MlaPreprocessInputs, quant_config: object) -> Outputs:
    """Build the module as a layer of DeepSeek does, and prepare a decode."""
    configured()
    pool = of_mla(inputs.latent_cache, inputs.rope_cache, PAGE, inputs, layer=_LAYER)
    joined = _Projection(torch.cat([inputs.q_a_weight, inputs.kv_a_weight], dim=1))
    backend = SimpleNamespace(token_to_kv_pool=pool, page_size=PAGE, kv_lora_rank=len(inputs.kv_a_norm),
                              qk_rope_head_dim=inputs.rope_dim)  # fmt: skip
    with environment(flags_of(inputs)), forward_context(ForwardContext(attn_backend=backend)):
        module.is_fia_nz.cache_clear()  # it reads the environment once
        layer = module.NPUFusedMLAPreprocess(
            joined, _norm(inputs.q_a_norm, inputs.epsilon), _norm(inputs.kv_a_norm, inputs.epsilon),
            _Projection(inputs.q_b_weight), inputs.k_up_weight, SimpleNamespace(cos_sin_cache=inputs.cos_sin_cache),
            _LAYER, inputs.heads, inputs.nope_dim, inputs.rope_dim, inputs.nope_dim, quant_config,
        )  # fmt: skip
        batch = SimpleNamespace(out_cache_loc=inputs.slots)
        said = layer.forward(inputs.positions, inputs.hidden, batch, None)
    module.is_fia_nz.cache_clear()
    latent, rope = buffers(pool, _LAYER)
    caches = {"latent_cache": latent, "rope_cache": rope}
    return {"query_nope": said[2], "query_rope": said[0],
            **{name: cache.view(-1).view(getattr(inputs, name).shape) for name, cache in caches.items()}}  # fmt: skip


@implementation(
    "mla_preprocess",
    name="NPUFusedMLAPreprocess",
    supports=[{**_UNQUANTISED, **order} for order in _ORDERS],
    options={NZ: ("0", "1")},
    on_device=True,
)
def one_after_the_other(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """NPUFusedMLAPreprocess of a model that is not quantised: norms, products, and npu_kv_rmsnorm_rope_cache."""
    return _prepared(inputs, None)


@implementation(
    "mla_preprocess",
    name="NPUFusedMLAPreprocess.forward_mlaprolog",
    supports=[{**PROLOG, "page_size": (PAGE,), "hidden_size": (7168,), **order} for order in _ORDERS],
    options={NZ: ("0", "1")},
    on_device=True,
)
def prolog(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """NPUFusedMLAPreprocess where kv_b_proj is left out of quantisation: npu_mla_prolog_v3."""
    return _prepared(inputs, SimpleNamespace(ignore=["model.layers.0.self_attn.kv_b_proj"]))
