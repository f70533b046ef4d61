"""Where an output is wrong, in the component's own coordinates, and what the wrong elements have in common."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.model.comparison import OutputComparison

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
