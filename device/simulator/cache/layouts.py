"""How each format orders the elements of a whole storage: tiles of matrices, and channels of images in blocks.

Shapes of storages are those of Ascend/pytorch, ``torch_npu/csrc/framework/FormatHelper.cpp``, which pads channels to 16
for all dtypes. The order within FRACTAL_Z is that of CANN's documents: ``C1 H W``, then N and C of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.cache.formats import Format, StorageFormat
from npudiff.device.simulator.cache.fractal import fractal_shape, from_fractal_nz, to_fractal_nz

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_BLOCK = 16
_IMAGE, _VOLUME = 4, 5
"""Ranks of ``[N, C, H, W]`` and ``[N, C, D, H, W]``."""


@dataclass(frozen=True)
class Blocks:
    """How a format orders images or volumes."""

    rank: int
    """Axes of what it orders."""
    cut: tuple[int, ...]
    """Axes that are cut into blocks of 16, each then two axes: which block, and where in it."""
    order: tuple[int, ...]
    """Of the axes after the cut, from the outermost one in memory."""
    merged: int = 1
    """How many of these torch_npu counts as one, from the first."""

    def padded(self, sizes: Sequence[int]) -> list[int]:
        """Return sizes with whole blocks."""
        return [-(-size // _BLOCK) * _BLOCK if axis in self.cut else size for axis, size in enumerate(sizes)]

    def split(self, sizes: Sequence[int]) -> list[int]:
        """Return the sizes after the cut, of whole blocks."""
        pairs = ([size // _BLOCK, _BLOCK] if axis in self.cut else [size] for axis, size in enumerate(sizes))
        return [size for pair in pairs for size in pair]


LAYOUTS = {
    Format.NC1HWC0: Blocks(_IMAGE, (1,), (0, 1, 3, 4, 2)),
    Format.FRACTAL_Z: Blocks(_IMAGE, (0, 1), (2, 4, 5, 0, 1, 3), merged=3),
    Format.NDHWC: Blocks(_VOLUME, (), (0, 2, 3, 4, 1)),
    Format.NDC1HWC0: Blocks(_VOLUME, (1,), (0, 3, 1, 4, 5, 2)),
    Format.FRACTAL_Z_3D: Blocks(_VOLUME, (0, 1), (4, 2, 5, 6, 0, 1, 3), merged=4),
}
"""Formats of images and volumes."""

LAID_OUT = frozenset({Format.FRACTAL_NZ, *LAYOUTS})
"""Formats that change the order of elements, as far as they are simulated."""


def storage_shape(described: StorageFormat) -> tuple[int, ...]:
    """Return the shape that a storage has in memory, padding included."""
    if described.format is Format.FRACTAL_NZ:
        return fractal_shape(described.sizes, described.dtype, described.width)
    return tuple(to_storage(torch.empty(described.sizes, device="meta"), described).shape)


def to_storage(values: Tensor, described: StorageFormat) -> Tensor:
    """Return what lies in memory of values in logical order, contiguous; 0 where there is no element.

    Parameters
    ----------
    values : Tensor
        Of the sizes that are described, in any dtype.
    described : StorageFormat
        In a format of :data:`LAID_OUT`.
    """
    if described.format is Format.FRACTAL_NZ:
        return to_fractal_nz(values, fractal_shape(described.sizes, described.dtype, described.width)[-1])
    layout = LAYOUTS[described.format]
    sizes = image_sizes(described.sizes, layout.rank)
    padded = values.new_zeros(layout.padded(sizes))
    padded[tuple(map(slice, sizes))] = values.reshape(sizes)
    ordered = padded.view(layout.split(padded.shape)).permute(layout.order).contiguous()
    return ordered.flatten(0, layout.merged - 1)


def from_storage(storage: Tensor, described: StorageFormat) -> Tensor:
    """Undo :func:`to_storage`; what lies in the padding is lost."""
    if described.format is Format.FRACTAL_NZ:
        return from_fractal_nz(storage, described.sizes)
    layout = LAYOUTS[described.format]
    sizes = image_sizes(described.sizes, layout.rank)
    padded = layout.padded(sizes)
    split = layout.split(padded)
    inverse = sorted(range(len(split)), key=layout.order.__getitem__)
    values = storage.reshape([split[axis] for axis in layout.order]).permute(inverse).reshape(padded)
    return values[tuple(map(slice, sizes))].reshape(described.sizes).contiguous()


def image_sizes(sizes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Return sizes of an image ``[N, C, H, W]``, of which the first may be missing, and the last; volumes have all."""
    if rank == _VOLUME or len(sizes) >= _IMAGE:
        return tuple(sizes)
    return (1, *sizes, *[1] * (_IMAGE - 1 - len(sizes)))
