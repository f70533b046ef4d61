"""What a decoder layer is given: weights, hidden states of all steps, and where keys and values go."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.moe_experts import Experts
from npudiff.reference.views import moved_inputs


@dataclass(frozen=True)
class GroupedQueryWeights:
    """Attention of Step-3.5: grouped queries, Gemma norms of every head, and a gate for each."""

    qkv: torch.Tensor
    """``[hidden_size, (heads + 2 * kv_heads) * head_dim]``: queries, then keys, then values."""
    query_norm: torch.Tensor
    key_norm: torch.Tensor
    """``[head_dim]``: Gemma weights, to which 1 is added."""
    gate: torch.Tensor
    """``[hidden_size, heads]``: the sigmoid of its product multiplies a head's output."""
    output: torch.Tensor
    """``[heads * head_dim, hidden_size]``."""

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.gate.shape[1]

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.query_norm.shape[0]

    @property
    def kv_heads(self) -> int:
        """KV heads."""
        return (self.qkv.shape[1] // self.head_dim - self.heads) // 2


@dataclass(frozen=True)
class LatentWeights:
    """Attention of DeepSeek: queries and keys from latents, and one rope key for all heads."""

    q_a: torch.Tensor
    q_a_norm: torch.Tensor
    q_b: torch.Tensor
    kv_a: torch.Tensor
    kv_a_norm: torch.Tensor
    k_up: torch.Tensor
    """As in ``reference.mla_preprocess.MlaPreprocessInputs``."""
    v_up: torch.Tensor
    """``[heads, latent_dim, value_dim]``: the up-projection of values."""
    output: torch.Tensor
    """``[heads * value_dim, hidden_size]``."""

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.k_up.shape[0]

    @property
    def nope_dim(self) -> int:
        """Elements of a head that are not rotated."""
        return self.k_up.shape[1]

    @property
    def latent_dim(self) -> int:
        """Elements of the keys' latent."""
        return self.k_up.shape[2]


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts, and how they are chosen."""

    router: torch.Tensor
    """float32 ``[hidden_size, experts]``: logits are computed and kept in float32."""
    bias: torch.Tensor
    """float32 ``[experts]``: added to sigmoids for the choice, and not to the weights."""
    routed: Experts
    """The matrices of all experts, and the limit of their activation."""
    shared: Experts
    """One expert that every token has, with weight 1."""
    top_k: int
    """Experts of a token."""
    groups: int
    kept_groups: int
    """As in ``reference.moe_gating``."""
    scaling: float
    """Factor of the weights, which are renormalised."""


@dataclass(frozen=True)
class LayerStep:
    """One forward pass: the new tokens of some requests, one request after the other."""

    requests: tuple[int, ...]
    """Rows of the block tables."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    """New tokens and total tokens, the new ones included, of each of them."""

    @property
    def tokens(self) -> int:
        """New tokens of the step."""
        return sum(self.query_lengths)


@dataclass(frozen=True)
class DecoderLayerInputs:
    """One layer and the steps that go through it, one after the other, over the same cache."""

    hidden: torch.Tensor
    residual: torch.Tensor
    """bfloat16 ``[tokens, hidden_size]``: what the layer before hands over, for the tokens of all steps. Their sum is
    normalised, and is the residual of attention."""
    steps: tuple[LayerStep, ...]
    """Their tokens follow each other in ``hidden``."""
    positions: torch.Tensor
    """int64 ``[tokens]``."""
    cos_sin_cache: torch.Tensor
    """bfloat16 ``[positions, rotary_dim]``: cosines of all frequencies, then their sines."""
    attention: GroupedQueryWeights | LatentWeights
    """They say of which kind the layer is."""
    experts: Mixture
    """The mixture of experts."""
    input_norm: torch.Tensor
    post_norm: torch.Tensor
    """``[hidden_size]``: weights of the norms before attention and before the experts; Gemma's with grouped queries."""
    epsilon: float
    """Of all norms."""
    scale: float
    """Factor of attention scores."""
    window: int | None
    """Visible keys, the query's own included; None for a full-attention layer."""
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    """The pool of this layer before the first step, ``[pages, page_size, kv_heads, dim]``; with latents, ``key_cache``
    holds these and ``value_cache`` the rope keys, as the backend's pool calls them. A pool in another layout holds
    as many bytes."""
    slots: torch.Tensor
    sliding_slots: torch.Tensor
    """int64 ``[tokens]``: where a token goes in the pool of full layers, and in that of sliding ones."""
    block_table: torch.Tensor
    sliding_block_table: torch.Tensor
    """int32 ``[requests, pages]`` of both pools."""
    use_fia: bool = True
    fia_nz: bool = False
    mlapo: bool = False
    native_norm: bool = False
    """Flags of the backend: ASCEND_USE_FIA, SGLANG_USE_FIA_NZ, SGLANG_NPU_USE_MLAPO and
    SGLANG_NPU_FORWARD_NATIVE_GEMMA_RMS_NORM. They choose paths, and nothing here depends on them."""

    @property
    def latent(self) -> bool:
        """Whether keys and values are latents."""
        return isinstance(self.attention, LatentWeights)

    @property
    def own_slots(self) -> torch.Tensor:
        """Slots in the pool of this layer."""
        return self.slots if self.window is None else self.sliding_slots

    @property
    def own_table(self) -> torch.Tensor:
        """Block table of the pool of this layer."""
        return self.block_table if self.window is None else self.sliding_block_table

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.key_cache.shape[1]

    def to(self, device: str | torch.device) -> DecoderLayerInputs:
        """Return the same inputs on ``device``; the caches are copies, so that a write leaves these as they are."""
        return moved_inputs(self, device, copies=("key_cache", "value_cache"))


def check_inputs(inputs: DecoderLayerInputs) -> None:
    """Raise ``ValueError`` if lengths, positions, slots and tables contradict each other."""
    tokens = len(inputs.hidden)
    if sum(step.tokens for step in inputs.steps) != tokens or inputs.residual.shape != inputs.hidden.shape:
        raise ValueError(f"the steps have {sum(step.tokens for step in inputs.steps)} tokens, hidden {tokens} rows")
    lengths: dict[int, int] = {}
    start = 0
    for step in inputs.steps:
        for request, new, total in zip(step.requests, step.query_lengths, step.kv_lengths, strict=True):
            before = lengths.get(request, 0)
            if new < 1 or total != before + new:
                raise ValueError(f"request {request} has {before} tokens, and {new} more are not {total}")
            own = torch.arange(before, total)
            pages = inputs.own_table[request, own // inputs.page_size].to(torch.int64)
            rows = slice(start, start + new)
            if not torch.equal(inputs.positions[rows], own):
                raise ValueError(f"positions of request {request} must be {before} to {total - 1}")
            if not torch.equal(inputs.own_slots[rows], pages * inputs.page_size + own % inputs.page_size):
                raise ValueError(f"slots of request {request} are not those of its pages")
            lengths[request], start = total, start + new
    if inputs.window is not None and inputs.window < 1:
        raise ValueError(f"window must be at least 1 (the query's own key) or None, got {inputs.window}")
