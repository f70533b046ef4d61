"""MLA's way into the cache: the latent is normalised, the rope key rotated, and both are written at their slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import FLOAT32_ROUNDOFF, Expected, Updated
from npudiff.reference.paged_cache import written
from npudiff.reference.rms_norm import RmsNormInputs, rms_norm
from npudiff.reference.rotary import RotaryInputs, rotary
from npudiff.reference.views import moved_inputs

INT8 = (-128, 127)


@dataclass(frozen=True)
class KvRmsnormRopeCacheInputs:
    """Compressed keys and values of new tokens, where they go, and what the caches hold before."""

    kv: torch.Tensor
    """``[batch, length, latent_dim + rope_dim]``, bfloat16 or float16: the latent, then the rope key, whose pairs are
    neighbours."""
    weight: torch.Tensor
    """``[latent_dim]``, of the same dtype."""
    epsilon: float
    """Added to the mean of squares of the latent."""
    positions: torch.Tensor
    """int64 ``[batch, length]``: rows of the table."""
    cos_sin_cache: torch.Tensor
    """``[positions, rope_dim]``, of the same dtype: cosines of all frequencies, then their sines."""
    latent_cache: torch.Tensor
    rope_cache: torch.Tensor
    """The caches before the write, of one head, in the shape of the layout (``reference.cache_layout``): of the dtype
    of ``kv``, or int8 where there are scales."""
    slots: torch.Tensor
    """int64 ``[batch, length]``: ``page * page_size + offset``, or -1 for a token that is written nowhere. No slot but
    0 is named twice."""
    page_size: int
    """Tokens per page."""
    layout: str
    """``PA_BSND`` or ``PA_NZ``."""
    latent_scale: torch.Tensor | None = None
    rope_scale: torch.Tensor | None = None
    """float32 ``[latent_dim]`` and ``[rope_dim]``: what an element is multiplied by before it is rounded to int8."""
    dummy_page: bool = True
    """Whether page 0 is a dummy to which padded tokens are written; otherwise it is one like the others."""

    @property
    def latent_dim(self) -> int:
        """Elements that are normalised."""
        return self.weight.shape[0]

    @property
    def rope_dim(self) -> int:
        """Elements that are rotated."""
        return self.cos_sin_cache.shape[1]

    def to(self, device: str | torch.device) -> KvRmsnormRopeCacheInputs:
        """Return the same inputs on ``device``; the caches are copies, so that a write leaves these as they are."""
        return moved_inputs(self, device, copies=("latent_cache", "rope_cache"))


def kv_rmsnorm_rope_cache(inputs: KvRmsnormRopeCacheInputs) -> dict[str, Expected | Updated]:
    """Return normalised latents, rotated rope keys, and the caches after both are written.

    It is ``rms_norm`` of the first ``latent_dim`` elements and ``rotary`` of the others, which are read as neighbours
    and written as halves; with the write of ``paged_cache``. Nothing is defined here that is not defined there.

    Returns
    -------
    dict
        ``rope``: ``[batch, length, rope_dim]`` and ``latent``: ``[batch, length, latent_dim]``, of the dtype of ``kv``,
        never quantised. ``rope_cache`` and ``latent_cache``, of the shape and dtype of the inputs.

    Raises
    ------
    ValueError
        If shapes contradict each other, or a slot lies outside.

    Notes
    -----
    A correct device rounds latent and rope key to the dtype of ``kv`` before it quantises, or quantises what it has in
    float32; an int8 may be one off where these lie on both sides of a half.
    """
    _validate(inputs)
    batch, length, _ = inputs.kv.shape
    tokens = inputs.kv.reshape(batch * length, 1, -1)
    latent = rms_norm(RmsNormInputs(tokens[:, 0, : inputs.latent_dim], None, inputs.weight, inputs.epsilon, "plain"))[
        "output"
    ]
    keys = tokens[..., inputs.latent_dim :]
    rope = rotary(RotaryInputs(keys, keys, inputs.positions.flatten(), inputs.cos_sin_cache, "interleaved_to_half"))[
        "key"
    ]
    rope = Expected(rope.value[:, 0], rope.bound[:, 0], rope.dtype)
    return {
        "rope": _shaped(rope, batch, length),
        "latent": _shaped(latent, batch, length),
        "rope_cache": written(inputs, inputs.rope_cache, _stored(rope, inputs.rope_scale), dummy=inputs.dummy_page),
        "latent_cache": written(
            inputs, inputs.latent_cache, _stored(latent, inputs.latent_scale), dummy=inputs.dummy_page
        ),
    }


def _shaped(rows: Expected, batch: int, length: int) -> Expected:
    gain = None if rows.gain is None else rows.gain.reshape(batch, length)
    return Expected(rows.value.reshape(batch, length, -1), rows.bound.reshape(batch, length, -1), rows.dtype, gain)


def _stored(rows: Expected, scale: torch.Tensor | None) -> Expected:
    """Rows ``[tokens, dim]`` as the cache holds them: of one head, and quantised where there is a scale."""
    rows = rows if scale is None else _quantised(rows, scale)
    return Expected(rows.value.unsqueeze(1), rows.bound.unsqueeze(1), rows.dtype)


def _quantised(rows: Expected, scale: torch.Tensor) -> Expected:
    """Round to int8; the bound is how far the rounded ends of the interval of correct values are apart."""
    wide = scale.to(torch.float64)
    product = rows.value * wide
    error = rows.bound * wide.abs() + product.abs() * 2 * FLOAT32_ROUNDOFF
    value, low, high = ((product + step).round().clamp(*INT8) for step in (torch.zeros_like(error), -error, error))
    return Expected(value, torch.maximum(high - value, value - low), torch.int8)


def _validate(inputs: KvRmsnormRopeCacheInputs) -> None:
    batch, length, width = inputs.kv.shape
    if width != inputs.latent_dim + inputs.rope_dim:
        raise ValueError(f"kv must be {inputs.latent_dim} + {inputs.rope_dim} wide, got {width}")
    for name in ("positions", "slots"):
        if getattr(inputs, name).shape != (batch, length):
            raise ValueError(f"{name} must be [{batch}, {length}], got {list(getattr(inputs, name).shape)}")
    if (inputs.latent_scale is None) != (inputs.rope_scale is None):
        raise ValueError("scales are given for both caches, or for neither")
