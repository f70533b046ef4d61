"""Cosines and sines of rotary embedding at asked positions, under every scaling; and the softmax scale beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from npudiff.reference.bounds import FLOAT32_ROUNDOFF, Expected, underflow_step, unit_roundoff
from npudiff.reference.rope_scaling import (
    FLOAT32_INTEGERS,
    FUNCTION_ERROR,
    RopeConfig,
    amplitude,
    check_config,
    frequencies,
    softmax_scale,
)

REDUCTION_ERROR = FLOAT32_ROUNDOFF
"""Absolute error of a sine or cosine whose argument was reduced to an octant first: one rounding of the octant. It is
what bounds a result near 0 at an angle that is known exactly."""

SCALE_ROUNDINGS = 14
"""Float32 roundings of a softmax scale: the amplitude's logarithm, product and sum (5), squared (11), times the root of
the head dim (14). Backends compute it in double precision on the host and round once; a kernel may compute it."""


@dataclass(frozen=True)
class RopeCacheInputs:
    """Positions of some tokens, and the rope of their layer."""

    positions: torch.Tensor
    """int64 ``[tokens]``."""
    offsets: torch.Tensor | None
    """int32 or int64 ``[tokens]``, added to positions: together they are rows of the table."""
    config: RopeConfig
    """The rope of this layer."""
    other: RopeConfig | None
    """The rope of other layers of the model, which is built after this one. Nothing of it may show."""
    lengths: tuple[int, ...]
    """Rows of the table at first, and after each growth; rising."""
    first_row: int
    """No row before this one is asked for, so none has to be built: long contexts stay cheap to test."""
    dtype: torch.dtype
    """Dtype of cosines and sines: float32, bfloat16 or float16."""

    @property
    def rows(self) -> torch.Tensor:
        """Rows of the table: int64 ``[tokens]``."""
        return self.positions if self.offsets is None else self.positions + self.offsets.to(torch.int64)

    def to(self, device: str | torch.device) -> RopeCacheInputs:
        """Return the same inputs on ``device``."""
        offsets = None if self.offsets is None else self.offsets.to(device)
        return replace(self, positions=self.positions.to(device), offsets=offsets)


def rope_cache(inputs: RopeCacheInputs) -> dict[str, Expected]:
    """Return cosines and sines at the asked positions, the table's rows, and the softmax scale.

    The angles are ``row * frequency``. Of several linear factors, each has a section of the table that counts from 0.

    Returns
    -------
    dict
        ``cos`` and ``sin``: ``[tokens, 1, 1, width]``, the halves repeated, so that column ``i`` and ``i + width / 2``
        belong to pair ``i``. ``table``: ``[tokens, width]``, the cosines of all pairs, then their sines.
        ``softmax_scale``: float32 ``[1]``.

    Raises
    ------
    ValueError
        If the configuration contradicts itself, or a row is outside the table.

    Notes
    -----
    The value is that of exact angles, in float64. Backends compute frequencies and angles in float32, so at large
    positions two correct tables differ by more than any rounding of their entries: a frequency of relative error ``e``
    is off by ``p e f`` radians at position ``p``. The bound admits just that, from the roundings of each frequency. The
    contract could instead have been "the frequency rounded to float32, times the position in float32": it would not be
    much tighter, since float32 powers differ by roundings too, and it would accuse a device that computes with more
    precision. The error and the effect of a wrong position grow alike with ``f``, so in float32 one position too far is
    above the bound at every pair up to position 2**19. Pair 0 turns by exactly 1 radian per position in most kinds:
    there the bound stays at a few roundings however large the position is.
    """
    _validate(inputs)
    angle, error = _angles(inputs)
    factor = amplitude(inputs.config)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    bounds = tuple(
        _bound(exact, slope, angle, error, factor, inputs.dtype) for exact, slope in ((cosine, sine), (sine, cosine))
    )
    values = (cosine * factor, sine * factor)
    scale = torch.tensor([softmax_scale(inputs.config)], dtype=torch.float64)
    return {
        **{
            name: Expected(_repeated(value), _repeated(bound), inputs.dtype)
            for name, value, bound in zip(("cos", "sin"), values, bounds, strict=True)
        },
        "table": Expected(torch.cat(values, dim=1), torch.cat(bounds, dim=1), inputs.dtype),
        "softmax_scale": Expected(scale, scale * SCALE_ROUNDINGS * FLOAT32_ROUNDOFF, torch.float32),
    }


def entry_rounding(exact: torch.Tensor, angle: torch.Tensor, factor: float, dtype: torch.dtype) -> torch.Tensor:
    """Return the error of an entry whose angle is known: of the function, the amplitude, and the cast.

    Parameters
    ----------
    exact : torch.Tensor
        float64 cosine or sine, without the amplitude.
    angle : torch.Tensor
        float64, in radians; broadcasts to ``exact``.
    factor : float
        The amplitude.
    dtype : torch.dtype
        What the entry is stored as.
    """
    error = exact.abs() * FUNCTION_ERROR + REDUCTION_ERROR * (angle > math.pi / 4)
    if factor != 1:
        error = factor * (error + 2 * FLOAT32_ROUNDOFF * (exact.abs() + error))  # the amplitude, and its product
    rounding = 0.0 if dtype == torch.float32 else unit_roundoff(dtype)
    step = 0.0 if dtype == torch.float32 else underflow_step(dtype)
    return error + rounding * (factor * exact.abs() + error) + step


def _bound(
    exact: torch.Tensor,
    slope: torch.Tensor,
    angle: torch.Tensor,
    error: torch.Tensor,
    factor: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """How far an entry may be off: by the error of its angle, along the curve, and by its own roundings."""
    moved = torch.minimum(slope.abs() * error + error.square() / 2, 1 + exact.abs())
    return factor * moved + entry_rounding((exact.abs() + moved).clamp(max=1), angle, factor, dtype)


def _angles(inputs: RopeCacheInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles of exact frequencies, ``[tokens, width / 2]``, and how far those of a float32 device may be from them."""
    pairs = frequencies(inputs.config)
    position, factor = _scaled_positions(inputs.config, inputs.rows)
    angle = (position / factor).unsqueeze(1) * pairs.value
    division = torch.where(factor.log2() % 1 == 0, 0.0, 2 * FLOAT32_ROUNDOFF).unsqueeze(1)  # exact by powers of two
    relative = pairs.relative + division
    product = torch.where(relative == 0, 0.0, FLOAT32_ROUNDOFF)  # by a frequency of exactly 1, or 0
    return angle, angle * (relative + product + relative * product)


def _scaled_positions(config: RopeConfig, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the position within its section, and what it is divided by, of each row; both float64 ``[tokens]``."""
    if config.kind != "linear":
        return rows.to(torch.float64), torch.ones(len(rows), dtype=torch.float64)
    factors = torch.tensor(config.factors, dtype=torch.float64)
    if not config.sections:
        return rows.to(torch.float64), factors.expand(len(rows))
    ends = torch.tensor(config.sections).cumsum(0)
    section = torch.searchsorted(ends, rows, right=True)
    starts = ends - torch.tensor(config.sections)
    return (rows - starts[section]).to(torch.float64), factors[section]


def _repeated(half: torch.Tensor) -> torch.Tensor:
    return torch.cat([half, half], dim=1)[:, None, None, :]


def _validate(inputs: RopeCacheInputs) -> None:
    config, lengths = inputs.config, inputs.lengths
    check_config(config)
    if inputs.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is float32, bfloat16 or float16, got {inputs.dtype}")
    if not lengths or sorted(set(lengths)) != list(lengths) or not 1 <= lengths[0] <= lengths[-1] <= FLOAT32_INTEGERS:
        raise ValueError(f"lengths must rise, in 1..{FLOAT32_INTEGERS}, got {lengths}")
    if config.sections and lengths != (sum(config.sections),):
        raise ValueError(f"a table of sections {config.sections} has {sum(config.sections)} rows, got {lengths}")
    if not 0 <= inputs.first_row < lengths[-1]:
        raise ValueError(f"first_row must lie in 0..{lengths[-1] - 1}, got {inputs.first_row}")
    if inputs.offsets is not None and inputs.offsets.shape != inputs.positions.shape:
        raise ValueError(f"{len(inputs.positions)} positions, but offsets {list(inputs.offsets.shape)}")
    if bool(((inputs.rows < inputs.first_row) | (inputs.rows >= lengths[-1])).any()):
        raise ValueError(f"positions plus offsets must lie in {inputs.first_row}..{lengths[-1] - 1}")
