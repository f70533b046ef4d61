"""Storage formats: which one a tensor's storage has, remembered on the storage itself.

A CPU tensor always holds its logical order, so the format is a note only. The note is an attribute of the
storage: views share it, it goes when the storage goes, and a copy has none. Sources are in Ascend/pytorch,
``torch_npu/csrc/framework``: ``FormatHelper.cpp`` (the table of formats), ``InferFormat.cpp`` (what a new tensor
has).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Format(IntEnum):
    """ACL formats, with the numbers of ``torch_npu.Format``."""

    UNDEFINED = -1
    NCHW = 0
    NHWC = 1
    ND = 2
    NC1HWC0 = 3
    FRACTAL_Z = 4
    NC1HWC0_C04 = 12
    HWCN = 16
    NDHWC = 27
    FRACTAL_NZ = 29
    NCDHW = 30
    NDC1HWC0 = 32
    FRACTAL_Z_3D = 33
    NC = 35
    NCL = 47
    FRACTAL_NZ_C0_16 = 50
    FRACTAL_NZ_C0_32 = 51
    FRACTAL_NZ_C0_2 = 52
    FRACTAL_NZ_C0_4 = 53
    FRACTAL_NZ_C0_8 = 54


BASE_FORMATS = frozenset({Format.NCHW, Format.NHWC, Format.ND, Format.NCDHW})
"""Formats that leave the order of the elements alone: casts between them change the note and nothing else."""


@dataclass(frozen=True)
class StorageFormat:
    """What is noted on a storage."""

    format: Format
    """How its elements lie."""
    sizes: tuple[int, ...]
    """The logical shape of the whole storage; views of it have others."""
    dtype: torch.dtype
    """The dtype with which it was cast. A view may reinterpret its bytes."""
    width: int | None = None
    """C0 of FRACTAL_NZ, where a cast asked for another one than that of the dtype."""


_OF_VOLUMES = frozenset({Format.NCDHW, Format.NDHWC, Format.NDC1HWC0, Format.FRACTAL_Z_3D})


def base_format(format: Format) -> Format:
    """Return the format in which a cast takes another one apart: matrices, images or volumes in torch's order."""
    if format in _OF_VOLUMES:
        return Format.NCDHW
    if format in (Format.NC1HWC0, Format.FRACTAL_Z):
        return Format.NCHW
    return format if format in BASE_FORMATS else Format.ND


_NOTE = "_npudiff_storage_format"


def note(tensor: Tensor, noted: StorageFormat) -> None:
    """Remember a format on a tensor's storage, for as long as the storage lives."""
    setattr(tensor.untyped_storage(), _NOTE, noted)


def noted_format(tensor: Tensor) -> StorageFormat | None:
    """Return what is remembered on a tensor's storage; nothing if the storage was resized since."""
    storage = tensor.untyped_storage()
    noted: StorageFormat | None = getattr(storage, _NOTE, None)
    if noted is None or storage.nbytes() != math.prod(noted.sizes) * noted.dtype.itemsize:
        return None
    return noted


def base_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor that a view was made from, as far as torch remembers: not in inference mode."""
    return tensor if tensor._base is None else tensor._base


def format_of(tensor: Tensor) -> Format:
    """Return the format of a tensor's storage; one that was never cast has that of a new tensor of its rank."""
    noted = noted_format(tensor)
    return new_format(base_tensor(tensor).dim()) if noted is None else noted.format


def new_format(rank: int) -> Format:
    """Return the format with which torch_npu makes a tensor: images and volumes are guessed from the rank."""
    return {4: Format.NCHW, 5: Format.NCDHW}.get(rank, Format.ND)
