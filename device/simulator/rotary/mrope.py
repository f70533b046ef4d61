"""``npu_mrope``: turn query and key by rows of a cache of cosines and sines, chosen by position.

Sources: the wheel's documentation (DOC), aclnnRopeWithSinCosCache (ACLNN), op-plugin's ``MropeNpuOpApi``,
and CANN's kernel ``rope_with_sin_cos_cache_f_bf16.h`` (SOURCE), which computes in float32 and rounds once,
to even.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.rotary.rotation import rotate_half, rotate_pairs, turn

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHECK = ArgumentChecks("npu_mrope", default=ErrorCode.PARAMETER)


def mrope(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    *,
    mrope_section: Sequence[int] | None = None,
    rotary_mode: str | None = "half",
    cache_mode: str | None = "default",
) -> tuple[Tensor, Tensor]:
    """Turn the first ``rotary_dim`` elements of every head; the others pass through.

    Parameters
    ----------
    positions : Tensor
        int64 or int32: [T], or [3, T] or [4, T] with sections.
    query, key : Tensor
        [T, heads * head_size]; float16, bfloat16 or float32.
    cos_sin_cache : Tensor
        [positions, rotary_dim] in the dtype of query: rotary_dim / 2 cosines, then as many sines.
    head_size : int
        Elements per head.
    mrope_section : sequence of int, optional
        How many of the rotary_dim / 2 columns take their row from each row of positions. None or zeros:
        there is one row of positions.
    rotary_mode : str, optional
        ``half`` or ``interleave``; the output keeps the order of the input.
    cache_mode : str, optional
        ``default``: sections are slices. ``interleave``: columns 1, 4, ... are of the second row of
        positions, columns 2, 5, ... of the third, all others of the first.

    Returns
    -------
    query, key : Tensor
        New tensors, shapes and dtypes of the inputs.

    Raises
    ------
    OperatorRejected
        Mode, dtype, rank, shape or section is not one of the above.
    DeviceFault
        A position is outside the cache.
    UndefinedBehaviour
        Several rows of positions and no sections.
    NotSimulated
        Four sections with ``cache_mode='interleave'``.
    """
    mode, section = rotary_mode or "half", tuple(mrope_section or ())
    section = section if any(section) else ()
    _check_modes(mode, cache_mode or "default")
    _check_tensors(positions, query, key, cos_sin_cache, active_profile())
    _check_sizes(query, key, cos_sin_cache, head_size)
    _check_sections(positions, cos_sin_cache, section, active_profile())
    if cache_mode == "interleave" and len(section) == 4:
        raise _CHECK.not_simulated("mrope_section", list(section), "three sections with cache_mode 'interleave'")
    _CHECK.indices("positions", positions, len(cos_sin_cache), "rows of cos_sin_cache")
    rows = _rows_of_columns(section, cos_sin_cache.shape[1] // 2, interleave=cache_mode == "interleave")
    cos, sin = _cos_sin(positions, cos_sin_cache, rows)
    return _turn_heads(query, cos, sin, head_size, mode), _turn_heads(key, cos, sin, head_size, mode)


def mrope_meta(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate the outputs; as torch_npu's META, this checks nothing."""
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _rows_of_columns(section: tuple[int, ...], columns: int, *, interleave: bool) -> Tensor:
    """Return, for each of the columns, which row of positions it follows: int64 [columns]."""
    if not section:
        return torch.zeros(columns, dtype=torch.int64)
    if not interleave:
        return torch.arange(len(section)).repeat_interleave(torch.tensor(section))
    rows = torch.zeros(columns, dtype=torch.int64)
    # SOURCE bounds each by its own section, DOC both by the second; they are equal in all that is allowed.
    for row in (1, 2):
        rows[row : 3 * section[row] : 3] = row
    return rows


def _cos_sin(positions: Tensor, cache: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Gather cosines and sines, float32 [T, 1, columns] each."""
    positions = positions.to(torch.int64)
    positions = positions.unsqueeze(0) if positions.dim() == 1 else positions
    columns = torch.arange(len(rows))
    of_column = positions[rows].transpose(0, 1)
    cos, sin = cache[of_column, columns], cache[of_column, columns + len(rows)]
    return cos.float().unsqueeze(1), sin.float().unsqueeze(1)


def _turn_heads(packed: Tensor, cos: Tensor, sin: Tensor, head_size: int, mode: str) -> Tensor:
    heads = packed.reshape(len(packed), packed.shape[1] // head_size, head_size)
    rotary_dim = 2 * cos.shape[-1]
    values = heads[..., :rotary_dim].float()
    if mode == "half":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        turned = turn(values, rotate_half(values), cos, sin)
    else:
        cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
        turned = turn(values, rotate_pairs(values), cos, sin)
    return torch.cat((turned.to(packed.dtype), heads[..., rotary_dim:]), -1).reshape(packed.shape)


def _check_modes(rotary_mode: str, cache_mode: str) -> None:
    # DOC of op-plugin spells it 'interleaved', which the code refuses.
    wrapper = ErrorCode.WRAPPER
    words = "rotary_mode only support half or interleave"
    _CHECK.choice("rotary_mode", rotary_mode, ("half", "interleave"), wrapper, words)
    words = "cache_mode only support default or interleave"
    _CHECK.choice("cache_mode", cache_mode, ("default", "interleave"), wrapper, words)


def _check_tensors(positions: Tensor, query: Tensor, key: Tensor, cache: Tensor, profile: CannProfile) -> None:
    integers = ("int64", "int32") if profile.mrope_int32_positions == "accepted" else ("int64",)
    _CHECK.dtype("positions", positions, *integers)
    _CHECK.dtype("query", query, *FLOATS)
    for argument, tensor in (("query", query), ("key", key), ("cos_sin_cache", cache)):
        _CHECK.rank(argument, tensor, 2)
        _CHECK.same_dtype(argument, tensor, "query", query)
    if positions.dim() not in (1, 2) or (positions.dim() == 2 and len(positions) not in (3, 4)):
        given = f"of shape {list(positions.shape)}"
        raise _CHECK.rejected("positions", given, "[T], [3, T] or [4, T]")
    tokens = positions.shape[-1]
    for argument, tensor in (("query", query), ("key", key)):
        if len(tensor) != tokens:
            given = f"of {len(tensor)} tokens"
            raise _CHECK.rejected(argument, given, f"{tokens} tokens, as positions", ErrorCode.TILING)


def _check_sizes(query: Tensor, key: Tensor, cache: Tensor, head_size: int) -> None:
    step = 16 if query.dtype == torch.float32 else 32
    rotary_dim = cache.shape[1]
    if head_size <= 0 or head_size % step:
        raise _CHECK.rejected("head_size", head_size, f"a multiple of {step}", ErrorCode.TILING)
    if not 0 < rotary_dim <= head_size or rotary_dim % step:
        allowed = f"a multiple of {step} up to head_size {head_size}"
        raise _CHECK.rejected("cos_sin_cache", f"of rotary dim {rotary_dim}", allowed, ErrorCode.TILING)
    for argument, tensor in (("query", query), ("key", key)):
        if tensor.shape[1] % head_size:
            allowed = f"a multiple of head_size {head_size}"
            raise _CHECK.rejected(argument, f"of width {tensor.shape[1]}", allowed, ErrorCode.TILING)


def _check_sections(positions: Tensor, cache: Tensor, section: tuple[int, ...], profile: CannProfile) -> None:
    if not section:
        if positions.dim() == 2:
            message = (
                f"{_CHECK.operator}: positions of shape {list(positions.shape)} without mrope_section; one row is read"
            )
            raise UndefinedBehaviour(message)
        return
    if section not in profile.mrope_sections:
        allowed = ", ".join(str(list(known)) for known in sorted(profile.mrope_sections)) + " or zeros"
        raise _CHECK.rejected("mrope_section", list(section), allowed, ErrorCode.TILING)
    if 2 * sum(section) != cache.shape[1]:
        allowed = f"sections with the sum {cache.shape[1] // 2}, half of rotary dim {cache.shape[1]}"
        raise _CHECK.rejected("mrope_section", list(section), allowed, ErrorCode.TILING)
    if positions.dim() != 2 or len(positions) != len(section):
        given = f"of shape {list(positions.shape)}"
        allowed = f"[{len(section)}, T], a row per section"
        raise _CHECK.rejected("positions", given, allowed, ErrorCode.TILING)
