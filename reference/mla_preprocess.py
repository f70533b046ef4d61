"""What stands before MLA attention: from hidden states to absorbed queries, rotated queries and both caches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from npudiff.reference.bounds import (
    ACCUMULATION_CONFIDENCE,
    Expected,
    Updated,
    gain_bound,
    rounding_gain,
    unit_roundoff,
)
from npudiff.reference.linear import Product, carried, carried_gain, product
from npudiff.reference.paged_cache import written
from npudiff.reference.rms_norm import Normalised, normalised
from npudiff.reference.rotary import joined, rotated
from npudiff.reference.views import moved_inputs

ROPE_STYLE = "interleaved_to_half"
"""Pairs of rope elements are neighbours in the weights' order, and halves in what is returned and cached."""


MOST_STEPS = 120
"""Steps of int8 beyond which a value, with an offset, might be clipped."""


@dataclass(frozen=True)
class Int8Steps:
    """Where a device may work in int8: what it quantises is a multiple of these, but for the normalised query."""

    hidden: float
    """Hidden states are whole multiples of it, at most 127 of them."""
    query: float
    """The normalised latent of the query is rounded to a multiple of it."""
    q_a: torch.Tensor
    kv_a: torch.Tensor
    q_b: torch.Tensor
    """float32, one for each column of these weights, which are whole multiples of it."""


@dataclass(frozen=True)
class MlaPreprocessInputs:
    """Hidden states of new tokens, the weights of the layer, and where latent and rope key go."""

    hidden: torch.Tensor
    """``[tokens, hidden_size]``, bfloat16."""
    q_a_weight: torch.Tensor
    """``[hidden_size, query_rank]``: down to the query's latent."""
    q_a_norm: torch.Tensor
    """``[query_rank]``."""
    q_b_weight: torch.Tensor
    """``[query_rank, heads * (nope_dim + rope_dim)]``: up to the heads; each has its nope part first."""
    k_up_weight: torch.Tensor
    """``[heads, nope_dim, latent_dim]``: the up-projection of keys, absorbed into queries."""
    kv_a_weight: torch.Tensor
    """``[hidden_size, latent_dim + rope_dim]``: down to the keys' latent, and the rope key."""
    kv_a_norm: torch.Tensor
    """``[latent_dim]``."""
    epsilon: float
    """Added to the mean of squares in both norms."""
    positions: torch.Tensor
    """int64 ``[tokens]``: rows of the table."""
    cos_sin_cache: torch.Tensor
    """``[positions, rope_dim]``: cosines of all frequencies, then their sines."""
    latent_cache: torch.Tensor
    rope_cache: torch.Tensor
    """The caches before the write, of one head, in the shape of the layout (``reference.cache_layout``)."""
    slots: torch.Tensor
    """int64 ``[tokens]``: ``page * page_size + offset``, or -1 for a token that is written nowhere."""
    page_size: int
    """Tokens per page."""
    layout: str
    """``PA_BSND`` or ``PA_NZ``."""
    steps: Int8Steps | None = None
    """Where a device may work in int8."""

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.k_up_weight.shape[0]

    @property
    def nope_dim(self) -> int:
        """Elements of a head that are not rotated."""
        return self.k_up_weight.shape[1]

    @property
    def latent_dim(self) -> int:
        """Elements of the keys' latent."""
        return self.k_up_weight.shape[2]

    @property
    def rope_dim(self) -> int:
        """Elements of a head, and of the rope key, that are rotated."""
        return self.cos_sin_cache.shape[1]

    def to(self, device: str | torch.device) -> MlaPreprocessInputs:
        """Return the same inputs on ``device``; the caches are copies, so that a write leaves these as they are."""
        return moved_inputs(self, device, copies=("latent_cache", "rope_cache"))


def mla_preprocess(inputs: MlaPreprocessInputs) -> dict[str, Expected | Updated]:
    """Return queries in the latent space, rotated queries, and the caches after the write.

    With ``c = norm(hidden @ q_a) @ q_b`` per head, split into nope and rope part: ``query_nope = nope @ k_up``,
    ``query_rope = rotary(rope)``; and with ``k = hidden @ kv_a``, split into latent and rope key: the caches hold
    ``norm(latent)`` and ``rotary(rope key)`` (DeepSeek-V2, 2024, eqs. 9 to 19, with the up-projection of keys absorbed
    into the query). Norms, rotation and the write are those of the components of these names.

    Returns
    -------
    dict
        ``query_nope``: ``[tokens, heads, latent_dim]`` and ``query_rope``: ``[tokens, heads, rope_dim]``, of the dtype
        of ``hidden``. ``rope_cache`` and ``latent_cache``, of the shape and dtype of the inputs.

    Raises
    ------
    ValueError
        If shapes contradict each other, or a slot lies outside.

    Notes
    -----
    A correct device accumulates products in float32 and may round what it hands from stage to stage to the dtype of
    ``hidden``. These roundings are independent, and go through the stages after them as ``reference.linear.carried``
    says; the error of a norm's factor is common to a row, and goes through as it is. In int8 only the normalised query
    is rounded, by half a step, and by float16 on the way to it; the other products are exact.
    """
    _validate(inputs)
    hidden = inputs.hidden.to(torch.float64)
    cosine, sine = inputs.cos_sin_cache[inputs.positions].to(torch.float64).chunk(2, dim=-1)
    dtype = inputs.hidden.dtype
    compressed = product(hidden, inputs.kv_a_weight.to(torch.float64), dtype)
    latent = _normed(compressed, slice(0, inputs.latent_dim), inputs.kv_a_norm, inputs.epsilon, dtype)
    key = slice(inputs.latent_dim, None)
    rope = rotated(compressed.value[:, key], compressed.independent[:, key], cosine, sine, ROPE_STYLE, dtype)
    query_nope, query_rope = _queries(inputs, hidden, cosine, sine)
    return {
        "query_nope": query_nope,
        "query_rope": query_rope,
        "rope_cache": written(inputs, inputs.rope_cache, _of_one_head(rope.value, rope.bound, dtype)),
        "latent_cache": written(inputs, inputs.latent_cache, _of_one_head(latent.value, latent.bound, dtype)),
    }


def _of_one_head(value: torch.Tensor, bound: torch.Tensor, dtype: torch.dtype) -> Expected:
    return Expected(value.unsqueeze(1), bound.unsqueeze(1), dtype)


def _normed(rows: Product, part: slice, weight: torch.Tensor, epsilon: float, dtype: torch.dtype) -> Normalised:
    wide = weight.to(torch.float64)
    return normalised(rows.value[:, part], rows.independent[:, part], wide, torch.zeros_like(wide), epsilon, dtype)


def _queries(
    inputs: MlaPreprocessInputs, hidden: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
) -> tuple[Expected, Expected]:
    """Queries in the latent space ``[tokens, heads, latent_dim]``, and rotated ones ``[tokens, heads, rope_dim]``."""
    dtype, nope = inputs.hidden.dtype, inputs.nope_dim
    down = product(hidden, inputs.q_a_weight.to(torch.float64), dtype)
    rows = _quantised(_normed(down, slice(None), inputs.q_a_norm, inputs.epsilon, dtype), inputs.steps)
    up = inputs.q_b_weight.to(torch.float64).reshape(len(inputs.q_a_norm), inputs.heads, -1).transpose(0, 1)
    heads = product(rows.value, up, dtype)  # [heads, tokens, nope_dim + rope_dim]
    absorbed = inputs.k_up_weight.to(torch.float64)
    latent = product(heads.value[..., :nope], absorbed, dtype)
    both = up[..., :nope] @ absorbed  # errors of the norm pass both products, as one matrix
    error = (
        carried(rows.independent, both)
        + carried(heads.independent[..., :nope], absorbed)
        + latent.value.abs() * rows.relative
        + latent.independent
    )
    gain = (
        carried_gain(rows.independent, both, latent.value)
        + carried_gain(heads.independent[..., :nope], absorbed, latent.value)
        + gain_bound(latent.value, latent.independent, rows.relative.squeeze(-1))
        + rounding_gain(latent.value, latent.value, dtype)
    )
    turned = heads.value[..., nope:]
    brought = carried(rows.independent, up[..., nope:]) + turned.abs() * rows.relative + heads.independent[..., nope:]
    rope = rotated(turned, brought, cosine, sine, ROPE_STYLE, dtype)
    own = rotated(turned, torch.zeros_like(turned), cosine, sine, ROPE_STYLE, dtype).bound
    back = _turned_back(rope.value, cosine, sine)
    before = torch.hypot(
        carried_gain(rows.independent, up[..., nope:], rope.value, back),
        _gain_before_turning(heads.independent[..., nope:], back, rope.value),
    )  # none of the three has to do with the others: it is one sum, by Hoeffding
    rope_gain = torch.hypot(before, gain_bound(rope.value, own)) + rows.relative.squeeze(-1)
    rope_gain = rope_gain + rounding_gain(rope.value, rope.value, dtype)
    return (
        Expected(latent.value.transpose(0, 1), error.transpose(0, 1), dtype, gain.transpose(0, 1)),
        Expected(rope.value.transpose(0, 1), rope.bound.transpose(0, 1), dtype, rope_gain.transpose(0, 1)),
    )


def _turned_back(rope: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rows times the transpose of the rotation: what an error before it is worth in the gain of a row after it."""
    first, second = rope.chunk(2, dim=-1)
    return joined(first * cosine + second * sine, second * cosine - first * sine, interleaved=True)


def _gain_before_turning(errors: torch.Tensor, back: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """Independent errors of elements before the rotation in the gain of rows after it; infinity for rows of zeros."""
    along = ACCUMULATION_CONFIDENCE * (errors * back).square().sum(dim=-1).sqrt()
    size = rope.square().sum(dim=-1)
    return torch.where(size > 0, along / size, torch.inf)


def _quantised(rows: Normalised, steps: Int8Steps | None) -> Normalised:
    """The same rows, with the error of rounding them to steps of int8 through float16."""
    if steps is None:
        return rows
    if float(rows.value.abs().max()) > MOST_STEPS * steps.query:
        raise ValueError(f"the normalised query goes beyond {MOST_STEPS} steps of {steps.query}")
    rounding = steps.query * (0.5 + 128 * unit_roundoff(torch.float16))
    return replace(rows, independent=rows.independent + rounding)


def _validate(inputs: MlaPreprocessInputs) -> None:
    tokens, size = inputs.hidden.shape
    rank, dims = len(inputs.q_a_norm), inputs.nope_dim + inputs.rope_dim
    right = {
        "q_a_weight": (size, rank),
        "q_b_weight": (rank, inputs.heads * dims),
        "kv_a_weight": (size, inputs.latent_dim + inputs.rope_dim),
        "kv_a_norm": (inputs.latent_dim,),
        "positions": (tokens,),
        "slots": (tokens,),
    }
    for name, shape in right.items():
        if tuple(getattr(inputs, name).shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(getattr(inputs, name).shape)}")
