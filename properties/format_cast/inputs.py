"""From a case to a tensor, and where each element of an output is."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.moved_data import random_bits
from npudiff.properties.format_cast.case import FormatCastCase
from npudiff.reference.format_cast import FormatCastInputs, addresses, part_of, tiles


def build_inputs(case: FormatCastCase) -> FormatCastInputs:
    """Build the tensor of a case; no element of it is 0, which the padding is."""
    return FormatCastInputs(random_bits(Stream(case.seed, "tensor"), case.shape, case.torch_dtype), case.view)


def coordinates(inputs: FormatCastInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return where each element of an output is in the tensor: matrix, row and column, which go on in the padding."""
    if output == "format":
        return {}
    tensor = inputs.tensor
    rows, columns = tensor.shape[-2:]
    across, down, height, width = tiles(rows, columns, tensor.dtype)
    shape = (down * height, across * width) if output == "storage" else (rows, columns)
    place = torch.cartesian_prod(*map(torch.arange, (tensor.numel() // (rows * columns), *shape)))
    places = {name: place[:, axis] for axis, name in enumerate(("matrix", "row", "column"))}
    if output == "values":
        return {name: part_of(numbers.reshape(tensor.shape), inputs.view) for name, numbers in places.items()}
    if output == "storage":
        return {name: _in_storage(numbers.view(-1, *shape), tensor.dtype) for name, numbers in places.items()}
    return places


def _in_storage(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrices of whole tiles, in order of the addresses of their elements."""
    _, rows, columns = matrices.shape
    order = addresses(rows, columns, dtype).flatten().argsort()
    return matrices.flatten(1)[:, order].flatten()
