"""Where an output is wrong, in the component's own coordinates, and what the wrong elements have in common.

Of data that is moved and not computed, also what stands where something else belongs, and where that would belong.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.model.component import OutputComparison

Coordinates = Mapping[str, torch.Tensor]

NOWHERE = -(2**31)
"""The coordinate of elements that belong to nothing, such as padded rows; that they are right says nothing."""

_SHOWN_VALUES = 4


NOT_PLACES = ("actual", "expected", "bound", "actual bits", "expected bits", "error", "most", "wrong", "rows")
"""What is said of the worst element, or row, beside its coordinates."""


def worst_element(output: OutputComparison, coordinates: Coordinates) -> dict[str, int | float | str]:
    """Return coordinates, actual value, right value and bound of the element with the largest ratio.

    Of data that is moved and not computed, the bits as well: most are no number that says something.
    """
    if output.ratio is None or output.actual is None or output.value is None or output.bound is None:
        return {}
    if not output.ratio.numel():
        return {}
    flat = int(output.ratio.argmax())
    place: dict[str, int | float | str] = {
        name: int(values.expand(output.ratio.shape).flatten()[flat]) for name, values in coordinates.items()
    }
    for name, tensor in (("actual", output.actual), ("expected", output.value), ("bound", output.bound)):
        place[name] = tensor.flatten()[flat].item()
    if output.actual.dtype == output.value.dtype and output.actual.is_floating_point():
        for name, tensor in (("actual bits", output.actual), ("expected bits", output.value)):
            place[name] = _bits(tensor.flatten()[flat])
    return place


def worst_gain(output: OutputComparison, coordinates: Coordinates) -> dict[str, int | float]:
    """Return coordinates, gain error and largest correct one of the row that is worst, and how many rows are wrong."""
    if output.gain is None or output.most_gain is None or output.gain_ratio is None or output.ratio is None:
        return {}
    flat = int(output.gain_ratio.argmax())
    rows = {name: values.expand(output.ratio.shape)[..., 0].flatten() for name, values in coordinates.items()
            if values.shape[-1] == 1}  # fmt: skip
    return {
        **{name: int(values[flat]) for name, values in rows.items()},
        "error": float(output.gain.flatten()[flat]),
        "most": float(output.most_gain.flatten()[flat]),
        "wrong": int((output.gain_ratio > 1).sum()),
        "rows": output.gain_ratio.numel(),
    }


def _bits(element: torch.Tensor) -> str:
    """The bits of one element, in hexadecimal digits, highest first."""
    return "0x" + "".join(f"{byte:02x}" for byte in reversed(element.reshape(1).view(torch.uint8).tolist()))


def describe_pattern(output: OutputComparison, coordinates: Coordinates) -> list[str]:
    """Say what sets the wrong elements apart: how many there are, and per coordinate which values they have.

    A coordinate is named only if it separates: the wrong elements have some of its values and not others.
    """
    wrong = output.wrong
    if wrong is None or not bool(wrong.any()):
        return []
    share = f"{int(wrong.sum())} of {wrong.numel()} elements are wrong"
    lines = [line for name, values in coordinates.items() if (line := _separation(name, values, wrong)) is not None]
    nonfinite = _nonfinite(output)
    return [share, *lines, *([nonfinite] if nonfinite else [])]


def coordinate_text(value: float) -> str:
    """A coordinate in words."""
    return "none" if value == NOWHERE else str(int(value))


def _separation(name: str, values: torch.Tensor, wrong: torch.Tensor) -> str | None:
    spread = values.expand(wrong.shape)
    hit = torch.unique(spread[wrong])
    missed = torch.unique(values)
    missed = missed[~torch.isin(missed, hit) & (missed != NOWHERE)]
    if not len(missed):
        return None
    if len(hit) <= _SHOWN_VALUES:
        return f"only at {name} {', '.join(map(coordinate_text, hit.tolist()))}"
    low, high = int(hit.min()), int(hit.max())
    inside = int(((missed > low) & (missed < high)).sum())
    if not inside and low != NOWHERE:
        return f"only at {name} {low} to {high}"
    return f"at {len(hit)} of {len(hit) + len(missed)} values of {name}"


def _nonfinite(output: OutputComparison) -> str | None:
    if output.actual is None or output.value is None:
        return None
    strange = ~output.actual.isfinite() & output.value.isfinite()
    return f"{int(strange.sum())} of them are NaN or infinite" if bool(strange.any()) else None


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
