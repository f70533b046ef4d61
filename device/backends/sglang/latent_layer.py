"""A layer of latent attention of sglang: its projections, norms and rope, as a model with MLA has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.modelslim.modelslim import ModelSlimConfig, ModelSlimLinearMethod
from sglang.srt.layers.quantization.modelslim.schemes.modelslim_w8a8_int8 import ModelSlimW8A8Int8
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.rope_variant import DeepseekScalingRotaryEmbedding
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.latent_world import Flags
from npudiff.device.backends.sglang.pool_world import DEVICE
from npudiff.device.backends.sglang.world import alone, configured, filled


class Projection(torch.nn.Module):
    """A linear layer as sglang's are called: it returns a bias besides, which it has not."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.t().contiguous(), requires_grad=False)
        self.input_size, self.quant_method = weight.shape[0], SimpleNamespace()

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the product."""
        return torch.nn.functional.linear(states, self.weight), None


class Int8Projection(torch.nn.Module):
    """A linear layer of a static W8A8 checkpoint of ModelSlim: its scheme makes parameters, and processes them.

    Parameters
    ----------
    weight : torch.Tensor
        int8 ``[inner, columns]``.
    steps : torch.Tensor
        float32 ``[columns]``, what a whole number of a column is worth.
    input_step, offset : float, int
        What a whole number of the states is worth, and which of them is 0.
    """

    def __init__(self, weight: torch.Tensor, steps: torch.Tensor, input_step: float, offset: int) -> None:
        super().__init__()
        alone()
        inner, columns = weight.shape
        self.input_size = inner
        self.scheme: Any = ModelSlimW8A8Int8({}, "")
        self.quant_method = ModelSlimLinearMethod(ModelSlimConfig({}))
        with torch.device(weight.device):
            self.scheme.create_weights(self, inner, [columns], inner, columns, torch.bfloat16)
        checkpoint = {
            "weight": weight.t(),
            "weight_scale": steps.unsqueeze(1),
            "weight_offset": torch.zeros_like(steps).unsqueeze(1),
            "input_scale": torch.tensor([input_step]),
            "input_offset": torch.tensor([float(offset)]),
            "quant_bias": -offset * weight.sum(dim=0, dtype=torch.int32),
            "deq_scale": steps * input_step,
        }
        for name, values in checkpoint.items():
            filled(getattr(self, name), values)
        self.quant_method.process_weights_after_loading(self)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the product."""
        return self.quant_method.apply(self, states), None


def norm(weight: torch.Tensor, epsilon: float) -> Any:  # noqa: ANN401 - sglang's
    """Return a norm with the weight of a case."""
    made: Any = RMSNorm(len(weight), epsilon).to(weight.device, weight.dtype)
    filled(made.weight, weight)
    return made


def deepseek_rope(table: torch.Tensor, dtype: torch.dtype) -> Any:  # noqa: ANN401 - sglang's
    """Return DeepSeek's rope with a table of a case, ``[positions, rope_dim]``, in both forms that it keeps."""
    configured()
    dim = table.shape[1]
    made: Any = DeepseekScalingRotaryEmbedding(dim, dim, 1, 10000, False, 1.0, dtype, device=DEVICE)
    made.cos_sin_cache = table
    made.cos_cached_total, made.sin_cached_total = (
        torch.cat([half, half], dim=-1).float() for half in table.chunk(2, dim=-1)
    )
    return made


def plain_rope(table: torch.Tensor, dtype: torch.dtype) -> Any:  # noqa: ANN401 - sglang's
    """Return the rope of a model with MLA whose configuration scales nothing, with a table of a case."""
    configured()
    dim = table.shape[1]
    made: Any = RotaryEmbedding(dim, dim, 1, 10000, False, dtype)
    made.cos_sin_cache = table.to(made.cos_sin_cache.dtype)
    return made.to(table.device)


@contextlib.contextmanager
def forward_pass(pool: Any, rank: int, rope_dim: int, inputs: object) -> Iterator[None]:  # noqa: ANN401 - sglang's
    """Be inside a forward pass over a pool of latents, with the flags of a case."""
    configured()
    backend = SimpleNamespace(token_to_kv_pool=pool, page_size=PAGE, kv_lora_rank=rank, qk_rope_head_dim=rope_dim)
    with Flags(inputs), forward_context(ForwardContext(attn_backend=backend)):
        yield
