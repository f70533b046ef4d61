"""Data that is moved and not computed: what stands where something else belongs, and where that would belong."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.judge.pattern import coordinate_text
from npudiff.model.comparison import OutputComparison

_WORD = 8
"""Bytes that are looked for as one: few words of a case are alike, while 16-bit elements are."""

_MOST_WORDS = 2**22

_RARE = 100
"""One of so many elements may hold by chance what was there before."""


def explain_misplaced(
    output: OutputComparison, coordinates: Mapping[str, torch.Tensor], before: object = None
) -> list[str]:
    """Say what the wrong elements hold instead: what was there before the call, or what belongs elsewhere.

    Parameters
    ----------
    output : OutputComparison
        What was compared.
    coordinates : mapping
        Integer tensors that broadcast to the output.
    before : object
        The input of the same name, if there is one: what an operator that writes in place found there.
    """
    actual, value, wrong = output.actual, output.value, output.wrong
    if actual is None or value is None or wrong is None or not bool(wrong.any()):
        return []
    lines = []
    if isinstance(before, torch.Tensor) and before.shape == actual.shape and before.dtype == actual.dtype:
        kept = wrong & _same(actual, before)
        if int(kept.sum()) * _RARE >= int(wrong.sum()):
            lines.append(f"{int(kept.sum())} hold what was there before")
        wrong = wrong & ~kept
    row = actual.shape[-1] * actual.dtype.itemsize if actual.dim() else 0
    if actual.dtype == value.dtype and row and row % _WORD == 0 and actual.numel() * actual.dtype.itemsize <= _LARGEST:
        lines += _belongs_elsewhere(actual, value, wrong, coordinates)
    return lines


_LARGEST = _MOST_WORDS * _WORD


def _same(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one == other) | (one.isnan() & other.isnan()) if one.is_floating_point() else one == other


def _belongs_elsewhere(
    actual: torch.Tensor, value: torch.Tensor, wrong: torch.Tensor, coordinates: Mapping[str, torch.Tensor]
) -> list[str]:
    size = _WORD // actual.dtype.itemsize
    here = wrong.reshape(-1, size).any(dim=1).nonzero().flatten()
    ordered, order = torch.sort(_as_int64(value), stable=True)
    found = _as_int64(actual)[here]
    rank = torch.searchsorted(ordered, found).clamp_(max=len(ordered) - 1)
    after = (rank + 1).clamp_(max=len(ordered) - 1)
    once = (ordered[rank] == found) & ((ordered[after] != found) | (after == rank))
    if not bool(once.any()):
        return []
    place, home = int(here[once][0]) * size, int(order[rank[once][0]]) * size
    names = {name: values.expand(actual.shape).flatten() for name, values in coordinates.items()}
    moved = {name: (int(flat[place]), int(flat[home])) for name, flat in names.items() if flat[place] != flat[home]}
    if not moved:
        return []
    texts = [[f"{name} {coordinate_text(value)}" for value in pair] for name, pair in moved.items()]
    where, whence = (", ".join(side) for side in zip(*texts, strict=True))
    count = int(wrong.reshape(-1, size)[here[once]].sum())
    return [f"{count} hold what belongs elsewhere: {where} has that of {whence}"]


def _as_int64(tensor: torch.Tensor) -> torch.Tensor:
    # A tensor with one column may have any stride there and be called contiguous: it is copied with strides of its own.
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).view(torch.int64)
