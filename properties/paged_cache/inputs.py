"""From a case to tensors, and where each of their elements is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.cache_coordinates import cache_coordinates
from npudiff.properties._shared.padding import with_padding
from npudiff.properties._shared.rows import GAPS, with_row_stride
from npudiff.properties.paged_cache.case import PagedCacheCase, layout_of
from npudiff.reference.paged_cache import PagedCacheInputs


def build_inputs(case: PagedCacheCase) -> PagedCacheInputs:
    """Build the inputs of a case: every element of data and caches has bits of its own, as far as there are enough."""
    room = (case.pages - 1) * case.page_size
    order = Stream(case.seed, "slots").permutation(room)[: case.tokens]
    slots = with_padding([case.page_size + slot for slot in order], case)
    rows = len(slots)
    return PagedCacheInputs(
        key=_rows(case, "key", (rows, case.kv_heads, case.head_dim)),
        value=_rows(case, "value", (rows, case.kv_heads, case.value_head_dim), GAPS[1]),
        key_cache=_data(case, "key cache", layout_of(case, case.head_dim).shape),
        value_cache=_data(case, "value cache", layout_of(case, case.value_head_dim).shape),
        slots=with_row_stride(
            torch.tensor(slots, dtype=torch.int32 if case.slots_dtype == "int32" else torch.int64), case.rows
        ),
        page_size=case.page_size,
        layout=case.layout,
    )


def _rows(case: PagedCacheCase, name: str, shape: Sequence[int], gap: int = GAPS[0]) -> torch.Tensor:
    return with_row_stride(_data(case, name, shape), case.rows, gap)


def _data(case: PagedCacheCase, name: str, shape: Sequence[int]) -> torch.Tensor:
    """Random bits; of a float dtype with the exponent's top bit cleared, so that all are finite numbers."""
    count = int(torch.Size(shape).numel())
    words = torch.from_numpy(Stream(case.seed, name).random_uint64(-(-count // 4)).view("int16")[:count].copy())
    if case.dtype == "int8":
        return (words & 0xFF).to(torch.int8).reshape(tuple(shape))
    return (words & -0x4001).view(case.torch_dtype).reshape(tuple(shape))


def coordinates(inputs: PagedCacheInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to a cache: the axes of its layout, and the new token."""
    cache = inputs.key_cache if output == "key_cache" else inputs.value_cache
    return cache_coordinates(cache, inputs.layout, inputs.page_size, inputs.slots)
