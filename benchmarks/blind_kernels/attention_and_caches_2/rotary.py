"""Wrong kernels of rotary; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
NAME = "rotary"


def _columns(inputs, positions=None, rows=None):
    """Cosines and sines of every token, float64 [tokens, 1, rotary_dim / 2]."""
    positions = inputs.positions if positions is None else positions
    rows = inputs.cos_sin_cache[positions] if rows is None else rows
    rows, half = rows.to(torch.float64), inputs.rotary_dim // 2
    if inputs.sections:
        parts, first = [], 0
        for section, count in enumerate(inputs.sections):
            index = torch.arange(first, first + count)
            parts.append(rows[section][:, torch.cat([index, half + index])])
            first += count
        cosine, sine = (
            torch.cat([part.chunk(2, dim=-1)[side] for part in parts], dim=-1) for side in (0, 1)
        )
    else:
        cosine, sine = rows.chunk(2, dim=-1)
    return cosine.unsqueeze(1), sine.unsqueeze(1)


def _turned(states, cosine, sine, style, *, in_place=False):
    dim = 2 * cosine.shape[-1]
    wide, rest = states[..., :dim].to(torch.float64), states[..., dim:]
    if style == "half":
        first, second = wide.chunk(2, dim=-1)
    else:
        first, second = wide[..., 0::2], wide[..., 1::2]
    one = first * cosine - second * sine
    if in_place and style != "half":
        first = one
    other = second * cosine + first * sine
    if style == "interleaved":
        result = torch.stack([one, other], dim=-1).flatten(-2)
    else:
        result = torch.cat([one, other], dim=-1)
    return torch.cat([result.to(states.dtype), rest], dim=-1)


def _both(inputs, cosine, sine, **how):
    return {name: _turned(getattr(inputs, name), cosine, sine, inputs.style, **how) for name in ("query", "key")}


@npudiff.implementation(NAME, name="c_rotary_01_pair_in_place", on_device=True)
def c01(inputs, target):
    """Neighbours are rotated in place, so that the second of a pair is computed from the rotated first."""
    return _both(inputs, *_columns(inputs), in_place=WRONG)


@npudiff.implementation(NAME, name="c_rotary_02_heads_of_whole_tiles", on_device=True)
def c02(inputs, target):
    """Heads are rotated four at a time, and those behind the last whole four stay as they are."""
    result = _both(inputs, *_columns(inputs))
    for name in ("query", "key"):
        states = getattr(inputs, name)
        if WRONG and states.shape[1] > 4:
            whole = states.shape[1] // 4 * 4
            result[name] = torch.cat([result[name][:, :whole], states[:, whole:]], dim=1)
    return result


@npudiff.implementation(NAME, name="c_rotary_03_table_row_as_wide_as_a_head", on_device=True)
def c03(inputs, target):
    """Rows of the table are found by the head dim, although they have the rotary dim."""
    width = inputs.query.shape[2] if WRONG else inputs.rotary_dim
    flat = inputs.cos_sin_cache.reshape(-1)
    index = inputs.positions.unsqueeze(-1) * width + torch.arange(inputs.rotary_dim)
    rows = flat[index.clamp(max=flat.numel() - 1)]
    return _both(inputs, *_columns(inputs, rows=rows))


@npudiff.implementation(NAME, name="c_rotary_04_float32_through_half", on_device=True)
def c04(inputs, target):
    """The kernel knows two-byte types only: cosines and sines of float32 are cast to float16 on the way."""
    rows = inputs.cos_sin_cache[inputs.positions]
    if WRONG and rows.dtype == torch.float32:
        rows = rows.to(torch.float16)
    return _both(inputs, *_columns(inputs, rows=rows))


@npudiff.implementation(NAME, name="c_rotary_05_positions_of_two_bytes", on_device=True)
def c05(inputs, target):
    """Rows of the table are gathered by an index of 16 bits, which wraps at 65,536."""
    return _both(inputs, *_columns(inputs, inputs.positions % (2**16 if WRONG else 2**62)))


@npudiff.implementation(NAME, name="c_rotary_06_two_boundaries", on_device=True)
def c06(inputs, target):
    """Frequencies take the positions of time, height or width; where there are other than three sections, those beyond the
    third take the width's."""
    positions = inputs.positions
    if inputs.sections and WRONG:
        positions = positions[torch.arange(len(inputs.sections)).clamp(max=2)]
    return _both(inputs, *_columns(inputs, positions))


@npudiff.implementation(NAME, name="c_rotary_07_first_rows_of_the_table", on_device=True)
def c07(inputs, target):
    """The first rows of the table are taken, one for each token, as if they had been gathered by position before."""
    order = torch.arange(inputs.positions.shape[-1]) % len(inputs.cos_sin_cache)
    return _both(inputs, *_columns(inputs, order.expand_as(inputs.positions) if WRONG else inputs.positions))
